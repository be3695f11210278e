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


def grouped_t_interval(
    values: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, float] | None:
    """95% interval of the mean of values that are alike within groups; None where there is one.

    Linearised variance of a ratio of group totals (Cochran 1977, Sampling Techniques, §9.4), by
    Student's t over groups. Without groups, each value stands for itself: `t_interval`.

    Args:
      values: float `[N]`.
      groups: ids `[N]`, such as of patients; None: none.
    """
    mean, (sums, sizes) = values.mean(), _by_group(values, groups)
    if len(sums) < 2:
        return None
    # mean + (S_g − n_g · mean) · G / N: their mean is the mean, their spread that over groups
    low, high = t_interval((mean + (sums - sizes * mean) * len(sums) / len(values)).tolist())
    return low, high


def _by_group(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The groups' sums and sizes."""
    if groups is None:
        return values, np.ones(len(values))
    _, where, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.bincount(where, weights=values), sizes


def t_test(values: Sequence[float]) -> float:
    """Two-sided p-value that the mean of two or more values is 0, by Student's t.

    Student 1908, https://doi.org/10.1093/biomet/6.1.1. It is below 0.05 exactly where the 95%
    `t_interval` excludes 0.

    Raises:
      ValueError: fewer than two values, or all are equal, which leaves no spread to judge by.
    """
    from scipy import stats

    if len(set(values)) < 2:
        raise ValueError(f"a t test of {len(set(values))} different values; it needs at least 2")
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

    The interval is that of the paired differences by Student's t, in units of the reference's mean:
    it excludes 0 exactly where that does. The ratio estimator's own interval (Cochran 1977,
    Sampling Techniques, §6.3) does not: it leaves out the reference's spread where the values are
    small, so that with three seeds it takes chance for a fall too often.

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
    # (ȳ − x̄) / x̄: a single pair whose reference is near 0 does not blow it up, as it would a mean
    # of ratios
    changes = 100 * (y - x) / x.mean()
    interval = t_interval(changes.tolist(), level) if len(x) > 1 else None
    return float(changes.mean()), interval


def mcnemar(differences: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Exact two-sided p-value that two models err equally often on the same examples.

    McNemar 1947, https://doi.org/10.1007/BF02295996: where one of them errs alone, which one it is
    would be the toss of a coin. Examples of a group are not independent: that is one toss, for the
    sum of their differences (Fisher's randomization test of paired differences: The Design of
    Experiments, 1935, §21). 1 where both err on the same examples.

    Args:
      differences: of each example int `[N]`: 1 where only the first model errs, −1 where only the
        second does, else 0.
      groups: ids `[N]`, such as of patients; None: each example by itself.
    """
    from scipy import stats

    sums, _ = _by_group(differences, groups)
    sizes = np.abs(sums[sums != 0]).astype(int)
    apart, total = abs(int(sums.sum())), int(sizes.sum())
    if total == len(sizes):  # coins of one
        return float(stats.binomtest((total - apart) // 2, total, 0.5).pvalue) if total else 1.0
    # P(|Σ_g ±|S_g|| ≥ |Σ_g S_g|), by the chances of each sum of those that fall on plus
    chances = np.ones(1)
    for size in sizes:
        chances = (np.pad(chances, (0, size)) + np.pad(chances, (size, 0))) / 2
    return float(chances[np.abs(2 * np.arange(total + 1) - total) >= apart].sum())


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
    # The first of those that are equal but for rounding.
    best = int(np.argmax(costs <= costs.min() + 1e-9 * (c_fn + c_fp)))
    # The middle of two neighbouring floats may round down to the lower one, which must stay below.
    middles = np.maximum((values[:-1] + values[1:]) / 2, np.nextafter(values[:-1], np.inf))
    thresholds = np.concatenate([[-np.inf], middles, [np.inf]])
    return float(thresholds[best]), float(costs[best])
