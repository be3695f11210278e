"""UNSIR: noise that the original errs most on, under the forgotten class's label; then a repair.

Tarun et al. 2023, https://arxiv.org/abs/2111.08947, as in
https://github.com/vikram2000b/Fast-Machine-Unlearning. Images of noise z are learned, in place of
the forgotten class's own, which are never looked at: Adam for `noise_steps` on −CE(f_o(z), c) + 0.1
· mean‖z‖², with the original in evaluation mode. Then an epoch of cross-entropy on copies of the
noise and a part of retain (impair), and one on that part alone (repair), each with a fresh Adam.
With several forgotten classes each has noise of its own; the published notebook labels all noise 0,
learns it in training mode, and copies of its 256 images the first three alone (it counts channels
for images).

A rate of 0.02 under Adam wrecks a trained ResNet: what is measured is the repair. Only whole
classes can be forgotten.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import mixing, pixels
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import (
    FRESH_OPTIMIZER,
    Action,
    Batch,
    Pass,
    Variables,
    cross_entropy,
)

NEEDS = ("retain", "labels")
REQUESTS = ("class",)
COST = (
    "(impair_epochs + repair_epochs) · per_class · classes / n, impair_epochs · noise_count · "
    "noise_copies / n and noise_steps · noise_count / n for every class that is forgotten"
)
DEFAULTS = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "impair_epochs": 1,
    "impair_lr": 0.02,
    "repair_epochs": 1,
    "repair_lr": 0.01,
    "per_class": 1000,  # images of each retained class, at most
    "noise_count": 256,  # images of noise for each forgotten class
    "noise_copies": 20,
    "noise_steps": 40,
    "noise_lr": 0.1,
}
TUNE = {"impair_lr": None, "repair_lr": None}
RULES = {
    "impair_epochs": rules.whole(0),
    "impair_lr": rules.above(0),
    "repair_epochs": rules.whole(0),
    "repair_lr": rules.above(0),
    "per_class": rules.whole(1),
    "noise_count": rules.whole(1),
    "noise_copies": rules.whole(1),
    "noise_steps": rules.whole(0),
    "noise_lr": rules.above(0),
}
check = mixing.refused("unsir trains on images of its own")


def noise_gradient(variables: Variables, batch: Batch, context: Any) -> jax.Array:
    """The gradient of −CE(f_o(z), c) + 0.1 · mean‖z‖² in z, `[K, H, W, C]`."""

    def loss(z):
        logits = batch.logits_of(variables, z)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, context["labels"])
        return -jnp.mean(errors) + 0.1 * jnp.mean(jnp.sum(jnp.square(z), (1, 2, 3)))

    return jax.grad(loss)(context["noise"])


def learn_noise(task: Task, config: Any, label: int) -> np.ndarray:
    """Noise of a class, normalised float32 `[noise_count, H, W, C]`."""
    shape = (config.noise_count, *task.bench.images.shape[1:])
    drawn = stage_rng("unsir", task.seed, label).normal(size=shape).astype(np.float32)
    variables, noise = jax.device_put((task.original, drawn))
    labels = np.full(config.noise_count, label, np.int32)
    adam = optax.adam(config.noise_lr)
    state = adam.init(noise)
    for _ in range(config.noise_steps):
        gradient = task.sweep(
            noise_gradient,
            task.retain[:1],  # one batch, whose image is not read
            variables=variables,
            context={"noise": noise, "labels": labels},
        )
        updates, state = adam.update(gradient, state)
        noise = optax.apply_updates(noise, updates)
    return np.asarray(noise)


def some_of_each(task: Task, per_class: int) -> np.ndarray:
    """At most so many examples of every retained class, drawn once for the request."""
    drawn = stage_rng("unsir retain", task.seed).permutation(task.retain)
    labels = task.labels[drawn]
    return np.concatenate([drawn[labels == label][:per_class] for label in np.unique(labels)])


def passes(task: Task, config: Any) -> Iterator[Action]:
    """Learn the noise, impair, repair."""
    total = config.impair_epochs + config.repair_epochs
    part = some_of_each(task, config.per_class)
    if config.impair_epochs:
        classes = np.unique(task.labels[task.forget])
        noise = np.concatenate([learn_noise(task, config, int(label)) for label in classes])
        labels = np.concatenate([task.labels, np.repeat(classes, config.noise_count)])
        own = len(task.labels) + np.arange(len(noise))
        stream = np.concatenate([np.tile(own, config.noise_copies), part])
        images = 255 * pixels.to_levels(noise, pixels.scale(task))
        for _ in range(config.impair_epochs):
            yield Pass(cross_entropy, stream, labels, config.impair_lr, total, images=images)
        yield FRESH_OPTIMIZER
    for _ in range(config.repair_epochs):
        yield Pass(cross_entropy, part, task.labels, config.repair_lr, total)
