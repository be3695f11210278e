import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from jaxunlearn.errors import UserError
from jaxunlearn.metrics import Predictions, clinical, evaluate


def evaluated(val, test, malignant, scenarios):
    """The values of predictions on val and test."""
    return evaluate(
        {"forget": test, "retain": test, "val": val, "test": test},
        malignant=malignant,
        scenarios=scenarios,
        attack="threshold",
        members="all",
        malignant_rule="argmax",
        seed=0,
    )


def draw(seed, n, share):
    """Calls and truth, with at least one example of either truth."""
    rng = np.random.default_rng(seed)
    truth = np.append([True, False], rng.random(n - 2) < share)
    return rng.random(n) < 0.4, truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [4, 50, 1000])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_as_scikit_learn(seed, n, share):
    called, truth = draw(seed, n, share)
    counts = clinical.confusion(called, truth)
    (tn, fp), (fn, tp) = sk.confusion_matrix(truth, called, labels=[False, True])
    assert counts == {"tp": tp, "fn": fn, "fp": fp, "tn": tn}
    rates = clinical.rates(counts)
    assert rates["sensitivity"] == pytest.approx(sk.recall_score(truth, called))
    assert rates["specificity"] == pytest.approx(sk.recall_score(~truth, ~called))
    assert rates["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, called))
    if called.any():
        assert rates["ppv"] == pytest.approx(sk.precision_score(truth, called))
    if not called.all():
        assert rates["npv"] == pytest.approx(sk.precision_score(~truth, ~called))
    assert rates["fnr"] == pytest.approx(1 - rates["sensitivity"])
    assert rates["fpr"] == pytest.approx(1 - rates["specificity"])
    # Equal costs: the risk is the error.
    risk = clinical.risks(called, truth, 1, 1)["risk"]
    assert risk == pytest.approx(1 - sk.accuracy_score(truth, called))


@pytest.mark.parametrize("num_classes, malignant", [(2, (0,)), (2, (1,)), (7, (0, 1, 4))])
def test_auroc_is_of_the_summed_probability(num_classes, malignant):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, num_classes)).astype(np.float32)
    labels = rng.integers(0, num_classes, 200)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = sk.roc_auc_score(np.isin(labels, malignant), p[:, list(malignant)].sum(1))
    test = Predictions(logits, labels)
    values = evaluated(test, test, malignant, ((1, 1),))
    assert values["auroc"] == pytest.approx(expected, abs=1e-4)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.floats(0.1, 100),
    st.floats(0.1, 100),
)
def test_risk_is_what_net_benefit_leaves(pairs, c_fn, c_fp):
    called, truth = np.array(pairs).T
    counts = clinical.confusion(called, truth)
    risks = clinical.risks(called, truth, c_fn, c_fp)
    # R_global = C_FN · (π − net benefit) at p_t = C_FP / (C_FP + C_FN)
    # Net benefit (Vickers & Elkin 2006) = TP/N − FP/N · p_t / (1 − p_t), odds C_FP / C_FN
    net_benefit = (counts["tp"] - counts["fp"] * c_fp / c_fn) / len(truth)
    assert risks["risk"] == pytest.approx(c_fn * (truth.mean() - net_benefit), abs=1e-9)
    # and by counts
    fn, fp, n = counts["fn"], counts["fp"], len(truth)
    assert risks["risk"] == pytest.approx((c_fn * fn + c_fp * fp) / n)
    if truth.any():
        assert risks["risk_malignant"] == pytest.approx(c_fn * fn / truth.sum())
    if not truth.all():
        assert risks["risk_benign"] == pytest.approx(c_fp * fp / (~truth).sum())


@pytest.mark.parametrize("c_fn, c_fp", [(1, 1), (20, 1), (1, 3)])
def test_best_worst_and_trivial_answers(c_fn, c_fp):
    _, truth = draw(0, 100, 0.2)
    pi = truth.mean()
    assert clinical.risks(truth, truth, c_fn, c_fp)["risk"] == 0
    worst = clinical.risks(~truth, truth, c_fn, c_fp)
    assert worst["risk"] == pytest.approx(c_fn * pi + c_fp * (1 - pi))
    assert worst["risk_treat_none"] == pytest.approx(c_fn * pi)
    assert worst["risk_treat_all"] == pytest.approx(c_fp * (1 - pi))
    none = clinical.risks(np.zeros_like(truth), truth, c_fn, c_fp)
    every = clinical.risks(np.ones_like(truth), truth, c_fn, c_fp)
    assert none["risk"] == none["risk_treat_none"] and every["risk"] == every["risk_treat_all"]
    assert min(none["risk_ratio"], every["risk_ratio"]) == 1


def test_risk_of_published_proportions():
    # 19.5% malignant at 20:1, sensitivity 0.60, no false alarm: 20 · 0.195 · 0.4 = 1.56, while
    # calling everything malignant costs 0.805.
    truth = np.arange(1000) < 195
    risks = clinical.risks(np.arange(1000) < 117, truth, 20, 1)
    assert risks["risk"] == pytest.approx(1.56)
    assert risks["risk_treat_all"] == pytest.approx(0.805)
    assert risks["risk_ratio"] == pytest.approx(1.56 / 0.805)


def test_threshold_by_hand():
    p = np.array([0.1, 0.3, 0.4, 0.8, 0.9])
    truth = np.array([False, True, False, True, True])
    # 1:1 — at 0.6 one lesion is missed, at 0.2 there is one false alarm: a tie, and the lower
    # threshold wins
    assert clinical.cost_optimal_threshold(p, truth, 1, 1) == pytest.approx(0.2)
    assert clinical.cost_optimal_threshold(p, truth, 1, 1.01) == pytest.approx(0.6)
    assert clinical.cost_optimal_threshold(p, truth, 20, 1) == pytest.approx(0.2)
    # All or nothing, where probabilities say nothing
    level = np.full(5, 0.5)
    assert clinical.cost_optimal_threshold(level, truth, 20, 1) == 0.0
    assert clinical.cost_optimal_threshold(level, truth, 1, 20) == 2.0
    assert clinical.cost_optimal_threshold(level, truth, 2, 3) == 0.0  # 3 · 2 = 2 · 3: all
    assert clinical.cost_optimal_threshold(p, np.ones(5, bool), 1, 1) is None
    assert clinical.cost_optimal_threshold(p, np.zeros(5, bool), 1, 1) is None


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30),
    st.sampled_from([(1, 1), (20, 1), (1, 5)]),
)
def test_threshold_is_as_good_as_any(pairs, scenario):
    p, truth = np.array([a for a, _ in pairs]) / 8, np.array([b for _, b in pairs])
    found = clinical.cost_optimal_threshold(p, truth, *scenario)
    if truth.all() or not truth.any():
        assert found is None
        return
    tried = np.arange(-1, 19) / 16
    risk = [clinical.costs(p >= t, truth, *scenario).mean() for t in (*tried, found)]
    assert risk[-1] == min(risk)
    lower = tried[tried < found]
    calls = [(p >= t).sum() for t, r in zip(lower, risk, strict=False) if r == min(risk)]
    assert all(called == (p >= found).sum() for called in calls)


def test_threshold_is_chosen_on_val_and_applied_on_test():
    def binary(p, labels):
        p = np.asarray(p)
        return Predictions(np.log(np.stack([1 - p, p], 1)), np.asarray(labels))

    val = binary([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1])
    test = binary([0.2, 0.27, 0.4, 0.6], [0, 0, 1, 1])
    values = evaluated(val, test, (1,), ((20, 1),))
    assert values["threshold"]["20:1"] == pytest.approx(0.25)
    assert values["risk"]["20:1"] == pytest.approx(20 / 4)  # argmax misses 0.4
    assert values["risk_at_threshold"]["20:1"] == pytest.approx(1 / 4)  # 0.27 is a false alarm


def test_compare_false_negatives_by_hand():
    def says(calls):
        calls = np.asarray(calls)
        return Predictions(np.stack([1 - calls, calls], 1).astype(np.float32), labels)

    labels = np.array([1] * 8 + [0] * 3)
    ours = says([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    theirs = says([1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0])
    # Five newly missed or found, four of them missed: p = 2 · (5 + 1) / 2⁵
    assert clinical.compare_false_negatives(ours, theirs, (1,), "argmax") == {
        "missed": 5,
        "missed_reference": 2,
        "newly_missed": 4,
        "newly_found": 1,
        "p_value": pytest.approx(12 / 32),
        "n_malignant": 8,
    }
    same = clinical.compare_false_negatives(ours, ours, (1,), "argmax")
    assert same["p_value"] == 1 and same["newly_missed"] == same["newly_found"] == 0
    with pytest.raises(UserError, match="different labels"):
        other = Predictions(theirs.logits, labels[::-1])
        clinical.compare_false_negatives(ours, other, (1,), "argmax")


def test_images_of_one_patient_count_once_in_false_negatives():
    labels, groups = np.ones(6, int), np.array([0, 0, 0, 1, 1, 1])
    miss, hit = (
        Predictions(np.eye(2, dtype=np.float32)[[answer] * 6], labels, groups) for answer in (0, 1)
    )
    found = clinical.compare_false_negatives(miss, hit, (1,), "argmax")
    assert found["newly_missed"] == 6 and found["p_value"] == pytest.approx(2 / 4)
