"""How close an unlearned model is to retrained: accuracies and their gaps."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxunlearn.metrics.predictions import Predictions

# Avg Gap is the mean of the gaps of these (Fan et al. 2024, https://arxiv.org/abs/2310.12508).
AVG_GAP = ("UA", "RA", "TA", "MIA")


def forgotten_classes(forget: np.ndarray, retain: np.ndarray) -> tuple[int, ...]:
    """The classes that a request takes whole: labels that forget has and retain has not, sorted.

    Args:
      forget: labels of the forget set, int `[n_f]`.
      retain: labels of the retain set, int `[n_r]`.
    """
    return tuple(np.setdiff1d(forget, retain).tolist())


def is_correct(predictions: Predictions) -> np.ndarray:
    """Whether the largest logit is the label's, bool `[N]`; of equal ones the lower counts."""
    return predictions.logits.argmax(axis=1) == predictions.labels


def accuracy(predictions: Predictions) -> float:
    """Share of examples whose largest logit is the label's, in percent."""
    return 100 * float(np.mean(is_correct(predictions)))


def error(predictions: Predictions) -> float:
    """Share of examples whose largest logit is another class's, in percent."""
    return 100 * float(np.mean(~is_correct(predictions)))


def gaps(
    values: Mapping[str, Any], retrained: Mapping[str, Any], names: Iterable[str] = AVG_GAP
) -> dict[str, Any]:
    """Absolute differences from retrained's values, in their units; None where one is undefined."""
    return {
        name: None
        if values[name] is None or retrained[name] is None
        else abs(values[name] - retrained[name])
        for name in names
    }
