"""XLA's convolutions on a CPU, but for those that are faster as matrix products there.

These are convolutions with a kernel of one pixel, and the gradients of 3x3 kernels in the layers
that see many pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn.convolution.literal import Convolution

CHUNKS = 8  # of the batch, so that a chunk's operands stay in cache
SMALLEST = 14  # images below 14 x 14 have XLA's own weight gradient, which is as fast
FLOATS = ("float32", "bfloat16")


def choose(found: Convolution) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """What computes a convolution here, if products do: see `rewrite`."""
    if found.dtype not in FLOATS:
        return None
    if found.is_weight_gradient:
        return _choose_gradient(found)
    if found.rhs[2:] != (1, 1) or any(found.low) or found.lhs_dilation != (1, 1):
        return None

    def one_pixel(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        x = _in_order(lhs, found.lhs_order, (0, 2, 3, 1))[:, :: found.stride[0], :: found.stride[1]]
        kernel = _in_order(rhs, found.rhs_order, (2, 3, 1, 0))[0, 0]
        out = _in_order(jnp.einsum("nhwc,cd->nhwd", x, kernel), (0, 2, 3, 1), found.out_order)
        return out.astype(found.out_dtype)

    return one_pixel if not any(found.high) else None


def _choose_gradient(found: Convolution) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """That of the gradient of a kernel of 3x3, with a stride of 1 or 2 and a padding of 1."""
    (height, width), stride = found.lhs[2:], found.rhs_dilation[0]
    known = (
        found.stride == found.lhs_dilation == found.low == (1, 1)
        and found.out[2:] == (3, 3)
        and found.rhs_dilation in ((1, 1), (2, 2))
        and found.rhs[2:] == (-(-height // stride), -(-width // stride))
        and height >= SMALLEST
    )
    if not known:
        return None

    def gradient(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        # The convolution's channels are the layer's batch.
        x = _in_order(lhs, found.lhs_order, (1, 2, 3, 0))
        dy = _in_order(rhs, found.rhs_order, (1, 2, 3, 0))
        taps = _sum_of_chunks(x, dy, stride)
        return _in_order(taps, (2, 3, 0, 1), found.out_order).astype(found.out_dtype)

    return gradient


def _in_order(array: jax.Array, order: tuple[int, ...], wanted: tuple[int, ...]) -> jax.Array:
    """An array with other axes first: orders say which axis of the formula each one is."""
    return array.transpose([order.index(axis) for axis in wanted])


def _sum_of_chunks(x: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """The gradient [3, 3, C, D] of images [N, H, W, C] by one product per chunk of the batch."""
    size = max(1, len(x) // CHUNKS)
    product = _shifted if stride == 1 else _strided

    def add(i: int | jax.Array, total: jax.Array) -> jax.Array:
        chunk = (lax.dynamic_slice_in_dim(array, i * size, size) for array in (x, dy))
        return total + product(*chunk)

    total = jnp.zeros((3, 3, x.shape[-1], dy.shape[-1]))
    total = lax.fori_loop(0, len(x) // size, add, total)
    rest = len(x) % size
    return total + product(x[-rest:], dy[-rest:]) if rest else total


def _shifted(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The nine taps of one chunk, of stride 1: three shifted copies of each operand.

    gradient[i, j] = Σ_h,w x[h + i, w + j]ᵀ dy[h, w]: shift x along W by j and dy along H by i.
    """
    width = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    xs = jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], -1)
    ds = jnp.concatenate([jnp.pad(dy, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)], -1)
    taps = _product(xs, ds).reshape(3, x.shape[-1], 3, dy.shape[-1])
    return taps.transpose(2, 0, 1, 3)


def _strided(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The same of stride 2: nine slices of x.

    gradient[i, j] = Σ_h,w x[2h + i, 2w + j]ᵀ dy[h, w].
    """
    height, width = dy.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    xs = jnp.concatenate(
        [
            padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
            for i in range(3)
            for j in range(3)
        ],
        -1,
    )
    return _product(xs, dy).reshape(3, 3, x.shape[-1], dy.shape[-1])


def _product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Σ over all pixels of xᵀ dy, in float32."""
    x, dy = lax.optimization_barrier((x, dy))  # or XLA fuses them into a slow loop
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
    return jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)
