"""The library's notion of a model, pure functions, and how a Flax module becomes one."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """Pure functions, fit for a static jit argument.

    Attributes:
      init: (key, images float32 [N, H, W, C]) -> variables, a nested dict of "params" and, if the
        model has any, other collections that training updates, such as "batch_stats".
      apply: (variables, images, train, key) -> (logits float32 [N, num_classes], every collection
        but the params; unchanged where train is False). `key` feeds dropout and the like; it is
        None where train is False, and evaluation is deterministic.
      features: (variables, images) -> float32 [N, D], what the last layer sees in evaluation; None
        where the model has no such function.
    """

    init: Callable
    apply: Callable
    features: Callable | None = None


def from_flax(
    module: nn.Module, init: Callable | None = None, features: Callable | None = None
) -> Model:
    """The model of a Flax module.

    Args:
      module: called as `module(images float32 [N, H, W, C], train bool)`, gives logits
        `[N, num_classes]`. Its variables are "params" and collections that training updates, such
        as "batch_stats". In training it may draw from any stream of random numbers: `nn.Dropout`,
        `self.make_rng("name")`.
      init: as `Model.init`; the module's own where None.
      features: as `Model.features`.
    """

    def apply(variables, images, train, key=None):
        state = {name: value for name, value in variables.items() if name != "params"}
        if not train:
            return module.apply(variables, images, False), state
        # Flax derives every stream that has no key of its own from this one, each by its name.
        return module.apply(variables, images, True, rngs=key, mutable=list(state))

    return Model(init or (lambda key, images: module.init(key, images, False)), apply, features)


def shipped(module: Callable[..., nn.Module], **fields: Any) -> Model:
    """A model that ships: initial values that compile fast, and features."""
    instance = module(**fields)

    def init(key, images):
        shapes = jax.eval_shape(functools.partial(instance.init, train=False), key, images)
        return _initialise(key, shapes)

    def features(variables, images):
        return instance.apply(variables, images, False, penultimate=True)

    return from_flax(instance, init, features)


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
