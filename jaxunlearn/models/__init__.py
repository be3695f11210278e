"""The models that ship, by name."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.errors import UserError, unknown
from jaxunlearn.models.cnn import CNN
from jaxunlearn.models.resnet import ResNet


class Model(NamedTuple):
    """A pair of pure functions; any Flax model fits.

    Attributes:
      init: (key, images float32 [N, H, W, C]) -> variables, a nested dict of "params" and, if the
        model has any, "batch_stats".
      apply: (variables, images, train) -> (logits float32 [N, num_classes], every collection but
        the params; unchanged where train is False).
    """

    init: Callable
    apply: Callable


def from_flax(module: nn.Module, init: Callable | None = None) -> Model:
    """The model of a Flax module.

    Args:
      module: called as `module(images float32 [N, H, W, C], train bool)`, gives logits
        `[N, num_classes]`. Its variables are "params" and collections that training updates, such
        as "batch_stats"; it may not ask for random keys, as dropout does.
      init: (key, images) -> variables; the module's own where None.
    """

    def apply(variables, images, train):
        state = {name: value for name, value in variables.items() if name != "params"}
        if not train:
            return module.apply(variables, images, False), state
        return module.apply(variables, images, True, mutable=list(state))

    return Model(init or (lambda key, images: module.init(key, images, False)), apply)


def build(
    name: str,
    *,
    num_classes: int,
    width: int = 64,
    dtype: str = "float32",
    plain: bool = False,
) -> Model:
    """A model by its name in `MODELS`; for the same arguments one object, fit for a static jit key.

    Args:
      name: a key of `MODELS`.
      num_classes: the number of logits.
      width: channels of the first layer; the others are multiples of it.
      dtype: "float32" or "bfloat16", of the computation; parameters, batch-norm moments and logits
        are float32.
      plain: plain convolutions and moments on every platform. Slower training on a CPU, but
        supports forward-mode differentiation (`jax.jvp`, `jax.linearize`, `jax.hessian`).

    Returns:
      The model.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if not (isinstance(width, int) and width >= 1):
        raise UserError(f"width {width!r}: give a whole number of channels, 1 or more")
    if dtype not in ("float32", "bfloat16"):
        raise unknown("dtype", dtype, ("float32", "bfloat16"))
    return _build(MODELS[name], num_classes, width, dtype, plain)


def _initialise(key: jax.Array, shapes: Any) -> Any:
    """Variables of these shapes: random kernels, unit scales and variances, zeros elsewhere.

    One draw serves all kernels: a draw for each would take longer to compile than a training step.
    Convolutions are He-normal (2015, https://arxiv.org/abs/1502.01852, over the fan-out), dense
    layers have the variance 1 / fan-in.
    """
    leaves, structure = jax.tree.flatten_with_path(shapes)
    names = [path[-1].key for path, _ in leaves]
    sizes = [leaf.size for name, (_, leaf) in zip(names, leaves, strict=True) if name == "kernel"]
    draws = iter(jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1]))
    values = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name == "kernel":
            dense = len(leaf.shape) == 2
            variance = 1 / leaf.shape[0] if dense else 2 / (np.prod(leaf.shape) / leaf.shape[-2])
            values.append(math.sqrt(variance) * next(draws).reshape(leaf.shape))
        else:
            values.append(jnp.full(leaf.shape, float(name in ("scale", "var"))))
    return jax.tree.unflatten(structure, values)


def shipped(module: Callable[..., nn.Module], **fields: Any) -> Model:
    """A model that ships, with initial values that compile fast."""
    instance = module(**fields)

    def init(key, images):
        shapes = jax.eval_shape(functools.partial(instance.init, train=False), key, images)
        return _initialise(key, shapes)

    return from_flax(instance, init)


# Called as (num_classes=, width=, dtype=, plain=), as `build` has them; gives a `Model`.
MODELS: dict[str, Callable[..., Model]] = {
    "resnet18": functools.partial(shipped, ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": functools.partial(shipped, ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "cnn": functools.partial(shipped, CNN),
}


@functools.lru_cache
def _build(make: Callable, num_classes: int, width: int, dtype: str, plain: bool) -> Model:
    """Keyed by position, so that a default spelt out is no other model."""
    return make(num_classes=num_classes, width=width, dtype=jnp.dtype(dtype), plain=plain)
