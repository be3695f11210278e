"""Image operations: pure `op(image, ...) -> image` on uint8 `[H, W, C]`, C 1 or 3."""

import jax.numpy as jnp
from jax import Array, lax


def crop(image: Array, top: Array, left: Array, pad: int) -> Array:
    """The `[H, W, C]` window at (top, left), each in 0..2·pad, of the zero-padded image."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(image: Array, on: Array) -> Array:
    """The image mirrored left to right where `on`."""
    return jnp.where(on, image[:, ::-1], image)
