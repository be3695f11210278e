"""Confuse, fine-tune, weaken (CFW): noise on the first convolution, then fine-tune.

Third of the NeurIPS 2023 machine unlearning challenge
(https://www.kaggle.com/competitions/neurips-2023-machine-unlearning), as in Cadet et al. 2024,
https://arxiv.org/abs/2410.01276, and https://github.com/xcadet/deepunlearn: noise N(0, 0.6²) on the
convolutions that its network holds directly, which of a ResNet is the first one; balanced
cross-entropy on the retain set; and again noise N(0, 0.005²) before the last epoch, unless it is
the only one; there the optimizer starts anew here. The balancing weights multiply the mean of a
batch, as published, so that they only make the step larger or smaller. The defaults are the
challenge's, for a large network on images of faces.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods import parts, retrain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass, Replace, Variables

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
FIRST = True
DEFAULTS = {
    "epochs": 4,
    "lr": 0.0007,
    "batch_size": 64,
    "sigma": 0.6,  # of the noise at the start
    "last_sigma": 0.005,  # of that in the last epoch
}
RULES = {"sigma": rules.at_least(0), "last_sigma": rules.at_least(0)}


def objective(params: Any, logits: jax.Array, batch: Batch, weights: jax.Array) -> jax.Array:
    """The mean cross-entropy, times the mean of the classes' weights `[num_logits]`."""
    weight = batch.mean(batch.targets @ weights)
    return weight * batch.mean(optax.softmax_cross_entropy(logits, batch.targets))


def balance(labels: np.ndarray, count: int) -> np.ndarray:
    """A logit's weight, n / (number of classes · its class's count); 0 where there is none."""
    counts = np.bincount(labels, minlength=count)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, weights, 0).astype(np.float32)


def noisy(task: Task, variables: Variables, sigma: float, draw: int) -> Variables:
    """Variables with noise on the first layer's kernel."""
    stem, rng = parts.layers_of(task)[0].kernel, task.noise_rng("cfw", draw)
    return {**variables, "params": parts.noised(variables["params"], [stem], sigma, rng)}


def passes(task: Task, config: Any) -> Iterator[Pass | Replace]:
    """The noise, then balanced cross-entropy on the retain set at a rate that falls as a cosine."""
    if not config.epochs:
        return
    yield Replace(noisy(task, task.original, config.sigma, 0))
    weights = balance(task.labels[task.retain], task.num_logits)
    for epoch in range(config.epochs):
        if 0 < epoch == config.epochs - 1:
            yield Replace(lambda variables: noisy(task, variables, config.last_sigma, 1))
        lr = config.lr * retrain.SCHEDULES["cosine"](config, epoch)
        yield Pass(objective, task.retain, task.labels, lr, config.epochs, context=weights)
