import itertools

import numpy as np
import pytest
from scipy import stats

from jaxunlearn.metrics import statistics

Z = 1.959963984540054


@pytest.mark.parametrize("n", [1, 10, 156])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_wilson_by_its_formula(n, share):
    successes = round(share * n)
    p = successes / n
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    expected = (p + Z**2 / (2 * n) + np.array([-half, half])) / (1 + Z**2 / n)
    assert statistics.wilson(successes, n) == pytest.approx(tuple(expected), abs=1e-9)


def test_wilson_of_nothing():
    assert statistics.wilson(0, 0) is None


def test_t_interval():
    # mean 2, sd 1; t with 2 degrees of freedom at 97.5% is 4.3027
    low, high = statistics.t_interval([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert statistics.t_interval([4.0, 4.0]) == (4.0, 4.0)
    with pytest.raises(ValueError, match="1 values; it needs at least 2"):
        statistics.t_interval([1.0])


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(7, 3, size=(1000, 5))
    covered = [low <= 7 <= high for low, high in map(statistics.t_interval, draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(
    "only_first, only_second, expected",
    [(0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (8, 3, 2 * (1 + 11 + 55 + 165) / 2048), (4, 4, 1)],
)
def test_mcnemar_by_hand(only_first, only_second, expected):
    differences = np.repeat([1, -1, 0], [only_first, only_second, 9])
    assert statistics.mcnemar(differences) == pytest.approx(expected)
    assert statistics.mcnemar(-differences) == pytest.approx(expected)
    # groups of one are as none
    groups = np.random.default_rng(0).permutation(len(differences))
    assert statistics.mcnemar(differences, groups) == pytest.approx(expected)


def test_mcnemar_by_group_tosses_one_coin_for_each():
    differences, groups = np.array([1, 1, 1, -1, 1, 0, -1]), np.array([5, 5, 5, 7, 7, 7, 2])
    # Sums 3, 0 and −1: of the four outcomes ±3 ± 1 all are as far from 0 as 2, or farther.
    assert statistics.mcnemar(differences, groups) == pytest.approx(1)
    # Sums 3, 2 and 1: only ±6 of the eight.
    differences, groups = np.ones(6, int), np.array([0, 0, 0, 1, 1, 2])
    assert statistics.mcnemar(differences, groups) == pytest.approx(2 / 8)
    assert statistics.mcnemar(differences) == pytest.approx(2 / 64)
    rng = np.random.default_rng(0)
    sums = rng.integers(-4, 5, 12)
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    expected = np.mean(np.abs(signs @ np.abs(sums)) >= abs(sums.sum()))
    each = np.concatenate([np.full(abs(s), np.sign(s)) for s in sums])
    groups = np.repeat(np.arange(12), np.abs(sums))
    assert statistics.mcnemar(each, groups) == pytest.approx(expected)


def test_an_interval_of_groups_covers_where_one_of_their_images_does_not():
    values = np.random.default_rng(0).normal(size=7)
    assert statistics.grouped_t_interval(values) == pytest.approx(statistics.t_interval(values))
    apart = statistics.grouped_t_interval(values, np.arange(7))
    assert apart == pytest.approx(statistics.t_interval(values))
    assert statistics.grouped_t_interval(values, np.zeros(7)) is None
    # Images that repeat their patient's value say no more than one of them: sizes alike, it is the
    # interval of the patients.
    groups = np.repeat(np.arange(7), 5)
    repeated = statistics.grouped_t_interval(np.repeat(values, 5), groups)
    assert repeated == pytest.approx(statistics.t_interval(values))
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, 40)
    groups, covered = np.repeat(np.arange(40), sizes), []
    for _ in range(600):
        drawn = np.repeat(rng.normal(size=40), sizes) + rng.normal(size=len(groups)) / 2
        both = (statistics.grouped_t_interval(drawn, each) for each in (groups, None))
        covered.append([low <= 0 <= high for low, high in both])
    by_group, by_image = np.mean(covered, axis=0)
    assert 0.91 < by_group < 0.98 and by_image < 0.75


def test_a_change_in_percent_is_reliable_where_its_differences_are():
    rng = np.random.default_rng(0)
    for spread in (0.2, 1.0):
        wrong = 0
        for before, after in rng.lognormal(sigma=spread, size=(2000, 2, 3)):
            change, (low, high) = statistics.percent_change(after, before)
            assert (low + high) / 2 == pytest.approx(change)
            t_low, t_high = statistics.t_interval(after - before)
            assert (low > 0, high < 0) == (t_low > 0, t_high < 0)
            wrong += high < 0
        assert wrong / 2000 < 0.035  # of 2.5%
    # Small values against few and large ones are no evidence, however alike they are.
    _, (low, high) = statistics.percent_change([1, 1, 1], [2, 10, 20])
    assert low < 0 < high


@pytest.mark.parametrize(
    "p_values, expected",
    [
        # sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and no less than that
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # times 3, 2, 1: 0.03, 0.03 and 0.02, which may not fall below what precedes it
        ([0.02, 0.01, 0.015], [0.03, 0.03, 0.03]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.04, 0.04], [0.08, 0.08]),
        ([0.03], [0.03]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    assert statistics.holm(p_values) == pytest.approx(expected)


def test_holm_wrongly_rejects_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    rejects = [min(statistics.holm(p)) < 0.05 for p in rng.random((2000, 6))]
    assert 0.03 <= np.mean(rejects) <= 0.07
    assert np.mean([min(p) < 0.05 for p in rng.random((2000, 6))]) > 0.2


def test_t_test():
    # mean 3, standard error 1/√3: with 2 degrees of freedom p = 1 − t/√(2 + t²) at t = 3√3
    assert statistics.t_test([2, 3, 4]) == pytest.approx(1 - 27**0.5 / 29**0.5)
    assert statistics.t_test([-4, -3, -2]) == statistics.t_test([2, 3, 4])
    assert statistics.t_test([1, -1]) == pytest.approx(1)
    for values in ([1.0], [2, 2, 2]):
        with pytest.raises(ValueError, match="1 different values; it needs at least 2"):
            statistics.t_test(values)
    rng = np.random.default_rng(0)
    for values in rng.normal(1, 1, size=(200, 4)):
        assert statistics.t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
        low, high = statistics.t_interval(values)
        assert (statistics.t_test(values) < 0.05) == (not low <= 0 <= high)
