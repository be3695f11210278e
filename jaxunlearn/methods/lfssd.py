"""Label-free SSD (LFSSD): SSD whose importances need no labels.

Foster et al. 2024, https://arxiv.org/abs/2402.19308; the recipe as in
https://github.com/if-loops/selective-synaptic-dampening. The importance of a weight is how much it
moves the squared norm of the logits: I_S = E |∂‖f(x)‖²/∂θ|. The rest is SSD's. The published code
takes the gradient of a batch's mean, in which the signs of examples cancel: `importance = "batch"`;
by default the absolute value is taken for each example.

α is 10 for a class; 3.5 has been used for random requests, on which it is as poor a match as SSD.
As there an α of n/n_f or more selects no weight.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.methods import ssd
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Replace, Variables

NEEDS = ("forget", "retain")
COST = ssd.COST
DEFAULTS = ssd.DEFAULTS
TUNE = ssd.TUNE
READS = ssd.READS
RULES = ssd.RULES


def squared_norm(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """‖f(x)‖² of each example, `[B]`."""
    return jnp.sum(jnp.square(logits), -1)


def absolute_per_example(variables: Variables, batch: Batch, context: Any) -> Any:
    """Σ over examples of |∂‖f(x)‖²/∂θ|."""
    return ssd.per_example(variables, batch, squared_norm, jnp.abs)


def absolute_of_batch(variables: Variables, batch: Batch, context: Any) -> Any:
    """|∂ mean ‖f(x)‖²/∂θ| of the batch."""
    return ssd.of_batch(variables, batch, squared_norm, jnp.abs)


ABSOLUTE = {"example": absolute_per_example, "batch": absolute_of_batch}


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's parameters."""
    forget, whole = ssd.importances(task, config.importance, ABSOLUTE)
    params = ssd.dampen(task.original["params"], forget, whole, config.alpha, config.dampening)
    yield Replace({**task.original, "params": params})
