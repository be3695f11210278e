"""Selective synaptic dampening (SSD): shrink the weights that matter more to forget than to all.

Foster et al. 2024, https://arxiv.org/abs/2308.07707, as in
https://github.com/if-loops/selective-synaptic-dampening. No training. Where the forget set's
importance of a weight is more than α times that of the whole training set, the weight is scaled
down. The published code squares the gradient of a batch's mean, so that importances depend on batch
size and order: `importance = "batch"`; by default the square is taken for each example.

A random request is a poor match: a random subset has nearly the importances of the whole, and no
weight passes α.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Unread
from jaxunlearn.training.passes import Batch, Replace, Variables

NEEDS = ("forget", "retain", "labels")
COST = "1 + f"
DEFAULTS = {"alpha": 10.0, "dampening": 1.0, "importance": "example", "batch_size": 64}
READS = dict.fromkeys(
    ("optimizer", "momentum", "weight_decay"),
    Unread(lambda settings: False, "SSD does not train: choose another method"),
)
IMPORTANCES = ("example", "batch")
RULES = {
    "alpha": rules.at_least(0),
    "dampening": rules.at_least(0),
    "importance": rules.one_of(IMPORTANCES),
}


def squared_per_example(variables: Variables, batch: Batch, context: Any) -> Any:
    """Σ over examples of (∂CE/∂θ)²."""

    def one(image, target, weight):
        def loss(params):
            logits = batch.logits_of({**variables, "params": params}, image[None])
            return optax.softmax_cross_entropy(logits, target[None])[0]

        gradient = jax.grad(loss)(variables["params"])
        return jax.tree.map(lambda g: weight * jnp.square(g), gradient)

    squares = jax.vmap(one)(batch.images, batch.targets, batch.weight)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), squares)


def squared_of_batch(variables: Variables, batch: Batch, context: Any) -> Any:
    """(∂ mean CE/∂θ)² of the batch."""

    def loss(params):
        logits = batch.logits_of({**variables, "params": params})
        return batch.mean(optax.softmax_cross_entropy(logits, batch.targets))

    return jax.tree.map(jnp.square, jax.grad(loss)(variables["params"]))


def importance(task: Task, indices: Any, kind: str) -> Any:
    """I_S = E over the set of (∂CE/∂θ)², shaped like the parameters; the original's."""
    function = squared_per_example if kind == "example" else squared_of_batch
    size = task.bench.setup.batch_size
    count = len(indices) if kind == "example" else -(-len(indices) // size)
    return jax.tree.map(lambda total: total / count, task.sweep(function, indices))


def dampen(params: Any, forget: Any, whole: Any, alpha: float, dampening: float) -> Any:
    """The parameters, scaled down where I_f > α·I_D; importances shaped like them."""

    def one(theta, i_f, i_d):
        selected = i_f > alpha * i_d
        # θ ← β·θ with β = min(λ · I_D / I_f, 1)
        beta = jnp.minimum(dampening * i_d / jnp.where(selected, i_f, 1), 1)
        return jnp.where(selected, beta * theta, theta)

    return jax.tree.map(one, params, forget, whole)


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's parameters."""
    everything = np.concatenate([task.forget, task.retain])
    forget, whole = (
        importance(task, indices, config.importance) for indices in (task.forget, everything)
    )
    params = dampen(task.original["params"], forget, whole, config.alpha, config.dampening)
    yield Replace({**task.original, "params": params})
