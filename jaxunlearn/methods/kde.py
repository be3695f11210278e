"""Distillation and entropy (KDE): a new first layer and head, taught by the original.

Sixth of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn. The first layer's
kernel and the head are drawn anew. The validation set, which the original was not trained on, first
teaches the original's outputs, KL_T(p_o ‖ p), without augmentation, but not of a class that is
forgotten whole; then the retain set does, with
CE_T to the original's outputs, CE to the labels and KL_T. The defaults are the challenge's, for a
large network on images of faces.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts, retrain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import FRESH_OPTIMIZER, Action, Batch, Pass, Replace

NEEDS = ("retain", "val", "labels")
COST = "E · (1 − f) + warmup.epochs · n_val / n, and a third more for the original's outputs"
FIRST = True
DEFAULTS = {
    "epochs": 3,  # on the retain set
    "lr": 0.001,
    "batch_size": 64,
    "temperature": 5.0,
    "warmup": {"epochs": 3, "lr": 0.0009},  # on validation
}
TUNE = {"lr": None, "warmup.lr": None}
RULES = {
    "temperature": rules.above(0),
    "warmup.epochs": rules.whole(0),
    "warmup.lr": rules.above(0),
}


def divergence(logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """KL of softmax(f_o/T) from softmax(f/T), `[B]`."""
    log_p, log_q = (
        jax.nn.log_softmax(each / context["temperature"])
        for each in (batch.logits_of(context["original"]), logits)
    )
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def warmup_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """KL_T to the original."""
    return batch.mean(divergence(logits, batch, context))


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """CE_T to the original + CE to the labels + KL_T to the original."""
    soft = jax.nn.softmax(batch.logits_of(context["original"]) / context["temperature"])
    return batch.mean(
        optax.softmax_cross_entropy(logits / context["temperature"], soft)
        + optax.softmax_cross_entropy(logits, batch.targets)
        + divergence(logits, batch, context)
    )


def passes(task: Task, config: Any) -> Iterator[Action]:
    """The new layers, validation as a teacher without labels, then the retain set."""
    if not config.epochs:
        return
    layers = parts.layers_of(task)
    first, head = layers[0], layers[-1]
    owners = {first.kernel: first} | dict.fromkeys(head.params, head)
    params = parts.redraw(task.original["params"], owners, stage_rng("kde", task.seed))
    yield Replace({**task.original, "params": params})
    total, count = config.warmup.epochs + config.epochs, len(task.labels)
    context = jax.device_put(
        {"original": task.original, "temperature": np.float32(config.temperature)}
    )
    seen = np.flatnonzero(np.isin(task.val.labels, task.labels[task.retain]))
    if config.warmup.epochs and not len(seen):
        raise UserError(
            "kde: validation, which warms its new layers up, has no image of a class that is "
            "retained; set warmup.epochs=0, or give other validation images"
        )
    for _ in range(config.warmup.epochs):
        yield Pass(
            warmup_objective,
            count + seen,
            np.concatenate([task.labels, task.val.labels]),
            config.warmup.lr,
            total,
            context=context,
            images=task.val.images,
        )
    yield FRESH_OPTIMIZER
    for epoch in range(config.epochs):
        lr = config.lr * retrain.SCHEDULES["cosine"](config, epoch)
        yield Pass(objective, task.retain, task.labels, lr, total, context=context)
