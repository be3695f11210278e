"""NegGrad+: descend on the retain set and ascend on the forget set in the same step.

Kurmanji et al. 2023, https://arxiv.org/abs/2302.09880, as in https://github.com/meghdadk/SCRUB.
Their two batches pass through the model one after the other, and so do these, so each has batch
statistics of its own. Rate and α are theirs for small data sets, where they run in evaluation mode,
with 0.05 · ‖θ − θ_o‖² besides, which holds the ascent to the original's neighbourhood and is not
here; for CIFAR-10 with a ResNet they use α 0.9999 and 5 epochs, in training mode and without it.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("forget", "retain", "labels")
COST = "2 · E · (1 − f)"
DEFAULTS = {"epochs": 10, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "alpha": 0.95}
TUNE = {"lr": None, "alpha": (0.9, 0.95, 0.99, 0.999, 0.9999)}
RULES = {"alpha": rules.between(0, 1)}


def objective(params: Any, logits: jax.Array, batch: Batch, alpha: jax.Array) -> jax.Array:
    """Cross-entropy on retain less that on forget, by α."""
    losses = optax.softmax_cross_entropy(logits, batch.targets)
    # α · CE(B_r) − (1 − α) · CE(B_f)
    return alpha * batch.mean(losses, part=0) - (1 - alpha) * batch.mean(losses, part=1)


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """An epoch is a pass over the retain set, with the forget set going round beside it."""
    streams = (task.retain, task.forget)
    for _ in range(config.epochs):
        yield Pass(
            objective,
            streams,
            task.labels,
            config.lr,
            config.epochs,
            context=np.float32(config.alpha),
        )
