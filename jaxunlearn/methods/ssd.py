"""Selective synaptic dampening (SSD): shrink the weights that matter more to forget than to all.

Foster et al. 2024, https://arxiv.org/abs/2308.07707, as in
https://github.com/if-loops/selective-synaptic-dampening. No training. Where the forget set's
importance of a weight is more than α times that of the whole training set, the weight is scaled
down. The published code squares the gradient of a batch's mean, so that importances depend on batch
size and order: `importance = "batch"`; by default the square is taken for each example.

The training set holds the forget set, so that I_f ≤ (n/n_f)·I_D for every weight: an α of n/n_f or
more selects none, whatever the model. Of the published 10 that is so where a tenth of the training
set or more is forgotten; it was chosen for 100 examples, and for classes of 1 to 5%. And a random
request is a poor match: a random subset has nearly the importances of the whole.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods import untrained
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Replace, Variables
from jaxunlearn.training.sweep import Swept

NEEDS = ("forget", "retain", "labels")
COST = "1 + f"
DEFAULTS = {"alpha": 10.0, "dampening": 1.0, "importance": "example", "batch_size": 64}
TUNE = {"alpha": (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)}
READS = untrained.READS
IMPORTANCES = ("example", "batch")
RULES = {
    "alpha": rules.at_least(0),
    "dampening": rules.at_least(0),
    "importance": rules.one_of(IMPORTANCES),
}
# (logits [B, num_classes], targets [B, num_classes]) -> [B]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
Size = Callable[[jax.Array], jax.Array]  # what of a gradient counts: its square, its absolute value


def per_example(variables: Variables, batch: Batch, loss: Loss, size: Size) -> Any:
    """Σ over examples of size(∂loss/∂θ)."""

    def one(image, target, weight):
        def loss_of(params):
            logits = batch.logits_of({**variables, "params": params}, image[None])
            return loss(logits, target[None])[0]

        gradient = jax.grad(loss_of)(variables["params"])
        return jax.tree.map(lambda g: weight * size(g), gradient)

    sizes = jax.vmap(one)(batch.images, batch.targets, batch.weight)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), sizes)


def of_batch(variables: Variables, batch: Batch, loss: Loss, size: Size) -> Any:
    """size(∂ mean loss/∂θ) of the batch."""

    def loss_of(params):
        logits = batch.logits_of({**variables, "params": params})
        return batch.mean(loss(logits, batch.targets))

    return jax.tree.map(size, jax.grad(loss_of)(variables["params"]))


def squared_per_example(variables: Variables, batch: Batch, context: Any) -> Any:
    """Σ over examples of (∂CE/∂θ)²."""
    return per_example(variables, batch, optax.softmax_cross_entropy, jnp.square)


def squared_of_batch(variables: Variables, batch: Batch, context: Any) -> Any:
    """(∂ mean CE/∂θ)² of the batch."""
    return of_batch(variables, batch, optax.softmax_cross_entropy, jnp.square)


SQUARED = {"example": squared_per_example, "batch": squared_of_batch}


def importance(
    task: Task, indices: np.ndarray, kind: str, functions: Mapping[str, Swept] = SQUARED
) -> Any:
    """The original's importances of a set, shaped like the parameters.

    Args:
      task: the original.
      indices: the set, int `[M]`.
      kind: "example": a mean over examples; "batch": over batches.
      functions: what is averaged, by kind: by default I_S = E over the set of (∂CE/∂θ)².
    """
    size = task.bench.setup.batch_size
    count = len(indices) if kind == "example" else -(-len(indices) // size)
    return jax.tree.map(lambda total: total / count, task.sweep(functions[kind], indices))


def importances(task: Task, kind: str, functions: Mapping[str, Swept] = SQUARED) -> tuple[Any, Any]:
    """The importances to the forget set, and to the whole training set."""
    everything = np.concatenate([task.forget, task.retain])
    forget, whole = (
        importance(task, indices, kind, functions) for indices in (task.forget, everything)
    )
    return forget, whole


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
    forget, whole = importances(task, config.importance)
    params = dampen(task.original["params"], forget, whole, config.alpha, config.dampening)
    yield Replace({**task.original, "params": params})
