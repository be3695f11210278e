"""SFRon: ascend on the salient weights of forget now and then, between steps on retain.

Huang et al. 2024, https://arxiv.org/abs/2409.19732, as in
https://github.com/K1nght/Unified-Unlearning-w-Remain-Geometry. Every `every` steps on retain comes
one of gradient ascent on forget: its examples weighted by CE^(−λ), its gradient held to the weights
whose importance (as SSD's, of batches) to forget is at least γ times that to retain, and clipped.
Its strength A · (1 + cos πt/N)/2 and the learning rate fall to 0. The published 1500 steps on
CIFAR-10, over 45,000 retained images, are 4.3 epochs; the budget is given in epochs here, of which
5 over the 40,500 that a validation set leaves are 1585 steps. The rate falls from one step of
ascent to the next.

A cycle is two passes, as checkpoints and `config.watch` count them. A retain set that is smaller
than a batch is repeated until it fills one.

The optimizer, and so the momentum, is shared with the steps on retain, which move all weights. The
published setting for CIFAR-10 switches the paper's slow weights off (β = 1), so they are not here.
An example that is certain has a weighted gradient of about CE^(1−λ): it is forgotten last. The
authors' advice where nothing is forgotten: a larger A, or a lower `every`.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.ssd import importance
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import clip_norm, keep
from jaxunlearn.training.passes import Batch, Pass, cross_entropy

NEEDS = ("forget", "retain", "labels")
COST = "E · (1 − f) · (1 + 1/every) + 1"
DEFAULTS = {
    "batch_size": 128,
    "epochs": 5,
    "lr": 0.01,
    "every": 5,  # steps on retain for each on forget
    "strength": 25.0,  # A
    "power": 0.5,  # λ
    "threshold": 1.0,  # γ
    "clip": 7.0,
}
TUNE = {"lr": None, "strength": (1.0, 5.0, 25.0, 100.0)}
RULES = {
    "every": rules.whole(1),
    "strength": rules.at_least(0),
    "power": rules.between(0, 2),
    "threshold": rules.at_least(0),
    "clip": rules.above(0),
}


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """−a · Σ w_i CE_i, w_i ∝ CE_i^(−λ)."""
    losses = optax.softmax_cross_entropy(logits, batch.targets)
    fixed = jnp.maximum(jax.lax.stop_gradient(losses), 1e-8)
    shares = batch.weight * fixed ** -context["power"]
    return -context["strength"] * jnp.sum(shares / jnp.sum(shares) * losses)


def salient(task: Task, threshold: float) -> Any:
    """Booleans shaped like the parameters: F_f ≥ γ · F_r."""
    forget, retain = (importance(task, indices, "batch") for indices in (task.forget, task.retain))
    return jax.tree.map(lambda f, r: f + 1e-15 >= threshold * (r + 1e-15), forget, retain)


def rounds(task: Task, name: str, indices: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """`count` times the next `size` of the examples, shuffled anew whenever they run out."""
    turns = -(-size * count // len(indices))
    order = np.concatenate(
        [stage_rng(name, task.seed, turn).permutation(indices) for turn in range(turns)]
    )
    return np.split(order[: size * count], count)


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """A batch of forget, then `every` batches of retain, and so on; in the end fewer of these."""
    size = config.batch_size
    steps = config.epochs * -(-len(task.retain) // size)
    if not steps:
        return
    count = -(-steps // config.every)
    mask = jax.device_put(salient(task, config.threshold))
    links = (keep(mask, gradient=True), clip_norm(config.clip))
    forget = rounds(task, "sfron forget", task.forget, min(size, len(task.forget)), count)
    (retain,) = rounds(task, "sfron retain", task.retain, size * steps, 1)
    cycles = np.split(retain, np.arange(1, count) * size * config.every)
    for cycle in range(count):
        # a_t = A · (1 + cos(π · t/N))/2, and the rate alike
        fall = 0.5 * (1 + math.cos(math.pi * cycle / count))
        context = {
            "power": np.float32(config.power),
            "strength": np.float32(config.strength * fall),
        }
        lr, labels = config.lr * fall, task.labels
        yield Pass(objective, forget[cycle], labels, lr, 2 * count, before=links, context=context)
        yield Pass(cross_entropy, cycles[cycle], labels, lr, 2 * count)
