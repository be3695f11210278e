"""Gradient saliency: which weights the forgotten examples speak through."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import devices
from jaxunlearn.keys import stage_key, stage_rng
from jaxunlearn.methods.task import Task
from jaxunlearn.models import Model
from jaxunlearn.training import batches, normalise

DEFAULTS = {
    "ratio": 0.5,  # share of the weights that may change
    "scope": "global",  # one threshold over all weights, or "per_layer": the ratio in every array
    "augment": False,  # True: from shuffled, augmented images, as the published script makes it
    "compat": False,  # mask the gradient before the optimizer, as published before February 2026
}
SCOPES = ("global", "per_layer")
RULES = {
    "mask.ratio": (lambda value: 0 <= value <= 1, "0 to 1"),
    "mask.scope": (lambda value: value in SCOPES, ", ".join(SCOPES)),
}


@functools.cache
def make_gradient(
    model: Model,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augment: Callable | None,
) -> Callable:
    """Returns a program that adds one batch's gradient of the mean cross-entropy to a sum."""

    def gradient(total, variables, images, labels, order, weight, key, position):
        index, row = order[position], weight[position]
        batch, targets = images[index], jax.nn.one_hot(labels[index], num_classes)
        if augment is not None:
            batch, targets = augment(batch, targets, jax.random.fold_in(key, position))
        batch = normalise(batch, mean, std)

        def loss_fn(params):
            logits, _ = model.apply({**variables, "params": params}, batch, False)
            values = optax.softmax_cross_entropy(logits, targets)
            return jnp.sum(values * row) / jnp.sum(row)

        return jax.tree.map(jnp.add, total, jax.grad(loss_fn)(variables["params"]))

    return gradient


def forget_gradient(task: Task, augmented: bool = False) -> Any:
    """Returns |Σ_batches ∇ mean CE(f(x), y)| over the forget set, a pytree of numpy arrays.

    The original in evaluation mode, with the true labels (Fan et al. 2024,
    https://arxiv.org/abs/2310.12508).

    Args:
      task: the original and its forget set.
      augmented: False: the images as they are, in order, as in the paper's equation 4; True:
        shuffled, and under the run's augmentation, as the published script computes it.
    """
    mesh, setup = task.programs.mesh, task.setup
    forget = task.split.forget
    if augmented:
        forget = stage_rng("mask", task.seed).permutation(forget)
    order, weight = batches(forget, setup.batch_size)
    rows = (devices.shard_batches(order, mesh), devices.shard_batches(weight, mesh))
    zeros = jax.tree.map(np.zeros_like, task.original["params"])
    total, variables, labels, key, positions = devices.replicate(
        (
            zeros,
            task.original,
            task.labels,
            stage_key("mask", task.seed, 0),
            list(np.arange(len(order), dtype=np.int32)),
        ),
        mesh,
    )
    fixed = (variables, task.images, labels, *rows, key)
    augment = setup.augment if augmented else None
    gradient = make_gradient(setup.model, setup.num_classes, setup.mean, setup.std, augment)
    program = task.programs(gradient, total, *fixed, positions[0], donate=(0,))
    for position in positions:
        total = program(total, *fixed, position)
    return jax.tree.map(np.abs, jax.device_get(total))


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
    what = f"forget gradient by batches of {task.setup.batch_size}, augmented {config.augment}"
    gradient = task.shared.get(what, lambda: forget_gradient(task, config.augment), task.programs)
    leaves, structure = jax.tree.flatten(gradient)
    if config.scope == "per_layer":
        masks = [top(leaf.ravel(), config.ratio) for leaf in leaves]
    else:
        flat = top(np.concatenate([leaf.ravel() for leaf in leaves]), config.ratio)
        masks = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [mask.reshape(leaf.shape) for mask, leaf in zip(masks, leaves, strict=True)]
    return devices.replicate(jax.tree.unflatten(structure, shaped), task.programs.mesh)
