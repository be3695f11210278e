"""MU-Mis (experimental): make the model as insensitive to forget images as to any other.

Cheng et al. 2024, https://arxiv.org/abs/2402.15109, by the paper's text and a re-implementation
(https://github.com/Harry24k/torchunlearn): the authors' code and their rates were not to be had, so
the rate and δ here are to be tuned. The loss, on forget alone, is the mean of
‖∇_x f_c‖² − ‖∇_x f_c'‖², c the true class and c' another one, drawn at every visit. The sensitivity
of the other class is meant to fall first and then to recover: the method ends after the epoch in
which that is above its lowest and above δ times what it was. For δ of 1 and more the fall is not
asked for: a sensitivity that rises at once ends it after one epoch, a sign of too high a rate.

The loss has no bound below. Random requests are the paper's weak spot. What the rate, which is the
re-implementation's, does depends on the data: small residual networks were destroyed on CIFAR-10
and, within one pass over forget, on HAM10000, and hardly changed on BreastMNIST. Without
`frozen_statistics` an image's sensitivity includes its effect on the others of its batch.
"""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import rules
from jaxunlearn.methods import mixing
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Action, Ask, Batch, Pass, Variables

NEEDS = ("forget", "labels")
COST = "about 3 · E · f, or 4 with frozen_statistics=False"
DEFAULTS = {
    "weight_decay": 0.0,
    "epochs": 10,
    "lr": 1e-4,
    "delta": 1.0,
    "frozen_statistics": True,
}
RULES = {"delta": rules.at_least(0)}
check = mixing.refused("mu_mis looks at each example's true class")


def another(key: jax.Array, label: jax.Array, classes: Any) -> jax.Array:
    """A class other than each label int `[B]`, uniformly."""
    shift = jax.random.randint(key, label.shape, 1, classes)
    return (label + shift) % classes


def sensitivity(logits_of: Any, images: jax.Array, label: jax.Array) -> jax.Array:
    """‖∇_x f_c(x)‖² of each image, `[B]`; c its label int `[B]`."""

    def total(images):
        return jnp.sum(jnp.take_along_axis(logits_of(images), label[:, None], 1))

    return jnp.sum(jnp.square(jax.grad(total)(images)), (1, 2, 3))


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Mean of ‖∇_x f_c‖² − ‖∇_x f_c'‖²; the context is how many classes c' is drawn from."""
    label = jnp.argmax(batch.targets, -1)
    other = another(batch.key, label, context)

    def logits_of(images):
        return batch.forward(params, images)

    return batch.mean(
        sensitivity(logits_of, batch.images, label) - sensitivity(logits_of, batch.images, other)
    )


def of_others(variables: Variables, batch: Batch, context: Any) -> jax.Array:
    """‖∇_x f_c'‖ of each image, `[B]`."""
    label = jnp.argmax(batch.targets, -1)
    other = another(batch.key, label, context)

    def logits_of(images):
        return batch.logits_of(variables, images)

    return jnp.sqrt(sensitivity(logits_of, batch.images, other))


def has_recovered(series: list[float], delta: float) -> bool:
    """Whether the last of the sensitivities is above their lowest, and above δ times the first."""
    return series[-1] > min(series) and series[-1] > delta * series[0]


def passes(task: Task, config: Any) -> Generator[Action, float, None]:
    """Descent on forget alone, until the other classes' sensitivity has recovered."""
    classes = np.int32(task.num_classes)  # a head may have more

    def measure(variables: Variables) -> float:
        rows = task.sweep(
            of_others, task.forget, variables=variables, reduce="stack", context=classes
        )
        return float(np.mean(rows))

    if not config.epochs:
        return
    series = [(yield Ask(measure))]
    for _ in range(config.epochs):
        yield Pass(
            objective,
            task.forget,
            task.labels,
            config.lr,
            config.epochs,
            train=not config.frozen_statistics,
            context=classes,
        )
        series.append((yield Ask(measure)))
        if has_recovered(series, config.delta):
            return
