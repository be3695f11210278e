"""The models that ship, by name; and a user's own, by path."""

import dataclasses
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn import rules
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.models.cnn import CNN
from jaxunlearn.models.model import MODES, Model, from_flax, is_nnx, makes_nnx, shipped
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.names import resolve
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

# What else models call `num_classes`; no other argument is taken to mean it.
CLASSES = (
    "n_classes",
    "nclasses",
    "numclasses",
    "classes",
    "num_labels",
    "n_labels",
    "num_outputs",
    "n_outputs",
    "out_features",
)
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
      name: a key of `MODELS`; or MODULE:NAME of what a key may stand for: a `flax.linen.Module`
        class or instance, a `flax.nnx.Module` class, a `Model`, or a function that returns one of
        these or a pair (init, apply). Classes and functions are called with those of the options
        below that they take, but for what a `functools.partial` sets; they may require no others.
        What makes an nnx module takes `rngs` besides.
      num_classes: the number of logits; an argument without this name gets it under the first of
        `CLASSES` that it takes, such as `n_classes` or `num_labels`.
      width: channels of the first layer; the others are multiples of it.
      dtype: "float32" or "bfloat16", of the computation; parameters, batch-norm moments and logits
        are float32.
      custom_gradients: the convolutions and moments that train fast on a CPU. False: XLA's own on
        every platform, which support forward-mode differentiation (`jax.jvp`, `jax.linearize`,
        `jax.hessian`).

    Raises:
      UserError: an unknown name, an option out of range, or code of the user's that fails.
    """
    return _made(name, num_classes, width, dtype, custom_gradients)[0]


def build_as_set(settings: Mapping[str, Any], num_classes: int) -> Model:
    """The model of `config.model`; raises where an option is changed that it does not take."""
    name, width, dtype = (settings[field] for field in ("name", "width", "dtype"))
    model, taken = _made(name, num_classes, width, dtype, True)
    for option, value in (("width", width), ("dtype", dtype)):
        if option not in taken and value != DEFAULTS[option]:
            takes = " and ".join(sorted(taken & {"width", "dtype"})) or "neither width nor dtype"
            raise UserError(
                f"model {name!r}: config.model.{option} is {value!r}, but it takes {takes}; leave "
                f"{option} at {DEFAULTS[option]!r}"
            )
    return model


def at_hand(value: Any, num_classes: int) -> Model:
    """The model that a value stands for, as a name's would; of a class or function for the classes.

    Raises:
      UserError: it stands for none, or code of the user's fails.
    """
    if isinstance(value, Model):
        return value
    try:
        if isinstance(value, nn.Module | tuple):
            return as_model(value)
        width, dtype = DEFAULTS["width"], DEFAULTS["dtype"]
        return _build("given", _Target.of(value), num_classes, width, dtype, True)[0]
    except UserError as error:
        raise UserError(f"the model that was given: {error}") from error
    except Exception as error:  # the user's own code
        raise UserError(f"the model that was given cannot be built: {one_line(error)}") from error


def _made(
    name: str, num_classes: int, width: int, dtype: str, custom_gradients: bool
) -> tuple[Model, set[str]]:
    """A model, and the names of the options that it takes."""
    rules.check({"width": width, "dtype": dtype}, RULES, "model")
    target = _Target.of(resolve("model", name, MODELS))
    try:
        return _build(name, target, num_classes, width, dtype, custom_gradients)
    except UserError as error:
        raise UserError(f"model {name!r}: {error}") from error
    except Exception as error:  # a model from outside is the user's own code
        raise UserError(f"model {name!r} cannot be built: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class _Target:
    """What a name stands for; it equals itself alone, since it may not be hashable."""

    identity: Any
    value: Any = dataclasses.field(compare=False)

    @classmethod
    def of(cls, value: Any) -> "_Target":
        """The target that a value is."""
        if isinstance(value, types.MethodType):  # made anew each time that it is looked up
            return cls((id(value.__self__), value.__func__), value)
        return cls(id(value), value)


@functools.lru_cache
def _build(
    name: str, target: _Target, num_classes: int, width: int, dtype: str, custom_gradients: bool
) -> tuple[Model, set[str]]:
    """Keyed by position, so that a default spelt out does not make another model."""
    options = {
        "num_classes": num_classes,
        "width": width,
        "dtype": jnp.dtype(dtype),
        "custom_gradients": custom_gradients,
    }
    made, taken = target.value, set[str]()
    for _ in range(2):  # a function may return a class
        if isinstance(made, nn.Module | Model) or not callable(made) or is_nnx(made):
            break
        made, names = _call(made, options)
        taken |= names
        if not isinstance(made, type):
            break
    return as_model(made), taken


def _call(target: Callable, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """What a class or function gives for the options that it takes, and their names.

    Where it takes `rngs` that is the call itself, which has to wait for them.
    """
    parameters = _parameters(target)
    named = {
        one.name: one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    other_name = next((name for name in CLASSES if name in named), None)
    if "num_classes" not in named and other_name:
        options = {other_name: options["num_classes"], **options}
        del options["num_classes"]
    fixed = target.keywords if isinstance(target, functools.partial) else {}
    given = {
        key: value
        for key, value in options.items()
        if (takes_all or key in named) and key not in fixed
    }
    taken = set(given)
    kind = functools.partial(target).func
    if isinstance(kind, type) and issubclass(kind, nn.Module):  # set anew for each call
        given |= {name: not MODES[name] for name in named.keys() & MODES.keys()}
    required = [
        name
        for name, one in named.items()
        if one.default is one.empty and name not in {*given, "rngs"}
    ]
    if required:
        raise UserError(
            f"{_called(target)} requires {', '.join(required)}; what is set is num_classes, width, "
            "dtype, custom_gradients, and rngs for nnx: call the number of classes num_classes, "
            "and give the others defaults"
        )
    first = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    positional = [given.pop(name) for name in itertools.takewhile(given.__contains__, first)]
    if "rngs" in named:
        return functools.partial(target, *positional, **given), taken
    return target(*positional, **given), taken


def _parameters(target: Callable) -> list[inspect.Parameter]:
    """What a class or function takes."""
    partial = functools.partial(target)
    made = partial.func
    if makes_nnx(made):
        # The class itself would show what its metaclass takes, which is anything.
        partial = functools.partial(made.__init__, None, *partial.args, **partial.keywords)  # type: ignore[call-arg]
    return list(inspect.signature(partial).parameters.values())


def _called(target: Any) -> str:
    return getattr(target, "__name__", type(target).__name__)


def as_model(made: Any) -> Model:
    """The model that a Flax module or class of nnx, a pair of functions or a `Model` stands for.

    Raises:
      UserError: it is none of these.
    """
    if isinstance(made, nn.Module | functools.partial) or is_nnx(made) or makes_nnx(made):
        made = from_flax(made)
    if type(made) is tuple and len(made) in (2, 3):  # (init, apply), and perhaps features
        made = Model(*made)
    if not isinstance(made, Model):
        raise UserError(
            "it must be a flax.linen.Module or its class, a flax.nnx.Module class, a jaxunlearn "
            "Model, a pair (init, apply) of functions, or a function that returns one of these, "
            f"got {type(made).__name__}"
        )
    for field, function in zip(made._fields, made, strict=True):
        if function is None and field == "features":
            continue
        if not callable(function) or not _is_hashable(function):
            got = type(function).__name__
            raise UserError(f"its {field} must be a function, and hashable as one is, got {got}")
    return made


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except Exception:  # the user's own code
        return False
    return True
