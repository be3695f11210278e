"""AMUN: fine-tune on the nearest adversarial neighbours of forget examples, under the wrong labels.

Ebrahimpour-Boroojeny et al. 2025, https://arxiv.org/abs/2503.00917, as in
https://github.com/Ali-E/AMUN. For every forget example a neighbour x' that the original takes for
another class: gradient steps of a tenth of `radius` within an L2 ball of that radius, in levels of
0 to 1, at most `steps` of them, the radius doubled until one is found. Then cross-entropy on the
neighbours under the original's (wrong) labels, on forget under its *true* labels, and on retain.
An example that the original gets wrong is its own neighbour.

The direction is that of the gradient of the margin, the log of the other classes' summed odds less
the true one's logit: cross-entropy's is a multiple of it, which in float32, as in the release,
rounds away where the model is sure, and then finds neighbours far off or none.

The search ends at the first step that changes the label; with a doubled radius it starts again at
the image, where the release goes on from where it was. Forget keeps its labels, so its accuracy
falls only as the boundary moves: reproductions find hardly any change. The published rate falls
tenfold with every epoch (`lr_epochs` 1), which leaves two that do something.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import rules
from jaxunlearn.methods import mixing, pixels
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass, Variables, cross_entropy
from jaxunlearn.training.step import batches

NEEDS = ("forget", "retain", "labels")
COST = "E · (1 + f) and the search: up to `steps` · f for every doubling of the radius"
DEFAULTS = {
    "batch_size": 128,
    "epochs": 10,
    "lr": 0.01,
    "lr_epochs": 1,  # after how many the rate is divided by 10, again and again
    "radius": 0.04,
    "steps": 50,
    "keep_forget": True,  # False: forget is left out, under its true labels
}
RULES = {
    "lr_epochs": rules.whole(1),
    "radius": rules.above(0),
    "steps": rules.whole(1),
}
DOUBLINGS = 16  # more than the widest images need
check = mixing.refused("amun trains on images of its own")


def ascend(variables: Variables, batch: Batch, context: Any) -> dict[str, jax.Array]:
    """What the model says of `context["at"]`, levels `[B, H, W, C]`, and one step uphill from it.

    Rows whose label has changed stay where they are.
    """

    def loss(levels):
        logits = batch.logits_of(variables, pixels.to_seen(levels, context))
        return jnp.sum(pixels.margin(logits, batch.targets)), logits

    start = pixels.to_levels(batch.images, context)
    at = jnp.where(context["restart"], start, context["at"])
    gradient, logits = jax.grad(loss, has_aux=True)(at)
    answer = jnp.argmax(logits, -1)
    changed = answer != jnp.argmax(batch.targets, -1)

    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), (1, 2, 3), keepdims=True))

    radius = context["radius"]
    moved = at + 0.1 * radius * gradient / jnp.maximum(norm(gradient), 1e-12) - start
    inside = moved * jnp.minimum(1, radius / jnp.maximum(norm(moved), 1e-12))
    next_one = jnp.clip(start + inside, 0, 1)
    then = jnp.where(changed[:, None, None, None], at, next_one)
    return {"at": then, "seen": at, "answer": answer, "changed": changed}


def neighbours(task: Task, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neighbours of the forget examples that the original takes for another class.

    Returns:
      Levels float32 `[n_f, H, W, C]` of 0 to 1, and the original's labels of them int `[n_f]`. What
      finds no neighbour is the image at the end of the search, under its own label.
    """
    variables, fixed = jax.device_put((task.original, pixels.scale(task)))
    size = task.bench.setup.batch_size
    images, labels = [], []
    for rows in batches(task.forget, size)[0]:
        shape = (size, *task.bench.images.shape[1:])
        kept = {"seen": np.zeros(shape, np.float32), "answer": np.zeros(size, np.int32)}
        found = np.zeros(size, bool)
        for doubling in range(DOUBLINGS):
            state = {"at": np.zeros(shape, np.float32)}
            for step in range(config.steps + 1):
                context = {
                    "at": state["at"],
                    "radius": np.float32(config.radius * 2**doubling),
                    "restart": np.bool_(step == 0),
                    **fixed,
                }
                state = task.sweep(
                    ascend, rows, variables=variables, context=context, reduce="stack"
                )
                new = ~found & (state["changed"] | (step == config.steps))
                for name, values in kept.items():
                    values[new] = state[name][new]
                found |= state["changed"]
                if found.all():
                    break
            if found.all():
                break
        images.append(kept["seen"])
        labels.append(kept["answer"])
    count = len(task.forget)
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Cross-entropy on the neighbours, on forget, and on retain, in one stream."""
    if not config.epochs:
        return
    levels, wrong = neighbours(task, config)
    known = (task.forget, task.retain) if config.keep_forget else (task.retain,)
    own = len(task.labels) + np.arange(len(levels))
    for epoch in range(config.epochs):
        yield Pass(
            cross_entropy,
            np.concatenate([*known, own]),
            np.concatenate([task.labels, wrong]),
            config.lr * 0.1 ** (epoch // config.lr_epochs),
            config.epochs,
            images=255 * levels,
        )
