"""Boundary expand: train the forget set towards one more class, and then cut that class off.

Chen et al. 2023, https://arxiv.org/abs/2303.11570, as far as re-implementations agree
(https://github.com/OPTML-Group/Unlearn-Saliency, `boundary_ex.py`, which leaves the extra output in
the model that it evaluates; here it is gone). The extra output is a linear function of what the
last layer sees, drawn at random, so it needs a model that tells its features. Batch statistics stay
the original's, since features are those of evaluation.

Made for whole classes, at 1e-5, in training mode: at that rate the features of evaluation, which
nothing normalises, moved so far that small residual networks lost about half of their accuracy on
CIFAR-10 and HAM10000. At a lower one, a model that is sure pushes the extra output up without
lowering the others, and then hardly anything is forgotten once it is cut off.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.task import Task
from jaxunlearn.models.model import Model
from jaxunlearn.training.passes import Action, Pass, Replace, Variables, cross_entropy

NEEDS = ("forget",)
COST = "1.6 · E · f: the extra output goes back through the features on its own"
FIRST = True
DEFAULTS = {"weight_decay": 0.0, "batch_size": 64, "epochs": 10, "lr": 1e-5}
EXTRA = "extra output"  # its name in the parameters


@functools.cache
def widened(model: Model) -> Model:
    """The model with one more output, from its features."""
    if model.features is None:
        raise UserError(
            "boundary_expand adds an output to what the last layer sees, and the model tells no "
            "features; give it a function of them (see the docs), or choose another method"
        )
    features = model.features

    def apply(variables, images, train, key=None):
        net = cut(variables)
        logits, state = model.apply(net, images, train, key)
        extra = variables["params"][EXTRA]
        seen = features(net, images).astype(jnp.float32)
        return jnp.concatenate([logits, seen @ extra["kernel"] + extra["bias"][None]], -1), state

    return Model(model.init, apply)


def cut(variables: Variables) -> Variables:
    """Variables without the extra output."""
    params = {name: value for name, value in variables["params"].items() if name != EXTRA}
    return {**variables, "params": params}


def expanded(task: Task) -> Variables:
    """The original's variables with an extra output, drawn as PyTorch's linear layers."""
    features = task.bench.setup.model.features
    assert features is not None
    shapes = jax.eval_shape(
        features,
        task.original,
        jax.ShapeDtypeStruct((1, *task.bench.images.shape[1:]), jnp.float32),
    )
    size = shapes.shape[-1]
    rng = stage_rng("boundary_expand", task.seed)
    # U(±1/√fan-in), the bias as well
    drawn = rng.uniform(-(size**-0.5), size**-0.5, (size + 1, 1)).astype(np.float32)
    extra = {"kernel": drawn[:size], "bias": drawn[size]}
    return {**task.original, "params": {**task.original["params"], EXTRA: extra}}


def passes(task: Task, config: Any) -> Iterator[Action]:
    """Cross-entropy to the extra class, on the forget set alone; then without it."""
    if not config.epochs:
        return
    model = widened(task.bench.setup.model)
    labels = np.full_like(task.labels, task.num_logits)
    yield Replace(expanded(task))
    for _ in range(config.epochs):
        yield Pass(
            cross_entropy,
            task.forget,
            labels,
            config.lr,
            config.epochs,
            train=False,
            model=model,
        )
    yield Replace(cut)
