"""The policies and scenarios by name, and how names and parameters become one function."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
from jax import Array

from jaxunlearn import rules
from jaxunlearn.augment import policies
from jaxunlearn.errors import UserError, shown, unknown

LARGEST = 1000  # of any parameter of a policy

Augment = Callable[[Array, Array, Array], tuple[Array, Array]]

POLICIES: dict[str, Callable[..., policies.Policy]] = {
    "none": policies.none,
    "crop_flip": policies.crop_flip,
    "rotate90_flip": policies.rotate90_flip,
    "trivialaugment": policies.trivialaugment,
    "randaugment": policies.randaugment,
    "autoaugment": policies.autoaugment,
    "augmix": policies.augmix,
    "random_erasing": policies.random_erasing,
    "mixup": policies.mixup,
    "cutmix": policies.cutmix,
    "stain_jitter": policies.stain_jitter,
}

# The seven scenarios of the papers, with crop and flip before the policy: what a single name means
# where it is one of these. A policy alone is a tuple: ("trivialaugment",).
SCENARIOS: dict[str, tuple[str, ...]] = {
    "none": (),
    "crop_flip": ("crop_flip",),
    "randaugment": ("crop_flip", "randaugment"),
    "autoaugment": ("crop_flip", "autoaugment"),
    "random_erasing": ("crop_flip", "random_erasing"),
    "trivialaugment": ("crop_flip", "trivialaugment"),
    "augmix": ("crop_flip", "augmix"),
}

# Policies with their parameters where these are not the defaults, all hashable: equal for the same
# augmentation, whatever names were given.
Chain = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def build(names: Sequence[str] | str, **params: Mapping[str, Any]) -> Augment:
    """Builds the augmentation that does the named policies one after the other.

    Args:
      names: a scenario of `SCENARIOS` or a policy of `POLICIES`; or several policies, a tuple or
        "a,b".
      **params: parameters by policy, e.g. `randaugment={"num_ops": 2, "magnitude": 9}`; those of
        a policy that is not among the names have no effect, so scenarios can share them.

    Returns:
      `augment(images, targets, key) -> (images, targets)`: pure, with images uint8
      `[B, H, W, C]`, targets float32 `[B, num_classes]` and one key per example made from `key`.
      The same chain gives the identical function, so it can be a static argument of jit.

    Raises:
      UserError: an unknown name or parameter, or a parameter out of range.
    """
    return build_chain(chain(names, **params))


def defaults() -> dict[str, dict[str, Any]]:
    """The parameters of every policy that has any, with their defaults: `config.augment_params`."""
    return {name: params for name in POLICIES if (params := _defaults(name))}


def _defaults(name: str) -> dict[str, Any]:
    """A policy's parameters with their defaults."""
    parameters = inspect.signature(POLICIES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def chain(names: Sequence[str] | str, **params: Mapping[str, Any]) -> Chain:
    """The chain that the arguments of `build` mean.

    Raises:
      UserError: an unknown name or parameter.
    """
    names = _policies(names)
    for name in (*names, *params):
        if not isinstance(name, str) or name not in POLICIES:
            raise unknown("augmentation", name, POLICIES)
    frozen = {}
    for name, given in params.items():
        default = _defaults(name)
        for param in given:
            if param not in default:
                raise unknown(f"parameter of {name}", param, default)
        for param, value in given.items():
            if not _is_like(value, default[param]):
                raise UserError(
                    f"augment_params.{name}.{param} must be like {default[param]!r}: finite, up to "
                    f"{LARGEST}, and whole where that is, got {shown(value)}"
                )
        items = [(p, tuple(v) if isinstance(v, list) else v) for p, v in given.items()]
        frozen[name] = tuple(sorted((p, v) for p, v in items if v != default[p]))
    return tuple((name, frozen.get(name, ())) for name in names if name != "none")


def _is_like(value: Any, default: Any) -> bool:
    """Whether a parameter is of its default's kind, a whole number, a number, or several."""
    if isinstance(default, tuple):
        several = isinstance(value, tuple | list) and len(value) > 0
        return several and all(_is_like(each, default[0]) for each in value)
    whole = not isinstance(default, int) or isinstance(value, Integral)
    return whole and rules.is_number(value) and abs(value) <= LARGEST


def _policies(names: Sequence[str] | str) -> tuple[str, ...]:
    """The names of the policies: a scenario's own, or those given."""
    if not isinstance(names, str | tuple | list):
        raise UserError(f"config.augment must be a name or a tuple of names, got {names!r}")
    if not isinstance(names, str):
        return tuple(names)
    if "," in names:
        return tuple(name for name in names.replace(" ", "").split(",") if name)
    if names not in SCENARIOS and names not in POLICIES:
        raise unknown("augmentation", names, POLICIES | SCENARIOS)
    return SCENARIOS.get(names, (names,))


@functools.cache
def build_chain(chain: Chain) -> Augment:
    """The augmentation of a chain; one object per chain."""
    pairs = []
    for name, params in chain:
        try:
            pairs.append(POLICIES[name](**dict(params)))
        except TypeError as error:
            raise UserError(f"augment_params.{name} has {dict(params)}: {error}") from error

    def augment(images, targets, key):
        for i, (draw, apply) in enumerate(pairs):
            choices = policies.draw_batch(draw, jax.random.fold_in(key, i), images.shape)
            images, targets = apply(images, targets, choices)
        return images, targets

    return augment
