"""Convolution and batch norm with rules that XLA's CPU backend runs fast.

On a CPU most of a small ResNet's training step goes into the weight gradients of the early layers
and into the channel sums of batch norm. Both are written here as matrix products for the CPU; GPUs
and TPUs get the plain operations, chosen when the program is lowered.

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
CHUNKS = 8  # of the batch, so that a chunk's operands stay in cache
SMALLEST = 14  # below 14 x 14 XLA's own weight gradient is as fast


def plain_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's convolution with symmetric padding: images [N, H, W, C], kernel [k, k, C, D]."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 stride-1 convolution of images [N, H, W, C] with a kernel [3, 3, C, D]: [N, H, W, D]."""
    return plain_conv(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array):
    return plain_conv(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel = saved
    (dx,) = jax.vjp(lambda x: plain_conv(x, kernel), x)[1](dy)
    return dx, lax.platform_dependent(x, dy, cpu=_products, default=_convolution)


conv3x3.defvjp(_forward, _backward)


def _convolution(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The weight gradient as XLA computes it."""
    zeros = jnp.zeros((3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: plain_conv(x, kernel), zeros)[1](dy)[0]


def _products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The weight gradient [3, 3, C, D] by one matrix product per chunk of the batch."""
    size = max(1, len(x) // CHUNKS)

    def add(i: int | jax.Array, total: jax.Array) -> jax.Array:
        chunk = (lax.dynamic_slice_in_dim(array, i * size, size) for array in (x, dy))
        return total + _chunk_product(*chunk)

    total = jnp.zeros((3 * x.shape[-1], 3 * dy.shape[-1]))
    total = lax.fori_loop(0, len(x) // size, add, total)
    rest = len(x) % size
    if rest:
        total += _chunk_product(x[-rest:], dy[-rest:])
    return total.reshape(3, x.shape[-1], 3, dy.shape[-1]).transpose(2, 0, 1, 3).astype(x.dtype)


def _chunk_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The nine taps [3·C, 3·D] of one chunk: three shifted copies of each operand, not nine of one.

    gradient[i, j] = Σ_h,w x[h + i, w + j]ᵀ dy[h, w]: shift x along W by j and dy along H by i.
    """
    width = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    xs = jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], -1)
    ds = jnp.concatenate([jnp.pad(dy, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)], -1)
    xs, ds = lax.optimization_barrier((xs, ds))  # or XLA fuses them into a slow loop
    xs, ds = xs.reshape(-1, xs.shape[-1]), ds.reshape(-1, ds.shape[-1])
    return jnp.matmul(xs.T, ds, preferred_element_type=jnp.float32)


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
    y, mean, variance = normalise(x, scale, bias)
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
    custom_gradients: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, H / stride, W / stride, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if not self.custom_gradients:
            return plain_conv(x, kernel, self.stride)
        if self.size == 1:
            return jnp.einsum("nhwc,cd->nhwd", x[:, :: self.stride, :: self.stride], kernel[0, 0])
        if self.size == 3 and self.stride == 1 and x.shape[1] >= SMALLEST:
            return conv3x3(x, kernel)
        return plain_conv(x, kernel, self.stride)


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
