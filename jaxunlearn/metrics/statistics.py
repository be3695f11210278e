"""Intervals and tests."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from jaxunlearn.keys import stage_rng

LEVEL = 0.95


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """95% interval of the proportion `successes / n`; None where n is 0.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if n == 0:
        return None
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of two or more values by Student's t; equal values: no width."""
    if len(values) < 2:
        raise ValueError(f"a t interval of {len(values)} values; it needs at least 2")
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def percent_change(
    values: Sequence[float], reference: Sequence[float], level: float = LEVEL
) -> tuple[float | None, tuple[float, float] | None]:
    """Change of the mean against a reference's mean in percent, and its interval over pairs.

    The ratio estimator of paired samples (Cochran 1977, Sampling Techniques, §6.3), which one pair
    with a reference near 0 does not blow up as it would a mean of ratios.

    Args:
      values: one a seed.
      reference: the reference's, by the same seeds.
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


def paired_bootstrap(
    difference: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    seed: int,
    repeats: int = 2000,
) -> tuple[float, float]:
    """95% percentile interval of the mean difference between two models on the same examples.

    Args:
      difference: per example, one model's value less the other's, `[N]`.
      groups: int `[N]`; where given, whole groups are drawn, for images of one patient are alike.
      seed: of the draws.
      repeats: number of draws.
    """
    groups = np.arange(len(difference)) if groups is None else groups
    _, where = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(where, weights=difference), np.bincount(where)
    rng = stage_rng("bootstrap", seed)
    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(repeats))
    means = [sums[draw].sum() / sizes[draw].sum() for draw in draws]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models err alike on the same examples; 1 where none differs.

    Args:
      only_first: examples that only the first model gets wrong.
      only_second: examples that only the second model gets wrong.

    McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    n = only_first + only_second
    return float(stats.binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def best_threshold(
    scores: np.ndarray, positive: np.ndarray, c_fn: float, c_fp: float
) -> tuple[float, float]:
    """The threshold t of least cost for the rule "positive when score ≥ t", and its cost in total.

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
