"""How near an unlearned model is to retrained: accuracies and their gaps."""

from collections.abc import Mapping

import numpy as np

from jaxunlearn.metrics.predictions import Predictions

GAPS = ("UA", "RA", "TA", "MIA")


def is_correct(predictions: Predictions) -> np.ndarray:
    """Whether the largest logit is the label's, bool `[N]`; of equal ones the lower counts."""
    return predictions.logits.argmax(axis=1) == predictions.labels


def accuracies(forget: Predictions, retain: Predictions, test: Predictions) -> dict[str, float]:
    """UA, RA and TA in percent (Fan et al. 2024, https://arxiv.org/abs/2310.12508)."""
    return {
        # UA = 1 − acc(forget)
        "UA": 100 * float(np.mean(~is_correct(forget))),
        "RA": 100 * float(np.mean(is_correct(retain))),
        "TA": 100 * float(np.mean(is_correct(test))),
    }


def gaps(values: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, float]:
    """Absolute differences to retrained, for each of UA, RA, TA and MIA, in percentage points."""
    return {name: abs(values[name] - retrained[name]) for name in GAPS}
