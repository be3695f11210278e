"""Predictions, which every metric is a function of."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.errors import UserError


class Predictions(NamedTuple):
    """One model's answers on one set.

    Attributes:
      logits: float32 `[N, num_classes]`.
      labels: int32 `[N]`.
      groups: patient or lesion ids, int32 `[N]`, or None.
    """

    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None


def check(name: str, predictions: Predictions) -> Predictions:
    """Returns the predictions on the set `name`, or raises `UserError` if they do not fit."""
    logits, labels = predictions.logits, predictions.labels
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise UserError(
            f"predictions on {name}: logits of shape {list(logits.shape)} and labels of shape "
            f"{list(labels.shape)}; allowed: [N, num_classes] and [N] with N at least 1"
        )
    if not np.isfinite(logits).all():
        raise UserError(f"predictions on {name}: logits are not finite; lower the learning rate")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(
            f"predictions on {name}: labels run from {labels.min()} to {labels.max()}; "
            f"allowed: 0 to {logits.shape[1] - 1}"
        )
    return predictions


def apart(predictions: Predictions, classes: Iterable[int]) -> tuple[Predictions, Predictions]:
    """The predictions on examples of all other classes, and those on examples of `classes`."""
    chosen = np.isin(predictions.labels, list(classes))
    return _rows(predictions, ~chosen), _rows(predictions, chosen)


def unseen(others: Sequence[Predictions], train: Sequence[Predictions]) -> Predictions:
    """The predictions on all examples of other sets that are not known to be of a group of train.

    Of a set without groups that is all of it; the groups are given where all have them.
    """
    known = [ids for each in train for ids in ([] if each.groups is None else each.groups)]
    kept = [
        each if each.groups is None else _rows(each, ~np.isin(each.groups, known))
        for each in others
    ]
    groups = [each.groups for each in kept if each.groups is not None]
    return Predictions(
        np.concatenate([each.logits for each in kept]),
        np.concatenate([each.labels for each in kept]),
        np.concatenate(groups) if len(groups) == len(kept) else None,
    )


def _rows(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions on some of the examples."""
    logits, labels, groups = predictions
    return Predictions(logits[rows], labels[rows], None if groups is None else groups[rows])


def changed(before: Predictions, after: Predictions) -> np.ndarray:
    """Positions int `[M]` of the examples that a model answers otherwise than one before it."""
    return np.flatnonzero(before.logits.argmax(axis=1) != after.logits.argmax(axis=1))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits `[N, num_classes]`: float64 `[N, num_classes]`, stable for large logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def entropy(predictions: Predictions) -> np.ndarray:
    """H = −Σ_c p_c log p_c of each example's probabilities, in nats: float64 `[N]`."""
    from scipy import special

    return special.entr(probabilities(predictions.logits)).sum(axis=1)


def confidence(predictions: Predictions) -> np.ndarray:
    """p_y, the probability of each example's own label: float64 `[N]`."""
    return probabilities(predictions.logits)[np.arange(len(predictions.labels)), predictions.labels]
