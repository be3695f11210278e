"""Prune, re-initialise, match, quantise (PRMQ): most weights drawn anew, then fine-tuned.

Fourth of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn. The share `reset` of
the layers' weights and biases, those smallest in absolute value, is drawn anew (of a bias: set to
0). On the retain set cross-entropy, its classes weighted by count^(-0.1), and the
squared distance between the entropies of the outputs and of the original's. At the end all
variables are rounded to what float16 holds. Published for 3.2 epochs, here for 3; the defaults are
the challenge's, for a large network on images of faces.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts, saliency
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass, Replace, Variables

NEEDS = ("retain", "labels")
COST = "E · (1 − f), and a third more for the original's outputs"
FIRST = True
DEFAULTS = {"epochs": 3, "lr": 0.0005, "batch_size": 64, "reset": 0.99}
RULES = {"reset": rules.between(0, 1)}


def entropy(logits: jax.Array) -> jax.Array:
    """H(p) of each example, `[B]`."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Σ w_y CE / Σ w_y + mean (H(p) − H(p_o))²."""
    weight = batch.targets @ context["weights"]
    losses = optax.softmax_cross_entropy(logits, batch.targets)
    balanced = batch.mean(weight * losses) / batch.mean(weight)
    original = batch.logits_of(context["original"])
    return balanced + batch.mean(jnp.square(entropy(logits) - entropy(original)))


def rounded(variables: Variables) -> Variables:
    """Variables as float16 holds them, those beyond its range at its ends; whole numbers stay."""
    most = np.finfo(np.float16).max

    def of(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.clip(-most, most).astype(np.float16).astype(leaf.dtype)

    return jax.tree.map(of, variables)


def pruned(task: Task, share: float) -> Any:
    """Marks the share of weights and biases that is smallest, shaped like the parameters."""
    layers = parts.layers_of(task)
    among = {layer.kernel for layer in layers} | {layer.bias for layer in layers} - {""}
    params = task.original["params"]
    counted = parts.marked(params, list(among))
    sizes = np.concatenate(
        [
            np.abs(leaf).ravel()[np.ravel(mask)]
            for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(counted), strict=True)
        ]
    )
    flat, position = saliency.top(-sizes, share), 0

    def one(path: str, leaf: np.ndarray) -> np.ndarray:
        nonlocal position
        if path not in among:
            return np.zeros(leaf.shape, bool)
        position += leaf.size
        return flat[position - leaf.size : position].reshape(leaf.shape)

    return parts.by_path(one, params)


def redrawn(task: Task, mask: Any) -> Any:
    """The original's parameters, those marked drawn anew: U(±1/√fan-in), a bias 0."""
    params = task.original["params"]
    kernels = {layer.kernel: layer for layer in parts.layers_of(task)}
    drawn = parts.redraw(jax.tree.map(np.zeros_like, params), kernels, stage_rng("prmq", task.seed))
    return jax.tree.map(np.where, mask, drawn, params)


def passes(task: Task, config: Any) -> Iterator[Pass | Replace]:
    """The weights drawn anew, the retain set, and the rounding."""
    if not config.epochs:
        return
    yield Replace({**task.original, "params": redrawn(task, pruned(task, config.reset))})
    counts = np.bincount(task.labels[task.retain], minlength=task.num_logits)
    weights = np.where(counts, np.maximum(counts, 1) ** -0.1, 0).astype(np.float32)
    context = jax.device_put({"weights": weights, "original": task.original})
    for _ in range(config.epochs):
        yield Pass(objective, task.retain, task.labels, config.lr, config.epochs, context=context)
    yield Replace(rounded)
