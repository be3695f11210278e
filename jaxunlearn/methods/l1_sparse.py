"""l1-sparse: fine-tuning with an l1 penalty on every weight that fades over the epochs.

Jia et al. 2023, https://arxiv.org/abs/2304.04934, as in
https://github.com/OPTML-Group/Unlearn-Sparse. The penalty falls linearly over the epochs that have
one, so that the first has γ and the last γ/E, not 0. Its subgradient goes through momentum, and
weight decay acts beside it; batch norm's parameters are penalised too.

Weights hardly ever become 0: the subgradient makes them swing around it by lr · γ. γ is what
accuracy depends on most: the paper has 5e-4, reproductions use 1e-6 to 1e-4. The default `alpha` of
the published script, 0.2, is another method's; with it as γ the model is destroyed.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
DEFAULTS = {
    "epochs": 10,
    "lr": 0.01,
    "gamma": 5e-4,
    "no_l1_epochs": 0,  # how many epochs at the end are without the penalty
}
TUNE = {"lr": None, "gamma": (1e-6, 1e-5, 1e-4, 5e-4)}
RULES = {"gamma": rules.at_least(0), "no_l1_epochs": rules.whole(0)}


def objective(params: Any, logits: jax.Array, batch: Batch, gamma: jax.Array) -> jax.Array:
    """CE(B_r) + γ · ‖θ‖₁."""
    norm = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))
    return batch.mean(optax.softmax_cross_entropy(logits, batch.targets)) + gamma * norm


def fading(gamma: float, epoch: int, epochs: int) -> float:
    """The penalty's weight in an epoch, from 0; `epochs` have one."""
    # γ_e = γ · (1 − e / E)
    return gamma * (1 - epoch / epochs) if epoch < epochs else 0.0


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Penalised cross-entropy on the retain set; the forget set is never read."""
    sparse = config.epochs - config.no_l1_epochs
    for epoch in range(config.epochs):
        yield Pass(
            objective,
            task.retain,
            task.labels,
            config.lr,
            config.epochs,
            context=np.float32(fading(config.gamma, epoch, sparse)),
        )
