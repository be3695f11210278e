"""The models that ship, by name; and a user's own, by path."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn import rules
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.models.cnn import CNN
from jaxunlearn.models.model import Model, from_flax, shipped
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.names import is_path, resolve
from jaxunlearn.rules import Rule

DEFAULTS = {
    # resnet18, resnet50 or cnn; or MODULE:NAME of your own, such as "mynets:MyNet".
    "name": "resnet18",
    "width": 64,  # channels of the first layer; the others are multiples of it
    "dtype": "float32",  # or bfloat16: of the computation; parameters stay float32
}
RULES: dict[str, Rule] = {
    "width": rules.whole(1),
    "dtype": rules.one_of(("float32", "bfloat16")),
}

# Called with those of `build`'s options that its signature takes; gives a `Model`.
MODELS: dict[str, Callable[..., Model]] = {
    "resnet18": functools.partial(shipped, ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": functools.partial(shipped, ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "cnn": functools.partial(shipped, CNN),
}


def build(
    name: str,
    *,
    num_classes: int,
    width: int = 64,
    dtype: str = "float32",
    custom_gradients: bool = True,
) -> Model:
    """A model by its name; for the same arguments one object, fit for a static jit argument.

    Args:
      name: a key of `MODELS`; or MODULE:NAME of a `flax.linen.Module` class or instance, of a
        `Model`, or of a function that returns either. Classes and functions are called with
        `num_classes` and with those of the other options that they take.
      num_classes: the number of logits.
      width: channels of the first layer; the others are multiples of it.
      dtype: "float32" or "bfloat16", of the computation; parameters, batch-norm moments and logits
        are float32.
      custom_gradients: the convolutions and moments that train fast on a CPU. False: XLA's own on
        every platform, which support forward-mode differentiation (`jax.jvp`, `jax.linearize`,
        `jax.hessian`).

    Raises:
      UserError: an unknown name, an option out of range, or code of the user's that fails.
    """
    rules.check({"width": width, "dtype": dtype}, RULES, "model")
    target = resolve("model", name, MODELS)
    try:
        return _build(name, target, num_classes, width, dtype, custom_gradients)
    except UserError:
        raise
    except Exception as error:  # a model from outside is the user's own code
        if not is_path(name):
            raise
        raise UserError(f"model {name!r} cannot be built: {one_line(error)}") from error


@functools.lru_cache
def _build(
    name: str, target: Any, num_classes: int, width: int, dtype: str, custom_gradients: bool
) -> Model:
    """Keyed by position, so that a default spelt out does not make another model."""
    made = target
    if not isinstance(target, nn.Module | Model):
        options = {
            "width": width,
            "dtype": jnp.dtype(dtype),
            "custom_gradients": custom_gradients,
        }
        taken = inspect.signature(target).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        options = {key: value for key, value in options.items() if takes_all or key in taken}
        made = target(num_classes=num_classes, **options)
    if isinstance(made, nn.Module):
        made = from_flax(made)
    if not isinstance(made, Model):
        raise UserError(
            f"model {name!r} must be a flax.linen.Module, a jaxunlearn Model, or a function that "
            f"returns either, got {type(made).__name__}"
        )
    return made


def module_of(name: str) -> str:
    """The module that defines the model of that name."""
    if is_path(name):
        return name.partition(":")[0]
    made = MODELS[name]
    return made.args[0].__module__ if isinstance(made, functools.partial) else made.__module__
