"""Convolution transpose (CT): swap the two axes of every convolution's kernel, then fine-tune.

Fifth of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning); in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, among the steadiest of 18 methods. As in
https://github.com/xcadet/deepunlearn. Kernels that are not square stay as they are. The defaults
are the challenge's, for a large network on images of faces; search around them on others.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxunlearn.methods import parts, retrain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Pass, Replace, cross_entropy

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
FIRST = True
DEFAULTS = {"epochs": 3, "lr": 0.001, "batch_size": 64}


def transposed(task: Task) -> Any:
    """The original's parameters with the spatial axes of square kernels swapped."""
    layers = {layer.kernel: layer for layer in parts.layers_of(task)}

    def one(path: str, leaf: np.ndarray) -> np.ndarray:
        axes = layers[path].spatial if path in layers else ()
        if len(axes) != 2 or leaf.shape[axes[0]] != leaf.shape[axes[1]]:
            return leaf
        return np.swapaxes(leaf, *axes)

    return parts.by_path(one, task.original["params"])


def passes(task: Task, config: Any) -> Iterator[Pass | Replace]:
    """The swap, then cross-entropy on the retain set at a rate that falls as a cosine."""
    if config.epochs:
        yield Replace({**task.original, "params": transposed(task)})
    for epoch in range(config.epochs):
        lr = config.lr * retrain.SCHEDULES["cosine"](config, epoch)
        yield Pass(cross_entropy, task.retain, task.labels, lr, config.epochs)
