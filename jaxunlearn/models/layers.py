"""Convolution, and batch norm with sums that XLA's CPU backend runs fast.

The channel sums of batch norm are written here as matrix products for the CPU; GPUs and TPUs get
the plain operations, chosen when the program is lowered. Convolutions are plain, and exchanged on a
CPU when a program is compiled: see `jaxunlearn.convolution`.

`jax.custom_vjp` allows reverse mode, `vmap` and sharding, but no forward mode (`jax.jvp`,
`jax.linearize`, `jax.hessian`): `custom_gradients=False` uses plain operations everywhere, which
support all of them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

MOMENTUM = 0.9  # of the running moments
EPSILON = 1e-5  # added to the variance


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's convolution with symmetric padding: images [N, H, W, C], kernel [k, k, C, D]."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _sum(x: jax.Array) -> jax.Array:
    """Sum of [N, H, W, C] over all but the channels: [1, 1, 1, C]."""
    return jnp.sum(x, (0, 1, 2), keepdims=True)


def _sum_by_products(x: jax.Array) -> jax.Array:
    """The same as a row of ones times a matrix for each image, and a sum of these.

    One product over all images would add up millions of values one after the other, and lose 50 to
    1,000 times as much to rounding.
    """
    pixels = x.reshape(len(x), -1, x.shape[-1])
    sums = jnp.ones((len(x), 1, pixels.shape[1]), x.dtype) @ pixels
    return jnp.sum(sums, (0, 1)).reshape(1, 1, 1, -1)


def _fast_sum(x: jax.Array) -> jax.Array:
    """The one that is fast on the platform."""
    return lax.platform_dependent(x, cpu=_sum_by_products, default=_sum)


def plain_normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, total=_sum):
    """Batch norm of float32 [N, H, W, C]: (normalised, mean, variance), moments [1, 1, 1, C]."""
    count = x.size // x.shape[-1]
    mean = total(x) / count
    variance = total(jnp.square(x - mean)) / count
    return (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias, mean, variance


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array):
    """`plain_normalise` with sums that are fast on every platform; moments carry no gradient."""
    return plain_normalise(x, scale, bias, _fast_sum)


def _normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    # Not by `normalise` itself: gradients of gradients must go through the moments.
    y, mean, variance = plain_normalise(x, scale, bias, _fast_sum)
    return (y, mean, variance), (x, scale, mean, lax.rsqrt(variance + EPSILON))


def _normalise_backward(saved, cotangents):
    x, scale, mean, inverse = saved
    dy = cotangents[0]
    count = x.size // x.shape[-1]
    unit = (x - mean) * inverse
    dbias, dscale = _fast_sum(dy), _fast_sum(dy * unit)
    # dx = scale / σ · (dy − mean(dy) − x̂ · mean(dy · x̂))
    dx = scale * inverse * (dy - dbias / count - unit * (dscale / count))
    return dx, dscale, dbias


normalise.defvjp(_normalise_forward, _normalise_backward)


class Conv(nn.Module):
    """Convolution without bias of [N, H, W, C], symmetric padding."""

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, H / stride, W / stride, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape).astype(self.dtype)
        return conv(x.astype(self.dtype), kernel, self.stride)


class BatchNorm(nn.Module):
    """Batch norm of [N, H, W, C] with running moments in the collection `batch_stats`."""

    dtype: Any = jnp.float32
    custom_gradients: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises by the batch's moments in training, by the running ones otherwise."""
        channels = x.shape[-1]
        scale, bias = (
            self.param(name, value, (channels,)).reshape(1, 1, 1, -1)
            for name, value in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        running = [
            self.variable("batch_stats", name, value, (channels,))
            for name, value in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        x = x.astype(jnp.float32)
        if not train:
            mean, variance = (moment.value.reshape(1, 1, 1, -1) for moment in running)
            y = (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias
            return y.astype(self.dtype)
        y, *moments = (normalise if self.custom_gradients else plain_normalise)(x, scale, bias)
        for old, new in zip(running, moments, strict=True):
            old.value = MOMENTUM * old.value + (1 - MOMENTUM) * new.reshape(-1)
        return y.astype(self.dtype)
