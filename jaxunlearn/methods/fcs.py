"""Forget, contrast, strengthen (FCS): outputs of the forget set made uniform, then like all others.

First of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn. One epoch on the forget
set towards uniform outputs, then rounds of two: batches of the forget set against batches of the
retain set, −mean_ij log softmax_j(f_i·f_j/T) over forgotten i and retained j, whose outputs are
held fixed, at a rate that falls as a cosine; and an epoch of cross-entropy on the retain set, which
alone has weight decay. The loss has its minimum where a forgotten example's outputs are as similar
to those of one retained example as to those of any other.

Published with three optimizers, each with its momentum; here every round starts with a fresh one.
Where there are more batches of forget than of retain, these go round; the published code leaves the
rest of forget out. The defaults are the challenge's, for a large network on images of faces; the
rate on the retain set was 0.001 for 64 images, in proportion to the batch.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods import retrain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import add_decay
from jaxunlearn.training.passes import FRESH_OPTIMIZER, Action, Batch, Pass, cross_entropy

NEEDS = ("forget", "retain", "labels")
COST = "E · (1 + f) + f"
DEFAULTS = {
    "epochs": 8,
    "lr": 0.004,  # on the retain set
    "forget_lr": 0.0003,  # of the rounds on the forget set
    "uniform_lr": 0.005,  # of the epoch before
    "least_lr": 1e-6,  # at the end of the cosine
    "temperature": 1.15,
    "batch_size": 256,
    "weight_decay": 0.0,
    "retain_decay": 0.01,  # weight decay on the retain set, besides that of all
}
TUNE = {"lr": None, "forget_lr": None}
RULES = {
    "forget_lr": rules.above(0),
    "uniform_lr": rules.above(0),
    "least_lr": rules.at_least(0),
    "temperature": rules.above(0),
    "retain_decay": rules.at_least(0),
}


def uniform_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """KL of the uniform distribution over the context's number of classes from the outputs."""
    uniform = jnp.where(jnp.arange(logits.shape[-1]) < context, 1 / context, 0)
    losses = optax.softmax_cross_entropy(logits, jnp.broadcast_to(uniform[None], logits.shape))
    return batch.mean(losses) - jnp.log(context)


def contrast_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """−mean_ij log softmax_j(f_i·f_j/T): i of the forget set, j of the retain set, held fixed."""
    of_forget, of_retain = batch.part == 0, batch.part == 1
    others = jax.lax.stop_gradient(logits[of_retain])
    real = batch.weight[of_retain][None, :] > 0
    similarity = jnp.where(real, logits[of_forget] @ others.T / context, -jnp.inf)
    losses = -jnp.mean(jax.nn.log_softmax(similarity), -1, where=real)
    weight = batch.weight[of_forget]
    return jnp.sum(losses * weight) / jnp.sum(weight)


def passes(task: Task, config: Any) -> Iterator[Action]:
    """An epoch towards uniform outputs, and the rounds."""
    if not config.epochs:
        return
    total, labels = 1 + 2 * config.epochs, task.labels
    classes = np.float32(task.num_classes)  # a head may have more
    yield Pass(uniform_objective, task.forget, labels, config.uniform_lr, total, context=classes)
    decay = add_decay(config.retain_decay)
    for epoch in range(config.epochs):
        fall = retrain.SCHEDULES["cosine"](config, epoch)
        yield FRESH_OPTIMIZER
        yield Pass(
            contrast_objective,
            (task.forget, task.retain),
            labels,
            config.least_lr + (config.forget_lr - config.least_lr) * fall,
            total,
            context=np.float32(config.temperature),
        )
        yield FRESH_OPTIMIZER
        yield Pass(cross_entropy, task.retain, labels, config.lr, total, before=(decay,))
