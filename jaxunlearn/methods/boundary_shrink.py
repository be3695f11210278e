"""Boundary shrink: teach every forget example the class just across its decision boundary.

Chen et al. 2023, https://arxiv.org/abs/2303.11570, as far as re-implementations agree
(https://github.com/OPTML-Group/Unlearn-Saliency, `boundary_sh.py`): the new label is what the
original says of the example's adversarial neighbour, one step of FGSM of `epsilon` in levels of 0
to 1, rounded to whole levels of 0 to 255 and kept within them. It is found once, on images that are
not augmented. The signs are those of the margin's gradient: of cross-entropy's, which is a multiple
of it, nothing is left in float32 where the model is sure.

The new label may be the true one: where the attack fails, an example is taught what it knew. Made
for whole classes, at 1e-5; tuned rates for random requests lie between 1e-8 and 1e-4, and at 1e-6
the weights hardly move. As published the model is in training mode on forget alone, so that at any
rate its running statistics become those of forget batches, which alone changes what it says;
`frozen_statistics` leaves the original's.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import rules
from jaxunlearn.methods import pixels
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass, Variables, cross_entropy

NEEDS = ("forget", "labels")
COST = "E · f + f"
DEFAULTS = {
    "weight_decay": 0.0,
    "batch_size": 64,
    "epochs": 10,
    "lr": 1e-5,
    "epsilon": 0.1,
    "frozen_statistics": False,
}
TUNE = {"lr": None, "epsilon": (0.03, 0.1, 0.3)}
RULES = {"epsilon": rules.at_least(0)}


def across(variables: Variables, batch: Batch, context: Any) -> jax.Array:
    """The class of each image's neighbour, `[B]`."""

    def loss(images):
        return jnp.sum(pixels.margin(batch.logits_of(variables, images), batch.targets))

    levels = pixels.to_levels(batch.images, context)
    # x' = clip(round₂₅₅(x + ε · sign ∇_x CE(f_o(x), y)), 0, 1): the margin's gradient has its signs
    moved = levels + context["epsilon"] * jnp.sign(jax.grad(loss)(batch.images))
    neighbour = jnp.clip(jnp.round(moved * 255) / 255, 0, 1)
    return jnp.argmax(batch.logits_of(variables, pixels.to_seen(neighbour, context)), -1)


def nearest_classes(task: Task, epsilon: float) -> np.ndarray:
    """The class of each forget example's neighbour under the original, int `[n_f]`."""
    context = {"epsilon": np.float32(epsilon), **pixels.scale(task)}
    return task.sweep(across, task.forget, context=context, reduce="stack")


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Cross-entropy to the new labels, on the forget set alone."""
    if not config.epochs:
        return
    labels = task.labels.copy()
    labels[task.forget] = nearest_classes(task, config.epsilon)
    for _ in range(config.epochs):
        yield Pass(
            cross_entropy,
            task.forget,
            labels,
            config.lr,
            config.epochs,
            train=not config.frozen_statistics,
        )
