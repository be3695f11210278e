"""How close an unlearned model is to retrained: accuracies and their gaps."""

from collections.abc import Callable, Iterable, Mapping
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


def over_unseen(
    forget: Predictions, unseen: Predictions, value: Callable[[Predictions], np.ndarray]
) -> float | None:
    """How much higher a value is on forget than on unseen examples of the same classes.

    What a model does on examples that it never saw is what retraining would make of forget, if both
    are drawn alike; it needs no retrained model.

    Args:
      forget: predictions on the examples to forget.
      unseen: on examples that no model was trained on.
      value: of each example, float `[N]`.

    Returns:
      The difference of the classes' means, weighted by forget's examples of each; None where no
      class of forget has an unseen example.
    """
    classes, counts = np.unique(forget.labels, return_counts=True)
    here, there = value(forget), value(unseen)
    # Σ_c n_c (mean of c in forget − mean of c in unseen) / Σ_c n_c
    pairs = [
        (count, here[forget.labels == label].mean() - there[unseen.labels == label].mean())
        for label, count in zip(classes, counts, strict=True)
        if (unseen.labels == label).any()
    ]
    if not pairs:
        return None
    weights, differences = zip(*pairs, strict=True)
    return float(np.average(differences, weights=weights))


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
