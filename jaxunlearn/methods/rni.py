"""Repeated noise injection (RNI): a new head, and noise on a few kernels at a time.

Seventh of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn. The head is drawn anew.
In every epoch on the retain set but the last `all_epochs`, `tensors` of the kernels and the head's
bias, drawn anew, train, and with them all norms and other biases; `noised` of these get noise, but
none that trained in an earlier epoch, and none in the first. Here the noise comes within the epoch,
after its first step. Every epoch starts with a fresh optimizer. The defaults are the challenge's,
for a large network on images of faces.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts
from jaxunlearn.methods.epochs import fresh_optimizer, one_batch
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import add_noise, keep
from jaxunlearn.training.passes import Action, Link, Pass, Replace, cross_entropy

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
DEFAULTS = {
    "epochs": 9,
    "lr": 0.0002,
    "last_lr": 0.001,  # of the last epoch
    "batch_size": 64,
    "all_epochs": 4,  # in how many, the last ones, everything trains and nothing is noised
    "tensors": 9,
    "noised": 6,
    "sigma": 0.04,
}
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
    for epoch in range(config.epochs - config.all_epochs):
        rng = stage_rng("rni", seed, epoch)
        training = rng.permutation(names)[: config.tensors].tolist()
        noised = rng.permutation(training)[: config.noised].tolist() if epoch else []
        yield training, [name for name in noised if name not in trained]
        trained.update(training)


def passes(task: Task, config: Any) -> Iterator[Action]:
    """The new head, epochs that train a few kernels, and epochs that train all."""
    if not config.epochs:
        return
    layers, params = parts.layers_of(task), task.original["params"]
    head = layers[-1]
    rng = stage_rng("rni head", task.seed)
    owners = dict.fromkeys(head.params, head)
    yield Replace({**task.original, "params": parts.redraw(params, owners, rng)})
    names = list(dict.fromkeys([*(layer.kernel for layer in layers), *head.params]))
    drawn = list(draws(names, config, task.seed))
    total = config.epochs + max(len(drawn) - 1, 0)
    for epoch in range(config.epochs):
        if epoch:
            yield from fresh_optimizer()
        lr = config.last_lr if epoch == config.epochs - 1 else config.lr
        sets: list[tuple[np.ndarray, tuple[Link, ...]]] = [(task.retain, ())]
        if epoch < len(drawn):
            training, noised = drawn[epoch]
            frozen = parts.marked(params, [name for name in names if name not in training])
            hold = keep(jax.tree.map(np.logical_not, frozen))
            batch, rest = one_batch(task, "rni batch", epoch)
            noise = add_noise(config.sigma, parts.marked(params, noised))
            sets = [(batch, (noise, hold)), (rest, (hold,))] if epoch else [(task.retain, (hold,))]
        for indices, after in sets:
            if len(indices):
                yield Pass(cross_entropy, indices, task.labels, lr, total, after=after)
