"""The library's notion of a model, pure functions, and how a Flax module becomes one."""

import dataclasses
import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError, ModifyScopeVariableError

from jaxunlearn.errors import UserError


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


# What modules call the argument that says whether they train, and its value where they do.
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "is_train": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
DRAWS = (
    "it draws random numbers in evaluation, where it must give one answer; take an argument train, "
    "and draw where it is True"
)
UPDATES = (
    "it updates its variables in evaluation, where an image's logits must not depend on others; "
    "take an argument train, and update where it is True"
)
UNKEPT = ("intermediates", "perturbations")  # collections of what a call leaves for an onlooker


def from_flax(module: Any, init: Callable | None = None, features: Callable | None = None) -> Model:
    """The model of a Flax module.

    The module is called with images float32 [N, H, W, C]; and with those arguments that say
    whether it trains: `train`, `training`, `is_training` or `is_train` (True in training),
    `deterministic`, `use_running_average` or `inference` (False in training); by position where
    they stand right after the images, by name otherwise. One that has them as fields in place of
    arguments is cloned with their values; one that has neither does the same in training as in
    evaluation. It gives nothing but logits [N, num_classes], of any floating type: they become
    float32.

    Args:
      module: a `flax.linen.Module`, whose variables are "params" and collections that training
        updates, such as "batch_stats"; sown "intermediates" are dropped, as are the axis names of
        `nn.with_partitioning`. In training it may draw from any stream of random numbers:
        `nn.Dropout`, `self.make_rng("name")`. Or a class or function that makes a
        `flax.nnx.Module`, called as `module(rngs=nnx.Rngs(…))`, so that each seed has initial
        parameters of its own; `train()` or `eval()` sets its mode. All of its state that is neither
        a parameter nor of a random stream, plain arrays included, is the collection "state".
      init: as `Model.init`; the module's own where None.
      features: as `Model.features`.

    Raises:
      UserError: it is neither, or its call needs other arguments. What it computes is looked at
        when there is data: see `jaxunlearn.models.dry_run`.
    """
    if not isinstance(module, nn.Module):
        return _from_nnx(module, init, features)
    modes = Modes.of(type(module), varied=not isinstance(module, nn.Sequential))
    fields = {} if any(modes) else _mode_fields(module)

    def call(function: str, train: bool, *args: Any, **how: Any) -> Any:
        source = module
        if fields:
            cloned: dict[str, Any] = {name: train == on for name, on in fields.items()}
            source = module.clone(**cloned)
        return modes.call(getattr(source, function), train, *args, **how)

    def start(key, images):
        kept = flax.core.DenyList(UNKEPT)
        return nn.unbox(flax.core.unfreeze(call("init", False, key, images, mutable=kept)))

    def apply(variables, images, train, key=None):
        state = {name: value for name, value in variables.items() if name != "params"}
        if not train:
            try:
                return as_float32(call("apply", False, variables, images)), state
            except InvalidRngError as error:
                raise UserError(f"{DRAWS} ({_cause(error)})") from error
            except ModifyScopeVariableError as error:
                raise UserError(f"{UPDATES} ({_cause(error)})") from error
        # Flax derives every stream that has no key of its own from this one, each by its name.
        logits, new = call("apply", True, variables, images, rngs=key, mutable=list(state))
        return as_float32(logits), new

    return Model(init or start, apply, features)


def _cause(error: Exception) -> str:
    """An error of Flax without the address of its page, which would crowd out the cause."""
    return " ".join(str(error).partition(" (https://")[0].split())


def _from_nnx(make: Any, init: Callable | None, features: Callable | None) -> Model:
    """The model of an nnx module."""
    if is_nnx(make):
        raise UserError(
            f"{type(make).__name__} is an nnx module that has its parameters, which would be the "
            "same for every seed; give its class, or a function that takes rngs and returns it"
        )
    if not callable(make) or (isinstance(make, type) and issubclass(make, nn.Module)):
        raise UserError(
            "from_flax takes a flax.linen.Module, such as MyNet(num_classes=2), or a function that "
            f"takes rngs and returns a flax.nnx.Module, got {make!r}"
        )
    from jaxunlearn.models.nnx import from_nnx  # which takes a second to load

    return from_nnx(make, init, features)


def is_nnx(value: Any) -> bool:
    """Whether this is an nnx module; nnx is loaded by those who use it."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def makes_nnx(value: Any) -> bool:
    """Whether this is a class of nnx modules."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, type) and issubclass(value, nnx.Module)


class Modes(NamedTuple):
    """The arguments of a module's call that say whether it trains: see `MODES`.

    Attributes:
      leading: those right after the images.
      others: the rest.
    """

    leading: dict[str, bool]
    others: dict[str, bool]

    @classmethod
    def of(cls, kind: type, varied: bool = False) -> "Modes":
        """Those of a module's class.

        Args:
          kind: the class.
          varied: whether `train` is one where the call takes any argument there is.

        Raises:
          UserError: the call needs other arguments than these and images.
        """
        _, *parameters = inspect.signature(kind.__call__).parameters.values()
        images, rest = parameters[:1], parameters[1:]
        single = [one for one in rest if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        found = {one.name: MODES[one.name] for one in single if one.name in MODES}
        unset = [one for one in single if one.name not in found and one.default is one.empty]
        if not images or images[0].kind is images[0].KEYWORD_ONLY or unset:
            given = ", ".join(one.name for one in parameters) or "nothing"
            raise UserError(
                f"{kind.__name__}.__call__ takes {given}; it must take images first, and besides "
                f"them may need any of {', '.join(MODES)}; give other arguments a default"
            )
        if not found and varied and any(one.kind is one.VAR_KEYWORD for one in rest):
            return cls({}, {"train": True})
        first = itertools.takewhile(
            lambda one: one.name in found and one.kind is not one.KEYWORD_ONLY, rest
        )
        leading = {one.name: found.pop(one.name) for one in list(first)}
        return cls(leading, found)

    def call(self, function: Callable, train: bool, *args: Any, **how: Any) -> Any:
        """The function of these arguments, told whether it trains."""
        leading, others = ({name: train == on for name, on in names.items()} for names in self)
        try:  # `static_argnums` of `nn.remat` and `nn.jit` counts positions
            return function(*args, *leading.values(), **others, **how)
        except jax.errors.ConcretizationTypeError:
            if not leading:
                raise
        return function(*args, **leading, **others, **how)  # and `static_argnames` goes by names


def _mode_fields(module: nn.Module) -> dict[str, bool]:
    """The fields of a module that say whether it trains."""
    names = [field.name for field in dataclasses.fields(module)]
    return {name: MODES[name] for name in names if name in MODES}


def as_float32(logits: Any) -> Any:
    """Logits of any floating type as float32; anything else as it is."""
    floating = isinstance(logits, jax.Array) and jnp.issubdtype(logits.dtype, jnp.floating)
    return logits.astype(jnp.float32) if floating else logits


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
