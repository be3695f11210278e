"""Augmentation policies: each a pair of what is chosen at random and what is done with the choice.

A policy is a function of its parameters that returns `(draw, apply)`:

  draw(key, shape) -> choices                          one example of shape (H, W, C)
  apply(images, targets, choices) -> images, targets   a batch, choices stacked

so a test can fix the choices and carry the same ones out in Pillow.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxunlearn.augment import ops

Shape = tuple[int, ...]
Draw = Callable[[Array, Shape], Any]
Apply = Callable[[Array, Array, Any], tuple[Array, Array]]
Policy = tuple[Draw, Apply]


def per_image(op: Callable[[Array, Any], Array]) -> Apply:
    """The batched form of `op(image, choices) -> image`, which leaves targets as they are."""
    return lambda images, targets, choices: (jax.vmap(op)(images, choices), targets)


def none() -> Policy:
    """Leaves images and targets as they are."""
    return lambda key, shape: (), lambda images, targets, choices: (images, targets)


def crop_flip(padding: float = 4 / 32) -> Policy:
    """Zero-pads by `padding` of the size, crops at random, mirrors left to right with p .5."""

    def draw(key, shape):
        key_crop, key_flip = jax.random.split(key)
        most = 2 * round(padding * max(shape[:2]))
        return {
            "corner": jax.random.randint(key_crop, (2,), 0, most + 1),
            "flip": jax.random.bernoulli(key_flip),
        }

    def apply(image, choices):
        top, left = choices["corner"]
        pad = round(padding * max(image.shape[:2]))
        return ops.flip(ops.crop(image, top, left, pad), choices["flip"])

    return draw, per_image(apply)
