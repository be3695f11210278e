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


def test_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.3, 1, 400)
    half = Z * stats.sem(difference)
    low, high = statistics.paired_bootstrap(difference, seed=1)
    assert low == pytest.approx(difference.mean() - half, abs=0.02)
    assert high == pytest.approx(difference.mean() + half, abs=0.02)
    assert (low, high) == statistics.paired_bootstrap(difference, seed=1)
    assert statistics.paired_bootstrap(np.full(9, 0.5), seed=0) == (0.5, 0.5)


def test_bootstrap_over_groups_is_wider_where_images_are_alike():
    rng = np.random.default_rng(0)
    difference, groups = np.repeat(rng.normal(size=50), 8), np.repeat(np.arange(50), 8)
    alone = np.diff(statistics.paired_bootstrap(difference, seed=0))
    grouped = np.diff(statistics.paired_bootstrap(difference, groups + 1000, seed=0))
    assert grouped / alone == pytest.approx(8**0.5, rel=0.1)
    # Groups of one image each are no groups.
    single = statistics.paired_bootstrap(difference, np.arange(400), seed=0)
    assert single == statistics.paired_bootstrap(difference, seed=0)


@pytest.mark.parametrize(
    "only_first, only_second, expected",
    [(0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (8, 3, 2 * (1 + 11 + 55 + 165) / 2048), (4, 4, 1)],
)
def test_mcnemar_by_hand(only_first, only_second, expected):
    assert statistics.mcnemar(only_first, only_second) == pytest.approx(expected)
    assert statistics.mcnemar(only_second, only_first) == pytest.approx(expected)
