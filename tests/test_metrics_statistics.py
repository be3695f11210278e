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
    assert statistics.mcnemar(only_first, only_second) == pytest.approx(expected)
    assert statistics.mcnemar(only_second, only_first) == pytest.approx(expected)


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
    assert statistics.t_test([2, 2, 2]) is None
    with pytest.raises(ValueError, match="1 values; it needs at least 2"):
        statistics.t_test([1.0])
    rng = np.random.default_rng(0)
    for values in rng.normal(1, 1, size=(200, 4)):
        assert statistics.t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
        low, high = statistics.t_interval(values)
        assert (statistics.t_test(values) < 0.05) == (not low <= 0 <= high)
