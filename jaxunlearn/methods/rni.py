"""Repeated noise injection (RNI): a new head, and noise on a few kernels at a time.

Seventh of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn. The head is drawn anew.
In every epoch on the retain set but the last `all_epochs`, `tensors` of the kernels and the head's
bias, drawn anew, train, and with them all norms and other biases; `noised` of these get noise, but
none that trained in an earlier epoch, and none in the first. With few epochs, as in tuning, the
first two are such even so; a network that has no more than `tensors` of these never gets noise.
Every epoch starts with a fresh optimizer. The defaults are the challenge's, for a large network on
images of faces.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import keep
from jaxunlearn.training.passes import Action, Pass, Replace, Variables, cross_entropy

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
FIRST = True
DEFAULTS = {
    "epochs": 9,
    "lr": 0.0002,
    "last_lr": 0.001,  # of the last epoch
    "batch_size": 64,
    # In how many, the last ones after two at least, everything trains and nothing is noised.
    "all_epochs": 4,
    "tensors": 9,
    "noised": 6,
    "sigma": 0.04,
}
TUNE = {"lr": None, "last_lr": None}
RULES = {
    "last_lr": rules.above(0),
    "all_epochs": rules.whole(0),
    "tensors": rules.whole(1),
    "noised": rules.whole(0),
    "sigma": rules.at_least(0),
}


def draws(names: list[str], config: Any, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """What trains, and what of it gets noise, in each epoch that draws."""
    trained: set[str] = set()
    # Two at least, since the first has no noise.
    count = max(config.epochs - config.all_epochs, min(config.epochs, 2))
    for epoch in range(count):
        rng = stage_rng("rni", seed, epoch)
        training = rng.permutation(names)[: config.tensors].tolist()
        noised = rng.permutation(training)[: config.noised].tolist() if epoch else []
        yield training, [name for name in noised if name not in trained]
        trained.update(training)


def _noisy(
    task: Task, names: list[str], sigma: float, epoch: int, variables: Variables
) -> Variables:
    """Variables with noise on some parameters."""
    rng = task.noise_rng("rni noise", epoch)
    return {**variables, "params": parts.noised(variables["params"], names, sigma, rng)}


def passes(task: Task, config: Any) -> Iterator[Action]:
    """The new head, epochs that train a few kernels, and epochs that train all."""
    if not config.epochs:
        return
    layers, params = parts.layers_of(task), task.original["params"]
    head = layers[-1]
    owners, rng = dict.fromkeys(head.params, head), stage_rng("rni head", task.seed)
    yield Replace({**task.original, "params": parts.redraw(params, owners, rng)})
    names = list(dict.fromkeys([*(layer.kernel for layer in layers), *head.params]))
    drawn = draws(names, config, task.seed)
    for epoch in range(config.epochs):
        training, noised = next(drawn, (names, []))
        if epoch:  # with a fresh optimizer
            yield Replace(functools.partial(_noisy, task, noised, config.sigma, epoch))
        frozen = parts.marked(params, [name for name in names if name not in training])
        yield Pass(
            cross_entropy,
            task.retain,
            task.labels,
            config.last_lr if epoch == config.epochs - 1 else config.lr,
            config.epochs,
            after=(keep(jax.tree.map(np.logical_not, frozen)),),
        )
