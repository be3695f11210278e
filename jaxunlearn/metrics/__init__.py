"""Metrics: pure numpy functions of predictions. They know no model and no file.

A model's predictions are a dict of `Predictions` by set: "forget", "retain", "val" and "test".
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn.metrics import clinical, privacy, statistics, unlearning
from jaxunlearn.metrics.predictions import Predictions, check

__all__ = [
    "Predictions",
    "clinical",
    "compare",
    "evaluate",
    "privacy",
    "statistics",
    "summarise",
    "unlearning",
]

# A mean of these over seeds says nothing.
NOT_AVERAGED = ("seed", "p_value")


def evaluate(
    predictions: dict[str, Predictions],
    *,
    malignant: tuple[int, ...],
    scenarios: tuple[tuple[float, float], ...],
    attack: str,
    members: str,
    malignant_rule: str,
    seed: int,
) -> dict[str, Any]:
    """A model's values that need no other model. What is undefined is None, for JSON's sake.

    Args:
      predictions: by set: forget, retain, val, test.
      malignant: labels of the malignant classes; where empty, the clinical values are left out.
      scenarios: pairs of costs (C_FN, C_FP).
      attack: a name in `privacy.ATTACKS`.
      members: a name in `privacy.MEMBERS`.
      malignant_rule: a name in `clinical.MALIGNANT_RULES`.
      seed: draws the resamples that `MIA_spread` is computed over.

    Returns:
      UA, RA, TA and MIA in percent, `MIA_spread` by the threshold (`privacy.mia_spread`), `n`
      (sizes of the sets) and, on test, confusion counts, rates as fractions and risks in cost per
      example by scenario.

    Raises:
      UserError: predictions of wrong shape or not finite, or an unknown name.
    """
    forget, retain, val, test = (
        check(name, predictions[name]) for name in ("forget", "retain", "val", "test")
    )
    values: dict[str, Any] = unlearning.accuracies(forget, retain, test)
    values["MIA"] = privacy.mia(forget, retain, test, attack, members)
    if attack == "threshold":
        values["MIA_spread"] = privacy.mia_spread(forget, retain, test, seed)
    values["n"] = {
        "forget": len(forget.labels),
        "retain": len(retain.labels),
        "test": len(test.labels),
    }
    if malignant:
        values |= clinical.evaluate(val, test, malignant, scenarios, malignant_rule)
    return values


def compare(values: dict[str, Any], retrained: dict[str, Any]) -> dict[str, Any]:
    """Adds the differences to retrained: `gaps`, `avg_gap`; clinical: `fn_change`, `fp_change`."""
    gaps = unlearning.gaps(values, retrained)
    # Avg Gap = mean over UA, RA, TA, MIA of |value − retrained's value|
    values = {**values, "gaps": gaps, "avg_gap": sum(gaps.values()) / len(gaps)}
    if "counts" in values:
        for name in ("fn", "fp"):
            values[f"{name}_change"] = values["counts"][name] - retrained["counts"][name]
    return values


def summarise(per_seed: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and 95% interval `[low, high]` of every value over seeds, nested as the values are.

    Several seeds: t intervals over seeds. One seed: Wilson intervals of the accuracies (UA, RA, TA)
    and of the rates (sensitivity, specificity, fnr, fpr) over examples, for spread over seeds is
    unknown. A value that is None for any seed has None for both.
    """
    mean = _merge(per_seed, lambda values: float(np.mean(values)))
    if len(per_seed) > 1:
        return mean, _merge(per_seed, lambda values: list(statistics.t_interval(values)))
    return mean, _wilson_intervals(per_seed[0])


def _merge(per_seed: list[dict[str, Any]], reduce: Callable[[list[float]], Any]) -> dict[str, Any]:
    """One dict of the seeds' dicts: `reduce` of each numeric leaf."""
    merged: dict[str, Any] = {}
    for name, first in per_seed[0].items():
        values = [entry[name] for entry in per_seed]
        if isinstance(first, dict):
            merged[name] = _merge(values, reduce)
        elif any(value is None for value in values):
            merged[name] = None
        elif isinstance(first, int | float) and name not in NOT_AVERAGED:
            merged[name] = reduce(values)
    return merged


def _wilson_intervals(values: dict[str, Any]) -> dict[str, Any]:
    """Wilson intervals of one seed's proportions."""
    intervals: dict[str, Any] = {}
    for name, over in (("UA", "forget"), ("RA", "retain"), ("TA", "test")):
        n = values["n"][over]
        interval = statistics.wilson(round(values[name] / 100 * n), n)
        intervals[name] = interval and [100 * bound for bound in interval]
    counts = values.get("counts", {})
    for name, part, rest in (
        ("sensitivity", "tp", "fn"),
        ("specificity", "tn", "fp"),
        ("fnr", "fn", "tp"),
        ("fpr", "fp", "tn"),
    ):
        if counts:
            interval = statistics.wilson(counts[part], counts[part] + counts[rest])
            intervals[name] = interval and list(interval)
    return intervals
