"""DELETE: distil the original's answer without the true class into the model, on forget alone.

Zhou et al. 2025, https://arxiv.org/abs/2503.23751, as in https://github.com/shaaaaron/DELETE: the
targets are the original's probabilities with the true label's taken out and the others scaled up.
The defaults are theirs for CIFAR-10 with a ResNet-18 (5e-5 for CIFAR-100), the batch statistics
those of forget batches; `frozen_statistics` is their option to leave the original's.

It is made for whole classes: then the accuracy over all classes falls by the lost one. On random
requests the true class goes to 0, far below what a retrained model gives it.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.methods import mixing
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("forget", "labels")
COST = "1.3 · E · f: the teacher only looks"
DEFAULTS = {
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 20,
    "lr": 1e-4,
    "frozen_statistics": False,
}
check = mixing.refused("delete takes out each example's true class")


def without(teacher: jax.Array, label: jax.Array) -> jax.Array:
    """Probabilities `[B, C]` of logits `[B, C]` with each row's label int `[B]` taken out."""
    others = jnp.where(jax.nn.one_hot(label, teacher.shape[-1], dtype=bool), -jnp.inf, teacher)
    return jax.nn.softmax(others)


def objective(params: Any, logits: jax.Array, batch: Batch, original: Any) -> jax.Array:
    """KL(t ‖ p), t the original's answer without the true class."""
    t = without(batch.logits_of(original), jnp.argmax(batch.targets, -1))
    return batch.mean(optax.losses.kl_divergence(jax.nn.log_softmax(logits), t))


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Distillation on the forget set."""
    original = jax.device_put(task.original)
    for _ in range(config.epochs):
        yield Pass(
            objective,
            task.forget,
            task.labels,
            config.lr,
            config.epochs,
            train=not config.frozen_statistics,
            context=original,
        )
