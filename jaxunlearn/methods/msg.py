"""Masked small gradients (MSG): draw anew the weights that tell retain and forget least apart.

Second of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning); in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, among the steadiest of 18 methods. As in
https://github.com/xcadet/deepunlearn: of the sum of batches' gradients of cross-entropy on n_f
retained examples less that on the forget set, the share `reset` of each convolution's weights with
the smallest absolute value is drawn anew, He-normal over the fan-out (biases stay; the published
code draws them anew, and its networks' convolutions have none); then the retain set is fine-tuned
on, with a tenth of the gradient for the convolutions' other weights. The gradients are taken in
evaluation mode. The defaults are the challenge's, for a large network on images of faces.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts, saliency
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Link, Pass, Replace, cross_entropy

NEEDS = ("forget", "retain", "labels")
COST = "E · (1 − f) + 2 · f"
FIRST = True
DEFAULTS = {
    "epochs": 5,
    "lr": 0.001,  # in the middle; it rises to it and falls again in a straight line
    "batch_size": 64,
    "reset": 0.3,  # share of each convolution's weights that is drawn anew
    "slow": 0.1,  # factor on the gradient of the others
}
RULES = {"reset": rules.between(0, 1), "slow": rules.at_least(0)}


def rate(epoch: int, epochs: int) -> float:
    """The factor on the learning rate: 1/3, 2/3, 1, 2/3, 1/3 in five epochs."""
    top = (epochs + 1) // 2
    return (epoch + 1) / top if epoch < top else (epochs - epoch) / (epochs + 1 - top)


def scale(gradient: Any, params: Any, factors: Any, key: jax.Array) -> Any:
    """A link: the gradient times factors shaped like it."""
    return jax.tree.map(lambda g, factor: g * factor, gradient, factors)


def chosen(task: Task, share: float) -> Any:
    """Marks the weights to draw anew, shaped like the parameters: the share of each kernel."""
    rng = stage_rng("msg sample", task.seed)
    sample = rng.permutation(task.retain)[: len(task.forget)]
    retain, forget = (task.sweep(saliency.gradient, rows) for rows in (sample, task.forget))
    convs = {layer.kernel for layer in parts.layers_of(task) if layer.is_conv}

    def one(path: str, r: np.ndarray, f: np.ndarray) -> np.ndarray:
        if path not in convs:
            return np.zeros(r.shape, bool)
        return saliency.top(-np.abs(r - f).ravel(), share).reshape(r.shape)

    return parts.by_path(one, retain, forget)


def redrawn(task: Task, mask: Any) -> Any:
    """The original's parameters, those marked drawn anew: N(0, 2/fan-out)."""
    layers = {layer.kernel: layer for layer in parts.layers_of(task)}
    rng = stage_rng("msg", task.seed)

    def one(path: str, theta: np.ndarray, marked: np.ndarray) -> np.ndarray:
        if not marked.any():
            return theta
        sigma = (2 / layers[path].fan_out) ** 0.5
        return np.where(marked, sigma * rng.standard_normal(theta.shape), theta).astype(theta.dtype)

    return parts.by_path(one, task.original["params"], mask)


def passes(task: Task, config: Any) -> Iterator[Pass | Replace]:
    """The weights drawn anew, then cross-entropy on the retain set."""
    if not config.epochs:
        return
    mask = chosen(task, config.reset)
    yield Replace({**task.original, "params": redrawn(task, mask)})
    convs = {layer.kernel for layer in parts.layers_of(task) if layer.is_conv}
    factors = parts.by_path(
        lambda path, marked: np.where(marked | (path not in convs), 1, config.slow).astype(
            np.float32
        ),
        mask,
    )
    for epoch in range(config.epochs):
        yield Pass(
            cross_entropy,
            task.retain,
            task.labels,
            config.lr * rate(epoch, config.epochs),
            config.epochs,
            before=(Link(scale, factors),),
        )
