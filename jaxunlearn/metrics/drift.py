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

    Both answer the same images, so each interval is of paired differences: by Student's t, and of
    the risk by the ratio estimator of `statistics.percent_change`.

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
    values: Values = {"TA_lost": 100 * float(lost.mean())}
    intervals: Values = {"TA_lost": _interval(lost)}
    if not malignant:
        return values, intervals
    truth = np.isin(test.labels, malignant)
    called, before = (
        clinical.called_malignant(each.logits, malignant, malignant_rule)
        for each in (test, original)
    )
    # FNR rise = mean over malignant images of (model misses) − (original misses)
    missed = before[truth].astype(float) - called[truth]
    values["fnr_rise"] = 100 * float(missed.mean()) if len(missed) else None
    intervals["fnr_rise"] = _interval(missed)
    values["risk_rise"], intervals["risk_rise"] = {}, {}
    for costs in scenarios:
        # Risk rise = (mean cost) / (the original's mean cost) − 1
        change, interval = statistics.percent_change(
            clinical.costs(called, truth, *costs).tolist(),
            clinical.costs(before, truth, *costs).tolist(),
        )
        name = clinical.scenario_name(*costs)
        values["risk_rise"][name] = change
        intervals["risk_rise"][name] = None if interval is None else list(interval)
    return values, intervals


def _interval(differences: np.ndarray) -> list[float] | None:
    """The t interval of differences from −1 to 1, in percentage points."""
    if len(differences) < 2:
        return None
    return [100 * bound for bound in statistics.t_interval(differences.tolist())]


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
