"""Gradient ascent (GA): maximise the cross-entropy of the forget set.

Thudi et al. 2022, https://arxiv.org/abs/2109.13398; Golatkar et al. 2020,
https://arxiv.org/abs/1911.04933; as in https://github.com/OPTML-Group/Unlearn-Saliency, which
neither clips the gradient nor freezes batch statistics.

The loss has no bound: with the statistics of forget batches alone the published way falls to
chance within tens of steps, so by default the original's statistics stay (`frozen_statistics`)
and the gradient's norm is clipped. The rate 1e-4 is published for whole classes; random requests
need 5e-4 to 1e-3. `bound` stops the ascent where a batch's loss reaches it, by
relu(bound − CE) as in https://github.com/bjzhb666/GS-LoRA; log C is where an unsure model stands.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import clip_norm
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("forget", "labels")
COST = "E · f"
TUNE = {"lr": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}  # as its published code searched
DEFAULTS = {
    "epochs": 5,
    "lr": 1e-4,
    "clip": 1.0,  # the gradient's largest norm; 0: any
    "bound": 0.0,  # the loss at which the gradient ends, if not momentum; 0: none
    "frozen_statistics": True,
}
RULES = {"clip": rules.at_least(0), "bound": rules.at_least(0)}


def ascend(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """−CE(B_f)."""
    return -batch.mean(optax.softmax_cross_entropy(logits, batch.targets))


def ascend_to_bound(params: Any, logits: jax.Array, batch: Batch, bound: jax.Array) -> jax.Array:
    """relu(bound − CE(B_f))."""
    loss = batch.mean(optax.softmax_cross_entropy(logits, batch.targets))
    return jnp.maximum(bound - loss, 0)


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Ascent on the forget set alone."""
    for _ in range(config.epochs):
        yield Pass(
            ascend_to_bound if config.bound else ascend,
            task.forget,
            task.labels,
            config.lr,
            config.epochs,
            before=(clip_norm(config.clip),) if config.clip else (),
            train=not config.frozen_statistics,
            context=np.float32(config.bound),
        )
