"""Intervals and tests."""

from collections.abc import Sequence

import numpy as np

# SciPy is imported where it is used: scipy.stats alone takes longer than all other imports here.

LEVEL = 0.95


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """95% interval of the proportion `successes / n`; None where n is 0.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if n == 0:
        return None
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of two or more values by Student's t; equal values: no width.

    Raises:
      ValueError: fewer than two values.
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"a t interval of {len(values)} values; it needs at least 2")
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def t_test(values: Sequence[float]) -> float | None:
    """Two-sided p-value that the mean of two or more values is 0, by Student's t.

    Student 1908, https://doi.org/10.1093/biomet/6.1.1. It is below 0.05 exactly where the 95%
    `t_interval` excludes 0. None where all values are equal: no spread is no evidence.

    Raises:
      ValueError: fewer than two values.
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"a t test of {len(values)} values; it needs at least 2")
    if min(values) == max(values):
        return None
    t = abs(float(np.mean(values))) / float(stats.sem(values))
    return float(2 * stats.t.sf(t, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given: Holm's step-down method.

    Holm 1979, https://www.jstor.org/stable/4615733. Rejecting where the corrected value is below
    5% wrongly rejects any true hypothesis with a probability of at most 5%, whatever the
    dependence between the tests.

    Args:
      p_values: one per hypothesis, 0 to 1.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    # p̃_(i) = max over j ≤ i of min(1, (m − j + 1) · p_(j))
    stepped = np.minimum(1.0, np.arange(len(p), 0, -1) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(stepped)
    return corrected.tolist()


def percent_change(
    values: Sequence[float], reference: Sequence[float], level: float = LEVEL
) -> tuple[float | None, tuple[float, float] | None]:
    """Change of the mean against a reference's mean in percent, and its interval over pairs.

    The ratio estimator of paired samples (Cochran 1977, Sampling Techniques, §6.3): a single pair
    whose reference is near 0 does not blow it up, as it would a mean of ratios.

    Args:
      values: one per seed.
      reference: the reference's, of the same seeds in the same order.
      level: of the interval.

    Returns:
      None for the change where the reference's mean is 0; None for the interval of one pair.
    """
    x, y = np.asarray(reference, float), np.asarray(values, float)
    if x.mean() == 0:
        return None, None
    # r = ȳ / x̄, with the standard error of (y − r·x) / x̄
    ratio = y.mean() / x.mean()
    change = 100 * float(ratio - 1)
    if len(x) < 2:
        return change, None
    low, high = t_interval(list(100 * (y - ratio * x) / x.mean()), level)
    return change, (change + low, change + high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models err equally often on the same examples.

    McNemar 1947, https://doi.org/10.1007/BF02295996. 1 where they err on the same ones.

    Args:
      only_first: examples that only the first model gets wrong.
      only_second: examples that only the second model gets wrong.
    """
    from scipy import stats

    n = only_first + only_second
    return float(stats.binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def best_threshold(
    scores: np.ndarray, positive: np.ndarray, c_fn: float, c_fp: float
) -> tuple[float, float]:
    """The threshold t of least total cost for the rule "positive when score ≥ t", and that cost.

    Every cut is tried: thresholds lie midway between neighbouring scores, at −∞ (all positive) and
    at ∞ (none). Of equal costs the lowest threshold is taken, which calls the most examples
    positive.

    Args:
      scores: float `[N]`.
      positive: the truth, bool `[N]`.
      c_fn: cost of a positive called negative.
      c_fp: cost of a negative called positive.
    """
    values, where = np.unique(scores, return_inverse=True)
    positives = np.bincount(where, weights=positive)
    negatives = np.bincount(where, weights=~positive)
    # cost of cut i = C_FN · positives below it + C_FP · negatives at or above it
    costs = c_fn * np.insert(positives.cumsum(), 0, 0)
    costs += c_fp * np.append(negatives[::-1].cumsum()[::-1], 0)
    best = int(costs.argmin())
    # The middle of two neighbouring floats may round down to the lower one, which must stay below.
    middles = np.maximum((values[:-1] + values[1:]) / 2, np.nextafter(values[:-1], np.inf))
    thresholds = np.concatenate([[-np.inf], middles, [np.inf]])
    return float(thresholds[best]), float(costs[best])
