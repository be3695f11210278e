"""Just in time (JiT): smooth the model around the forget set, without retain set or labels.

Foster et al. 2024, https://arxiv.org/abs/2402.01401, as in
https://github.com/jwf40/Zeroshot-Unlearning-At-Scale: one pass over the forget set with
Σ_x (1/N)·Σ_n ‖f(x) − f(x + ξ_n)‖/‖ξ_n‖, ξ ~ N(0, σ²I) on normalised images, by plain SGD. It is a
sum over the batch, so the rate goes with its size. The published code holds f(x + ξ) fixed
(`detach`), which of a linear model leaves no gradient on average: what forgets then is of second
order. The paper's formula does not. It also never sets its gradients back to zero, so that they add
up over batches; here each batch has its own. Images are not clipped.

No values are published for residual networks: these are those of a re-implementation,
https://github.com/pedroandreou/supreme-unlearning, where f(x) is computed in training mode and f(x
+ ξ) in evaluation mode. Here both are in training mode, as in the authors' code, the copies with
statistics of their own. On CIFAR-10 they took a small one's test accuracy from 84% to 64 or 68%, a
tenth of the rate did not; on HAM10000 they did little. With `frozen_statistics` both are in
evaluation mode, so that f is a function of one image: at the same rate small residual networks then
diverged on CIFAR-10 and HAM10000 and were destroyed on BreastMNIST, and 1e-5 to 3e-5 is worth a
try.

For a VGG network N = 25, σ = 0.5 for a class and 0.01 for random requests, rate 3e-4; for a vision
transformer σ = 0.8 and rate 1.5, or 0.5 and 0.1. What they call VGG16 is torchvision's `vgg11`
without batch norm. With poor values much of the retain set is forgotten too.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("forget",)
COST = "(1 + samples / 3) · E · f, or (1 + samples) · E · f with detach=False"
DEFAULTS = {
    "epochs": 1,
    "lr": 0.001,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batch_size": 64,
    "samples": 10,  # N
    "sigma": 0.1,
    "detach": True,  # as published; False: as in the paper
    "frozen_statistics": False,
}
TUNE = {"lr": None, "sigma": (0.01, 0.03, 0.1, 0.3)}
RULES = {"samples": rules.whole(1), "sigma": rules.above(0)}
TINY = 1e-12  # a norm's least value, for its gradient


def _roughness(params: Any, logits: jax.Array, batch: Batch, sigmas: jax.Array, hold: Any) -> Any:
    """Σ_x (1/N)·Σ_n ‖f(x) − hold(f(x + ξ_n))‖/‖ξ_n‖, with a standard deviation for each n."""
    shape = batch.images.shape
    noise = jax.random.normal(batch.key, (len(sigmas), *shape)) * sigmas.reshape(-1, 1, 1, 1, 1)
    moved = (batch.images[None] + noise).reshape(-1, *shape[1:])
    others = hold(batch.forward(params, moved)).reshape(len(sigmas), *logits.shape)
    gaps = optax.safe_norm(logits[None] - others, TINY, axis=-1)
    ratios = gaps / jnp.linalg.norm(noise.reshape(*noise.shape[:2], -1), axis=-1)
    return jnp.sum(jnp.mean(ratios, 0) * batch.weight)


def released(params: Any, logits: jax.Array, batch: Batch, sigmas: jax.Array) -> jax.Array:
    """With f(x + ξ) held fixed."""
    return _roughness(params, logits, batch, sigmas, jax.lax.stop_gradient)


def paper(params: Any, logits: jax.Array, batch: Batch, sigmas: jax.Array) -> jax.Array:
    """With the gradient of both."""
    return _roughness(params, logits, batch, sigmas, lambda others: others)


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Passes over the forget set."""
    objective = released if config.detach else paper
    sigmas = np.full(config.samples, config.sigma, np.float32)
    for _ in range(config.epochs):
        yield Pass(
            objective,
            task.forget,
            task.labels,
            config.lr,
            config.epochs,
            train=not config.frozen_statistics,
            context=sigmas,
        )
