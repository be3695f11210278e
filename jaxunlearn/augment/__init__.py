"""Augmentations: functions of uint8 images and keys that run inside the compiled step.

augment = build("trivialaugment")
images, targets = augment(images, targets, key)
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array

from jaxunlearn.augment import policies
from jaxunlearn.errors import UserError, unknown

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

# What a plain name means: the seven scenarios of the papers, with crop and flip before the policy.
# A policy alone is a tuple: ("trivialaugment",).
SCENARIOS: dict[str, tuple[str, ...]] = {
    "none": (),
    "crop_flip": ("crop_flip",),
    "randaugment": ("crop_flip", "randaugment"),
    "autoaugment": ("crop_flip", "autoaugment"),
    "random_erasing": ("crop_flip", "random_erasing"),
    "trivialaugment": ("crop_flip", "trivialaugment"),
    "augmix": ("crop_flip", "augmix"),
}


# Policies with the parameters given to each, all hashable: what an augmentation is, however named.
Chain = tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def build(names: tuple[str, ...] | str, **params: Mapping[str, Any]) -> Augment:
    """Builds the augmentation that does the named policies one after the other.

    Args:
      names: a scenario (`SCENARIOS`) or policy (`POLICIES`) by its name, or a tuple of policies.
      **params: parameters by policy, e.g. `randaugment={"num_ops": 2, "magnitude": 9}`; those of
        a policy that is not among the names have no effect, so scenarios can share them.

    Returns:
      `augment(images, targets, key) -> (images, targets)`: pure, with images uint8
      `[B, H, W, C]`, targets float32 `[B, num_classes]` and one key an example made from `key`.
      The same chain gives the identical function, so it can be a static argument of jit.

    Raises:
      UserError: an unknown name or parameter, or a parameter out of range.
    """
    return build_chain(chain(names, **params))


def defaults() -> dict[str, dict[str, Any]]:
    """The parameters of every policy that has any, with their defaults."""
    return {name: params for name in POLICIES if (params := _defaults(name))}


def _defaults(name: str) -> dict[str, Any]:
    """A policy's parameters with their defaults."""
    parameters = inspect.signature(POLICIES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def chain(names: tuple[str, ...] | str, **params: Mapping[str, Any]) -> Chain:
    """The policies that the arguments of `build` come down to; equal where these mean the same."""
    if isinstance(names, str):
        if names not in SCENARIOS and names not in POLICIES:
            raise unknown("augmentation", names, POLICIES | SCENARIOS)
        names = SCENARIOS.get(names, (names,))
    for name in (*names, *params):
        if name not in POLICIES:
            raise unknown("augmentation", name, POLICIES)
    frozen = {}
    for name, given in params.items():
        default = _defaults(name)
        for param in given:
            if param not in default:
                raise unknown(f"parameter of {name}", param, default)
        items = [(p, tuple(v) if isinstance(v, list) else v) for p, v in given.items()]
        frozen[name] = tuple(sorted((p, v) for p, v in items if v != default[p]))
    return tuple((name, frozen.get(name, ())) for name in names if name != "none")


@functools.cache
def build_chain(chain: Chain) -> Augment:
    """The augmentation of a chain; one object a chain."""
    pairs = []
    for name, params in chain:
        try:
            pairs.append(POLICIES[name](**dict(params)))
        except TypeError as error:
            raise UserError(f"augmentation {name}: {dict(params)}: {error}") from error

    def augment(images, targets, key):
        for i, (draw, apply) in enumerate(pairs):
            choices = policies.draw_batch(draw, jax.random.fold_in(key, i), images.shape)
            images, targets = apply(images, targets, choices)
        return images, targets

    return augment
