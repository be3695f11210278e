"""Saliency masks: any method, held to the weights with the largest forget-set gradient.

Fan et al. 2024, https://arxiv.org/abs/2310.12508 (SalUn). The code published with it first masked
the gradient before the optimizer, so that weight decay and momentum still moved the frozen weights
(`mask.compat`); here, and there since February 2026, a frozen weight stays bit-identical.

The mask is the last link, so what a method computes of all weights together counts the frozen ones
too: the norm that gradient_ascent, sfron and munba clip (not under `compat`, where the mask comes
first), munba's unit norms and salun_soft's quantile.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Unread
from jaxunlearn.training.links import keep, only_marked
from jaxunlearn.training.passes import Action, Batch, Conversation, Pass, Replace, Variables

DEFAULTS = {
    "ratio": 1.0,  # share of the weights that may change; 1: all of them, without a mask
    "scope": "global",  # one threshold over all weights, or "per_layer": the ratio in every array
    "augment": False,  # True: from shuffled, augmented images, as the published script makes it
    "compat": False,  # mask the gradient before the optimizer, as published before February 2026
}
SCOPES = ("global", "per_layer")
RULES = {
    "mask.ratio": rules.between(0, 1),
    "mask.scope": rules.one_of(SCOPES),
}
READS = dict.fromkeys(
    ("mask.scope", "mask.augment", "mask.compat"),
    Unread(lambda settings: settings.mask.ratio < 1, "set mask.ratio below 1, for a mask"),
)


def gradient(variables: Variables, batch: Batch, context: Any) -> Any:
    """The gradient of the batch's mean cross-entropy."""

    def loss(params):
        logits = batch.logits_of({**variables, "params": params})
        return batch.mean(optax.softmax_cross_entropy(logits, batch.targets))

    return jax.grad(loss)(variables["params"])


def forget_gradient(task: Task, augmented: bool = False) -> Any:
    """Returns |Σ_batches ∇ mean CE(f(x), y)| over the forget set, a pytree of numpy arrays.

    The original in evaluation mode, with the true labels.

    Args:
      task: the original and its forget set.
      augmented: False: the images as they are, in order, as in the paper's equation 4; True:
        shuffled, and under the run's augmentation, as the published script computes it.
    """
    if not augmented:
        total = task.sweep(gradient, task.forget)
    else:
        shuffled = stage_rng("mask", task.seed).permutation(task.forget)
        total = task.sweep(gradient, shuffled, augmented="mask")
    return jax.tree.map(np.abs, total)


def top(values: np.ndarray, ratio: float) -> np.ndarray:
    """Marks exactly round(ratio·n) entries of values `[n]`, the largest; of equals the first."""
    count = round(ratio * values.size)
    if count == 0:
        return np.zeros(values.shape, bool)
    # A partition, not a sort: 11 million values take a tenth of a second.
    threshold = np.partition(values, values.size - count)[values.size - count]
    mask = values > threshold
    ties = np.flatnonzero(values == threshold)
    mask[ties[: count - mask.sum()]] = True
    return mask


def saliency_mask(task: Task, config: Any) -> Any:
    """Returns a pytree of booleans shaped like the parameters; True = may change.

    Args:
      task: the original and its forget set.
      config: `ratio`, `scope`, `augment`: see `DEFAULTS`.
    """
    leaves, structure = jax.tree.flatten(forget_gradient(task, config.augment))
    if config.scope == "per_layer":
        masks = [top(leaf.ravel(), config.ratio) for leaf in leaves]
    else:
        flat = top(np.concatenate([leaf.ravel() for leaf in leaves]), config.ratio)
        masks = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [
        jnp.asarray(mask.reshape(leaf.shape)) for mask, leaf in zip(masks, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)


def masked(
    actions: Generator[Action, float | None, Any] | Iterator[Action],
    task: Task,
    make_mask: Callable[[], Any],
    compat: bool = False,
) -> Generator[Action, float | None, Any]:
    """A method's actions under a mask: what it does not mark stays the original's.

    The method's claims are dropped: what it proves is not proved of weights that it did not make.

    Args:
      actions: the method.
      task: its inputs.
      make_mask: gives booleans shaped like the parameters; called where there is a first action.
      compat: see `DEFAULTS`.
    """
    mask, conversation = None, Conversation(actions)
    for action in conversation:
        if mask is None:
            mask = make_mask()
        if isinstance(action, Pass) and compat:
            action = dataclasses.replace(action, before=(keep(mask, gradient=True), *action.before))
        elif isinstance(action, Pass):
            action = dataclasses.replace(action, after=(*action.after, keep(mask)))
        elif isinstance(action, Replace):
            held = None if compat else task.original["params"]
            action = Replace(_held(action.variables, mask, held))
        conversation.reply = yield action


def _held(new: Any, mask: Any, held: Any) -> Any:
    """What replaces variables, or the function that makes it, with frozen weights as held.

    Where None are, as with `compat`, they stay as they are at that time.
    """
    if callable(new):
        return lambda now: _held(new(now), mask, now["params"] if held is None else held)
    if held is None:
        return lambda now: _held(new, mask, now["params"])
    return {**new, "params": only_marked(np.where, mask, new["params"], held)}
