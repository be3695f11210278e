import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.svm import SVC

from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng
from jaxunlearn.metrics import Predictions, privacy
from jaxunlearn.metrics.predictions import confidence


def predictions(seed, n, shift=0.0):
    """Binary predictions, the surer the greater the shift."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    logits = rng.normal(size=(n, 2)).astype(np.float32)
    logits[np.arange(n), labels] += shift
    return Predictions(logits, labels)


def own_confidence(predicted):
    """p_y of two classes, as a logistic function."""
    logits, labels = predicted.logits.astype(np.float64), predicted.labels
    own, other = logits[np.arange(len(labels)), labels], logits[np.arange(len(labels)), 1 - labels]
    return 1 / (1 + np.exp(other - own))


@pytest.mark.parametrize("retain, test", [(300, 120), (80, 120)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_svc_by_the_first_members_is_the_published_attack(retain, test, shift):
    """Written out again: as many of retain as of test, the first of each, all alike."""
    sets = predictions(1, 60), predictions(2, retain, shift), predictions(3, test)
    p_forget, p_retain, p_test = (own_confidence(one) for one in sets)
    members, p_test = p_retain[: min(retain, test)], p_test[: min(retain, test)]
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(np.append(members, p_test).reshape(-1, 1), [1] * len(members) + [0] * len(p_test))
    expected = 100 * (1 - attack.predict(p_forget.reshape(-1, 1)).mean())
    assert privacy.mia(*sets, "svc", "first") == pytest.approx(expected)


@pytest.mark.parametrize("attack", privacy.ATTACKS)
def test_all_members_count_as_much_as_all_non_members(attack):
    """Weighing 100 against 300 is the same as three copies of the 100."""
    forget, few, many = predictions(1, 200, 0.3), predictions(2, 100, 0.6), predictions(3, 300)
    thrice = Predictions(np.tile(few.logits, (3, 1)), np.tile(few.labels, 3))
    if attack == "threshold":
        for a, b in ((few, many), (many, few)):
            x, y = (thrice if one is few else one for one in (a, b))
            assert privacy.mia(forget, a, b, attack) == privacy.mia(forget, x, y, attack, "first")
    else:  # three copies weigh three times as much against the margin: C is a third for one
        members, others, targets = (own_confidence(one) for one in (few, many, forget))
        reference = SVC(C=1, gamma="auto", kernel="rbf")
        x = np.concatenate([np.tile(members, 3), others])[:, None]
        reference.fit(x, np.repeat([1, 0], 300))
        expected = 100 * np.mean(reference.predict(targets[:, None]) == 0)
        assert privacy.mia(forget, few, many, attack) == pytest.approx(expected, abs=1)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.booleans(),
)
def test_threshold_is_the_best_of_all(members, nonmembers, balanced):
    members, nonmembers = np.array(members) / 6, np.array(nonmembers) / 6
    scores = np.concatenate([members, nonmembers])
    truth = np.repeat([True, False], [len(members), len(nonmembers)])
    # Every threshold between the possible scores, both directions; the first of the best is what
    # ties go to.
    cuts = np.arange(-1, 14, 2) / 12
    rules = [scores >= cut for cut in cuts] + [scores <= cut for cut in cuts[::-1]]
    # Balanced: each side counts as much as the other, in whole numbers.
    weights = np.where(truth, len(nonmembers), len(members)) if balanced else np.ones(len(truth))
    best = max(rules, key=lambda rule: np.sum(weights * (rule == truth)))
    called = privacy.threshold(members, nonmembers, scores, balanced=balanced)
    assert np.array_equal(called, best)


def test_threshold_by_hand():
    members, nonmembers = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.4, 0.85])
    # "≥ 0.55" is right 3 + 3 times; 0.56 and 1 are called members
    targets = np.array([0.0, 0.54, 0.56, 1.0])
    assert privacy.threshold(members, nonmembers, targets).tolist() == [False, False, True, True]
    # the other direction, with the roles exchanged
    assert privacy.threshold(nonmembers, members, targets).tolist() == [True, True, False, False]


def test_ties_never_count_as_forgotten():
    level = np.full(5, 0.5)
    targets = np.array([0.0, 0.5, 1.0])
    assert privacy.threshold(level, level, targets).all()
    # two neighbouring floats: the cut between them must part them
    low, high = np.array([1 - 2**-52]), np.array([1 - 2**-53])
    assert privacy.threshold(high, low, np.concatenate([low, high])).tolist() == [False, True]


@pytest.mark.parametrize("attack", privacy.ATTACKS)
def test_remembered_and_forgotten(attack):
    known, unknown = predictions(1, 500, 8.0), predictions(2, 400)
    assert privacy.mia(predictions(3, 200, 8.0), known, unknown, attack) < 5
    assert privacy.mia(predictions(3, 200, -8.0), known, unknown, attack) == 100


def test_the_attacks_agree_where_confidences_are_spread_and_not_where_they_crowd():
    known, unknown, forget = predictions(1, 900, 2.0), predictions(2, 900), predictions(3, 900, 1.0)
    threshold, svc = (privacy.mia(forget, known, unknown, one) for one in ("threshold", "svc"))
    assert threshold == pytest.approx(svc, abs=5)
    # Above 0.9999 all of them, and yet a threshold parts them.
    known, unknown, forget = (
        predictions(1, 900, 30),
        predictions(2, 900, 20),
        predictions(3, 900, 20),
    )
    assert privacy.mia(forget, known, unknown, "threshold") > 95
    assert privacy.mia(forget, known, unknown, "svc") < 50


def test_nothing_is_drawn_and_the_spread_over_resamples_is_told():
    sets = predictions(1, 97), predictions(2, 5000, 0.5), predictions(3, 60)
    assert privacy.mia(*sets, "threshold") == privacy.mia(*sets, "threshold")
    spreads = [privacy.mia_spread(*sets, seed) for seed in (0, 0, 1)]
    assert spreads[0] == spreads[1] != spreads[2]
    assert spreads[0] == pytest.approx(spreads[2], rel=0.5)
    # Where members and non-members are far apart, every resample ends in nearly the same threshold.
    clear = predictions(1, 97), predictions(2, 5000, 30), predictions(3, 6000, -30)
    assert privacy.mia_spread(*clear, 0) < 1 < spreads[0]


def test_the_spread_resamples_members_and_non_members():
    few = predictions(1, 97), predictions(2, 40, 0.5), predictions(3, 60)
    target, known, unknown = map(confidence, few)
    rng = stage_rng("mia spread", 0)
    values = [
        100 * np.mean(~privacy.threshold(rng.choice(known, 40), rng.choice(unknown, 60), target))
        for _ in range(100)
    ]
    assert privacy.mia_spread(*few, 0) == pytest.approx(np.std(values, ddof=1))


def test_unknown_members_are_a_users_error():
    with pytest.raises(UserError, match="unknown members 'al': did you mean 'all'"):
        privacy.mia(*[predictions(1, 9)] * 3, "svc", "al")
