"""How an Equinox module that has its parameters becomes a model.

Equinox (https://github.com/patrick-kidger/equinox) is no dependency: who has such a module has it.
"""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxunlearn.errors import UserError
from jaxunlearn.models.model import Model, as_float32


def from_instance(module: eqx.Module) -> Model:
    """The model of a module, called with one image `[C, H, W]`, and with `key` where it takes one.

    Its floating arrays are the parameters, by their paths; `eqx.nn.inference_mode` sets its mode.
    It cannot be drawn anew: initial parameters are NaN, so that whatever trains from them stops.

    Raises:
      UserError: it keeps a state besides, as `eqx.nn.BatchNorm` does.
    """
    leaves = jax.tree.leaves(module, is_leaf=lambda leaf: isinstance(leaf, eqx.nn.StateIndex))
    if any(isinstance(leaf, eqx.nn.StateIndex) for leaf in leaves):
        raise UserError(
            f"{type(module).__name__} keeps an eqx.nn.State, as of eqx.nn.BatchNorm, which is not "
            "understood; give a pair of functions (init, apply) whose variables have it"
        )
    keyed = "key" in inspect.signature(type(module).__call__).parameters

    def init(key, images):
        del key, images
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), variables(module))

    def apply(values, images, train, key=None):
        net = eqx.nn.inference_mode(with_variables(module, values), not train)
        images = images.transpose(0, 3, 1, 2)
        if not keyed:
            return as_float32(jax.vmap(net)(images)), {}
        if not train:
            return as_float32(jax.vmap(lambda image: net(image, key=None))(images)), {}
        keys = jax.random.split(key, len(images))
        return as_float32(jax.vmap(lambda image, own: net(image, key=own))(images, keys)), {}

    return Model(init, apply)


def variables(module: eqx.Module) -> dict[str, Any]:
    """The module's floating arrays by path, as the model's parameters."""
    return {"params": dict(_named(module))}


def with_variables(module: eqx.Module, values: dict[str, Any]) -> eqx.Module:
    """A copy of the module with other parameters."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    leaves = [values["params"][name] for name, _ in _named(module)]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), leaves), rest)


def _named(module: eqx.Module) -> list[tuple[str, Any]]:
    """The floating arrays in order, with their paths."""
    leaves, _ = jax.tree.flatten_with_path(eqx.filter(module, eqx.is_inexact_array))
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/").replace("/", "."), leaf)
        for path, leaf in leaves
    ]
