"""Drift: what a model has lost against the original, after one request or a sequence of them."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxunlearn.metrics import clinical, statistics
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.metrics.unlearning import is_correct

Values = dict[str, Any]


def drift(
    test: Predictions,
    original: Predictions,
    *,
    malignant: tuple[int, ...],
    scenarios: tuple[tuple[float, float], ...],
    malignant_rule: str,
) -> tuple[Values, Values]:
    """What a model has lost against the original, and its 95% intervals over test images.

    Both answer the same images, so each interval is of paired differences, by Student's t; images
    of one patient or lesion count as one where groups are known.

    Args:
      test: the model's predictions on test.
      original: the original's.
      malignant: labels of the malignant classes; if empty, only accuracy is compared.
      scenarios: pairs of costs (C_FN, C_FP).
      malignant_rule: a name in `clinical.MALIGNANT_RULES`.

    Returns:
      The values and their intervals, under the same keys: `TA_lost` in percentage points,
      `fnr_rise` in percentage points of the malignant images, `risk_rise` by scenario in % of the
      original's risk. None where undefined, as an interval of a single image is.
    """
    # TA lost = mean over images of (original right) − (model right)
    lost = is_correct(original).astype(float) - is_correct(test)
    found = {"TA_lost": _percent(lost, test.groups)}
    if malignant:
        truth = np.isin(test.labels, malignant)
        called, before = (
            clinical.called_malignant(each.logits, malignant, malignant_rule)
            for each in (test, original)
        )
        # FNR rise = mean over malignant images of (model misses) − (original misses)
        missed = before[truth].astype(float) - called[truth]
        ill = None if test.groups is None else test.groups[truth]
        found["fnr_rise"] = _percent(missed, ill)
    values: Values = {key: value for key, (value, _) in found.items()}
    intervals: Values = {key: interval for key, (_, interval) in found.items()}
    if not malignant:
        return values, intervals
    values["risk_rise"], intervals["risk_rise"] = {}, {}
    for costs in scenarios:
        # Risk rise = mean over images of (cost − the original's cost) / (the original's mean cost)
        was = clinical.costs(before, truth, *costs)
        rise = clinical.costs(called, truth, *costs) - was
        value, interval = _percent(rise / was.mean(), test.groups) if was.any() else (None, None)
        name = clinical.scenario_name(*costs)
        values["risk_rise"][name], intervals["risk_rise"][name] = value, interval
    return values, intervals


def _percent(
    differences: np.ndarray, groups: np.ndarray | None
) -> tuple[float | None, list[float] | None]:
    """The mean of paired differences and its interval, in percent; None where undefined."""
    if not len(differences):
        return None, None
    interval = statistics.grouped_t_interval(differences, groups)
    bounds = None if interval is None else [100 * bound for bound in interval]
    return 100 * float(differences.mean()), bounds


def moved(params: Iterable[np.ndarray], original: Iterable[np.ndarray]) -> float | None:
    """How far parameters are from the original's, in % of the norm of these; None where that is 0.

    Args:
      params: the arrays.
      original: the original's, in the same order.
    """
    # ‖θ − θ₀‖₂ / ‖θ₀‖₂
    apart, norm = 0.0, 0.0
    for new, old in zip(params, original, strict=True):
        old = np.asarray(old, np.float64)
        apart += float(np.sum(np.square(np.asarray(new, np.float64) - old)))
        norm += float(np.sum(np.square(old)))
    return 100 * math.sqrt(apart / norm) if norm else None
