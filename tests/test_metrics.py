import json
import re

import numpy as np
import pytest

from jaxunlearn import metrics
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import Predictions, clinical
from jaxunlearn.metrics.predictions import confidence, probabilities

SETTINGS = dict(
    scenarios=((1, 1), (20, 1)),
    attack="threshold",
    members="all",
    malignant_rule="argmax",
    seed=0,
)


def certain(answers, labels, num_classes=2):
    """Predictions of a model that gives its answer the logit 1."""
    logits = np.eye(num_classes, dtype=np.float32)[np.asarray(answers)]
    return Predictions(logits, np.asarray(labels, np.int32))


def random_predictions(seed, sizes=(30, 90, 40, 50), num_classes=4):
    rng = np.random.default_rng(seed)
    return {
        name: Predictions(
            rng.normal(size=(n, num_classes)).astype(np.float32),
            np.append(np.arange(num_classes), rng.integers(0, num_classes, n - num_classes)).astype(
                np.int32
            ),
        )
        for name, n in zip(("forget", "retain", "val", "test"), sizes, strict=True)
    }


# Class 1 is malignant. Test: 4 malignant, 3 found; 6 benign, 2 false alarms.
TEST = certain([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
BY_HAND = {
    "forget": certain([0, 1, 1, 1], [0, 0, 1, 1]),  # 1 of 4 wrong
    "retain": certain([0] * 5 + [1] * 5, [0] * 4 + [1] * 6),  # 1 of 10 wrong
    "val": certain([0, 0, 1, 1], [0, 0, 1, 1]),
    "test": TEST,  # 3 of 10 wrong
}


def test_by_hand():
    values = metrics.evaluate(BY_HAND, malignant=(1,), **SETTINGS)
    assert values["UA"] == pytest.approx(25)
    assert values["RA"] == pytest.approx(90)
    assert values["TA"] == pytest.approx(70)
    # Right answers have the confidence e/(1+e), wrong ones 1/(1+e). Members 9 of 10 high,
    # non-members 7 of 10: "high is member" is right 9 + 3 times, "all are members" 10 times.
    # Forget: 3 of 4 high.
    assert values["MIA"] == pytest.approx(25)
    assert values["n"] == {"forget": 4, "retain": 10, "val": 4, "test": 10}
    assert values["counts"] == {"tp": 3, "fn": 1, "fp": 2, "tn": 4}
    for name, expected in {
        "sensitivity": 3 / 4,
        "specificity": 4 / 6,
        "fnr": 1 / 4,
        "fpr": 2 / 6,
        "ppv": 3 / 5,
        "npv": 4 / 5,
        "balanced_accuracy": (3 / 4 + 4 / 6) / 2,
        # of the 24 pairs: 3·4 right, 3·2 + 1·4 level at one half each, 1·2 wrong
        "auroc": (12 + 10 / 2) / 24,
    }.items():
        assert values[name] == pytest.approx(expected), name
    assert values["risk"] == pytest.approx({"1:1": 0.3, "20:1": (20 * 1 + 2) / 10})
    assert values["risk_malignant"] == pytest.approx({"1:1": 1 / 4, "20:1": 20 / 4})
    assert values["risk_benign"] == pytest.approx({"1:1": 2 / 6, "20:1": 2 / 6})
    assert values["risk_gap"] == pytest.approx({"1:1": 1 / 12, "20:1": 5 - 1 / 3})
    assert values["risk_treat_none"] == pytest.approx({"1:1": 0.4, "20:1": 8})
    assert values["risk_treat_all"] == pytest.approx({"1:1": 0.6, "20:1": 0.6})
    assert values["risk_ratio"] == pytest.approx({"1:1": 0.75, "20:1": 2.2 / 0.6})
    # val is answered rightly with p(malignant) e/(1+e) and 1/(1+e): the middle is best for any
    # costs
    assert values["threshold"] == pytest.approx({"1:1": 0.5, "20:1": 0.5})
    assert values["risk_at_threshold"] == pytest.approx({"1:1": 0.3, "20:1": 2.2})


def test_forget_against_unseen_images_by_hand():
    values = metrics.evaluate(BY_HAND, malignant=(), **SETTINGS)
    # Class 0: 1 of 2 right in forget, 6 of 8 in val and test. Class 1: 2 of 2, and 5 of 6.
    difference = (2 * (1 / 2 - 6 / 8) + 2 * (1 - 5 / 6)) / 4
    assert values["accuracy_over_unseen"] == pytest.approx(difference)
    # Right answers have the confidence e/(1+e), wrong ones 1/(1+e).
    each = (np.e - 1) / (np.e + 1)
    assert values["confidence_over_unseen"] == pytest.approx(each * difference)
    assert values["entropy_over_unseen"] == pytest.approx(0)


def test_unseen_images_are_of_no_patient_of_train_and_count_by_class():
    def answers(logits, labels, groups):
        return Predictions(np.array(logits, np.float32), np.array(labels), np.array(groups))

    unsure, sure = [0, 0, 0], [99, 0, 0]
    known = {
        # Class 2 has no unseen image, so that two of three forgotten ones that count are of 1.
        "forget": answers([unsure, unsure, unsure, sure], [0, 1, 1, 2], [0, 1, 1, 2]),
        "retain": answers([sure, sure, sure], [0, 1, 2], [3, 4, 5]),
        "val": answers([sure, unsure, unsure], [0, 1, 2], [6, 1, 4]),  # the last two of train
        "test": answers([unsure, sure], [0, 1], [7, 8]),
    }
    values = metrics.evaluate(known, malignant=(), **SETTINGS)
    # Entropies of class 0: log 3, and log 3 / 2 unseen; of class 1: log 3, and 0 unseen.
    assert values["entropy_over_unseen"] == pytest.approx((np.log(3) / 2 + 2 * np.log(3)) / 3)
    # Of the true class: 1/3, and (1 + 1/3) / 2 unseen; 1/3, and 0 unseen.
    change = (1 / 3 - 2 / 3 + 2 * (1 / 3 - 0)) / 3
    assert values["confidence_over_unseen"] == pytest.approx(change)
    # Val's groups alone do: the same images are left out.
    partly = {**known, "test": known["test"]._replace(groups=None)}
    values = metrics.evaluate(partly, malignant=(), **SETTINGS)
    assert values["confidence_over_unseen"] == pytest.approx(change)
    without = {name: each._replace(groups=None) for name, each in known.items()}
    values = metrics.evaluate(without, malignant=(), **SETTINGS)
    # Now class 1 has the unseen entropies 0 and log 3, class 2 log 3, where forget has 0.
    expected = (np.log(3) / 2 + 2 * np.log(3) / 2 - np.log(3)) / 4
    assert values["entropy_over_unseen"] == pytest.approx(expected)
    only = {**known, "forget": answers([sure], [2], [2])}
    only["retain"] = answers([sure, sure, sure, sure], [0, 1, 1, 2], [3, 4, 1, 5])
    assert metrics.evaluate(only, malignant=(), **SETTINGS)["entropy_over_unseen"] is None


@pytest.mark.parametrize("malignant", [(), (1,), (0, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("attack", ["threshold", "svc"])
def test_values_are_json_and_follow_the_interface(malignant, attack):
    settings = {**SETTINGS, "attack": attack}
    entries = []
    for seed in range(3):
        values = metrics.evaluate(random_predictions(seed), malignant=malignant, **settings)
        retrained = metrics.evaluate(random_predictions(seed + 9), malignant=malignant, **settings)
        entries.append({"seed": seed, **metrics.compare(values, retrained)})
    for some in (entries, entries[:1]):
        json.dumps([entries, *metrics.summarise(some)], allow_nan=False)
    assert ("counts" in entries[0]) == ("fn_change" in entries[0]) == bool(malignant)
    if len(malignant) == 4:  # nothing benign
        assert entries[0]["specificity"] is None and entries[0]["auroc"] is None
        assert entries[0]["risk_benign"] == {"1:1": None, "20:1": None}
        assert entries[0]["risk_ratio"] == entries[0]["threshold"] == {"1:1": None, "20:1": None}


def test_no_malignant_test_example_leaves_rates_undefined():
    predictions = {**BY_HAND, "test": certain([0, 1, 0], [0, 0, 0])}
    values = metrics.evaluate(predictions, malignant=(1,), **SETTINGS)
    assert values["sensitivity"] is values["fnr"] is values["balanced_accuracy"] is None
    assert values["risk_malignant"]["20:1"] is values["risk_ratio"]["20:1"] is None
    assert values["risk"]["20:1"] == pytest.approx(1 / 3)
    mean, interval = metrics.summarise([metrics.compare(values, values)])
    assert mean["fnr"] is None and interval["fnr"] is None


# Class 2 is forgotten whole. Val: as BY_HAND's, and two images of class 2 that would change any
# threshold. Test: TEST, and three images of class 2, one of them known.
CLASSES_BY_HAND = {
    "forget": certain([2, 2, 0, 1], [2, 2, 2, 2], 3),  # 2 of 4 wrong
    "retain": certain([0] * 5 + [1] * 5, [0] * 4 + [1] * 6, 3),
    "val": certain([0, 1, 0, 1, 2, 2], [0, 2, 0, 1, 1, 2], 3),
    "test": certain(
        [1, 1, 2, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0], [1, 1, 2, 1, 1, 0, 0, 0, 0, 0, 0, 2, 2], 3
    ),
}


def test_a_class_request_is_judged_on_the_other_classes_by_hand():
    values = metrics.evaluate(CLASSES_BY_HAND, malignant=(1,), **SETTINGS)
    assert values["UA"] == pytest.approx(50) and values["RA"] == pytest.approx(90)
    assert values["TA"] == pytest.approx(70)  # 7 of 10; with class 2 it would be 8 of 13
    assert values["TA_forgotten"] == pytest.approx(100 / 3)
    # As in `test_by_hand`: "high is member", and 2 of 4 of forget are high.
    assert values["MIA"] == pytest.approx(50)
    assert values["n"] == {"forget": 4, "retain": 10, "val": 4, "test": 10, "test_forgotten": 3}
    assert values["counts"] == {"tp": 3, "fn": 1, "fp": 2, "tn": 4}
    assert values["fnr"] == pytest.approx(1 / 4) and values["fpr"] == pytest.approx(2 / 6)
    assert values["risk"] == pytest.approx({"1:1": 0.3, "20:1": 2.2})
    # Of val, without class 2: benign p 1/(2+e) twice, malignant e/(2+e) and 1/(2+e). At 1:1 one
    # missed lesion beats two false alarms; at 20:1 it does not.
    p_low, p_high = 1 / (2 + np.e), np.e / (2 + np.e)
    assert values["threshold"] == pytest.approx({"1:1": (p_low + p_high) / 2, "20:1": 0})
    assert values["risk_at_threshold"] == pytest.approx({"1:1": 0.3, "20:1": 0.6})
    _, interval = metrics.summarise([values])
    assert interval["TA"] == pytest.approx([39.68, 89.22], abs=0.01)  # 7/10
    assert interval["TA_forgotten"] == pytest.approx([6.15, 79.23], abs=0.01)  # 1/3
    assert interval["fnr"] == pytest.approx([0.0456, 0.6994], abs=1e-4)  # 1/4


@pytest.mark.parametrize(
    "attack, members", [("threshold", "all"), ("svc", "all"), ("svc", "first")]
)
def test_the_attack_on_a_class_request_learns_from_no_image_of_the_class(attack, members):
    rng = np.random.default_rng(0)

    def drawn(n, classes):
        labels = rng.choice(classes, n).astype(np.int32)
        return Predictions(rng.normal(size=(n, 4)).astype(np.float32), labels)

    sets = {"forget": drawn(30, [3]), "retain": drawn(90, [0, 1, 2]), "val": drawn(9, [0, 3])}
    sets["test"] = drawn(80, [0, 1, 2, 3])
    settings = {**SETTINGS, "attack": attack, "members": members}
    rows = sets["test"].labels != 3
    without = {**sets, "test": Predictions(sets["test"].logits[rows], sets["test"].labels[rows])}
    for given in (sets, without):
        values = metrics.evaluate(given, malignant=(), **settings)
        assert values["MIA"] == metrics.privacy.mia(
            sets["forget"], sets["retain"], without["test"], attack, members
        )
        if attack == "threshold":
            assert values["MIA_spread"] == metrics.privacy.mia_spread(
                sets["forget"], sets["retain"], without["test"], SETTINGS["seed"], members
            )
    assert values["TA_forgotten"] is None  # no test image of the class
    assert values["n"]["test_forgotten"] == 0


def test_a_request_that_leaves_a_class_of_retain_is_judged_on_all_of_test():
    sets = {**CLASSES_BY_HAND, "retain": certain([0, 1, 2], [0, 1, 2], 3)}
    values = metrics.evaluate(sets, malignant=(1,), **SETTINGS)
    assert values["TA"] == pytest.approx(100 * 8 / 13) and values["TA_forgotten"] is None
    assert values["n"] == {"forget": 4, "retain": 3, "val": 6, "test": 13}


@pytest.mark.parametrize("malignant, undefined", [((2,), "fnr"), ((0, 1), "fpr")])
def test_forgetting_every_malignant_or_every_benign_class_leaves_values_undefined(
    malignant, undefined
):
    values = metrics.evaluate(CLASSES_BY_HAND, malignant=malignant, **SETTINGS)
    json.dumps(values, allow_nan=False)
    assert values[undefined] is values["auroc"] is values["balanced_accuracy"] is None
    assert values["threshold"] == {"1:1": None, "20:1": None} == values["risk_ratio"]
    assert all(risk is not None for risk in values["risk"].values())


def test_val_may_hold_nothing_but_the_forgotten_class():
    sets = {**CLASSES_BY_HAND, "val": certain([0, 1], [2, 2], 3)}
    values = metrics.evaluate(sets, malignant=(1,), **SETTINGS)
    assert values["n"]["val"] == 0 and values["threshold"] == {"1:1": None, "20:1": None}
    assert values["TA"] == pytest.approx(70)


def test_a_test_set_of_nothing_but_forgotten_classes_is_a_users_error():
    sets = {**CLASSES_BY_HAND, "test": certain([0, 1], [2, 2], 3)}
    with pytest.raises(UserError, match="on test: all 2 are of forgotten classes; give some of"):
        metrics.evaluate(sets, malignant=(1,), **SETTINGS)


def test_costs_that_differ_have_names_that_differ():
    names = {
        (1, 1): "1:1",
        (20.0, 1.0): "20:1",
        (1000001.0, 1): "1000001:1",
        (1000002, 1.0): "1000002:1",
        (0.1, 1 / 3): "0.1:0.3333333333333333",
        (np.float64(2.5), 1e-7): "2.5:1e-07",
    }
    for costs, name in names.items():
        assert clinical.scenario_name(*costs) == name
        assert tuple(map(float, name.split(":"))) == tuple(map(float, costs))
    settings = {**SETTINGS, "scenarios": tuple(names)}
    values = metrics.evaluate(BY_HAND, malignant=(1,), **settings)
    assert list(values["risk"]) == list(names.values())
    assert values["risk"]["1000002:1"] - values["risk"]["1000001:1"] == pytest.approx(1 / 10)


def test_compare_by_hand():
    values = {"UA": 10.0, "RA": 99.0, "TA": 90.0, "MIA": 20.0, "counts": {"fn": 7, "fp": 3}}
    retrained = {"UA": 5.0, "RA": 100.0, "TA": 92.0, "MIA": 12.0, "counts": {"fn": 9, "fp": 1}}
    compared = metrics.compare(values, retrained)
    assert compared["gaps"] == {"UA": 5, "RA": 1, "TA": 2, "MIA": 8}
    assert compared["avg_gap"] == 4
    assert compared["fn_change"] == -2 and compared["fp_change"] == 2
    assert metrics.compare(retrained, retrained)["avg_gap"] == 0
    # Table 1 of Fan et al. 2024, CIFAR-10 at 10%: SalUn against Retrain has an average gap of 1.15.
    salun = {"UA": 2.85, "RA": 99.62, "TA": 93.93, "MIA": 14.39}
    table = {"UA": 5.24, "RA": 100.0, "TA": 94.26, "MIA": 12.88}
    assert metrics.compare(salun, table)["avg_gap"] == pytest.approx(1.15, abs=0.005)


def test_summarise_by_hand():
    entries = [{"UA": ua, "risk": {"1:1": ua / 10}, "seed": i} for i, ua in enumerate((1, 2, 3))]
    mean, interval = metrics.summarise(entries)
    assert mean == {"UA": 2, "risk": {"1:1": pytest.approx(0.2)}}
    # sd 1, standard error 1/√3, t with 2 degrees of freedom at 97.5% is 4.3027
    half = 4.30265 / 3**0.5
    assert interval["UA"] == pytest.approx([2 - half, 2 + half], rel=1e-4)
    assert interval["risk"]["1:1"] == pytest.approx([0.2 - half / 10, 0.2 + half / 10], rel=1e-4)


def test_one_seed_has_wilson_intervals():
    mean, interval = metrics.summarise([metrics.evaluate(BY_HAND, malignant=(1,), **SETTINGS)])
    assert mean["TA"] == pytest.approx(70) and mean["counts"]["fn"] == 1
    assert set(interval) == {
        *("UA", "RA", "TA", "TA_forgotten", "sensitivity", "specificity", "fnr", "fpr")
    }
    assert interval["TA_forgotten"] is None  # no class is forgotten
    # Wilson of 7/10 at z = 1.96: centre (0.7 + z²/20)/(1 + z²/10), half z/(1 + z²/10)·√(0.021 +
    # z²/400)
    assert interval["TA"] == pytest.approx([39.68, 89.22], abs=0.01)
    assert interval["fnr"] == pytest.approx([0.0456, 0.6994], abs=1e-4)  # 1/4


def test_probabilities_are_stable_and_in_float64():
    logits = np.array([[1000.0, 0.0], [-1000.0, -1000.0], [0.0, np.log(3)]], np.float32)
    p = probabilities(logits)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, [[1, 0], [0.5, 0.5], [0.25, 0.75]], rtol=1e-6)
    # In float32 both confidences would be 1; float64 keeps them apart.
    high, higher = confidence(
        Predictions(np.array([[20, 0], [21, 0]], np.float32), np.array([0, 0]))
    )
    assert high < higher < 1


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("test", {"logits": np.zeros((10, 2, 1))}, r"on test: logits of shape \[10, 2, 1\]"),
        ("val", {"labels": np.zeros(3, int)}, r"on val: .* labels of shape \[3\]; allowed"),
        ("forget", {"logits": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "N at least 1"),
        ("retain", {"logits": np.full((10, 2), np.nan)}, "on retain: logits are not finite"),
        ("retain", {"labels": np.arange(10)}, "labels run from 0 to 9; allowed: 0 to 1"),
    ],
)
def test_bad_predictions(name, change, message):
    predictions = {**BY_HAND, name: BY_HAND[name]._replace(**change)}
    with pytest.raises(UserError, match=message):
        metrics.evaluate(predictions, malignant=(1,), **SETTINGS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attack": "svm"}, "unknown attack 'svm': did you mean 'svc'? allowed: svc, threshold"),
        ({"malignant_rule": "max"}, "unknown malignant rule 'max': did you mean"),
    ],
)
def test_unknown_names(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        metrics.evaluate(BY_HAND, malignant=(1,), **{**SETTINGS, **change})


def test_the_rule_decides_what_is_called_malignant():
    # Classes 0 and 1 are malignant: 0.3 + 0.3 against 0.4 for the benign one.
    logits = np.log(np.array([[0.3, 0.3, 0.4], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]))
    assert clinical.called_malignant(logits, (0, 1), "argmax").tolist() == [False, True, False]
    assert clinical.called_malignant(logits, (0, 1), "sum").tolist() == [True, True, False]
