"""Image operations on uint8 `[H, W, C]`, C 1 or 3, that give what Pillow gives, to the bit.

A `vmap` over `lax.switch` would compute every branch for every image. Here each op is a case of
one fixed pass: a nearest-neighbour affine warp, then `base + table[image − base]`, where base is
zero, the grey copy, the smoothed copy or the mean. Only a few images of a batch want a base, or a
table made from their histogram: a CPU makes these for them one after the other, an accelerator,
which a loop would leave idle, for all at once. What can be known ahead (warp coefficients, products
with an enhancer's factor) is computed on the host as Pillow computes it, in float64 or float32;
what is left for the device is integer arithmetic, look-ups and one float32 addition, which no
compiler can contract or reorder.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxunlearn.errors import UserError

ZERO, GREY, SMOOTH, MEAN = range(4)
GIVEN, AUTOCONTRAST, EQUALIZE = range(3)
DIFFERENCES = np.arange(-255, 256)
LEVELS = np.arange(256)


class Step(NamedTuple):
    """One op at one magnitude, as numbers: what `run` does to an image.

    Attributes:
      warp: int32 `[6]`, 16.16 fixed point: output (x, y) comes from (a·x + b·y + c, d·x + e·y + f).
      table: float32 `[511]`: what to add to base, by image − base from −255 to 255.
      base: int32, which base: ZERO, GREY, SMOOTH or MEAN.
      kind: int32, which table: GIVEN, or one made from the image.
    """

    warp: Any = np.array([1 << 16, 0, 1 << 15, 0, 1 << 16, 1 << 15], np.int32)
    table: Any = DIFFERENCES.astype(np.float32)
    base: Any = np.int32(ZERO)
    kind: Any = np.int32(GIVEN)


# ---- Encoding on the host: magnitude → Step


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Step:
    """Pillow's `transform(AFFINE, NEAREST)`: 16.16 fixed point, half a pixel in."""
    exact = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return Step(warp=np.array([math.floor(v * 65536 + 0.5) for v in exact], np.int32))


def _rotate(degrees: float, height: int, width: int) -> Step:
    """Pillow's `rotate`: degrees counter-clockwise about the centre."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return _affine(
        cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    )  # fmt: skip


def _blend(base: int, factor: float) -> Step:
    """Pillow's enhancers: base + factor·(image − base), with the product rounded to float32."""
    return Step(base=np.int32(base), table=np.float32(factor) * DIFFERENCES.astype(np.float32))


def _table(values: np.ndarray) -> Step:
    """A table over the 256 levels."""
    return Step(table=np.concatenate([np.zeros(255), values]).astype(np.float32))


ENCODERS: dict[str, Callable[[float, int, int], Step]] = {
    "identity": lambda v, h, w: Step(),
    "shear_x": lambda v, h, w: _affine(1, v, 0, 0, 1, 0),
    "shear_y": lambda v, h, w: _affine(1, 0, 0, v, 1, 0),
    # Pillow translates in float64; only the nearest whole pixel matters.
    "translate_x": lambda v, h, w: _affine(1, 0, math.floor(v + 0.5), 0, 1, 0),
    "translate_y": lambda v, h, w: _affine(1, 0, 0, 0, 1, math.floor(v + 0.5)),
    "rotate": _rotate,
    "brightness": lambda v, h, w: _blend(ZERO, v),
    "color": lambda v, h, w: _blend(GREY, v),
    "contrast": lambda v, h, w: _blend(MEAN, v),
    "sharpness": lambda v, h, w: _blend(SMOOTH, v),
    "posterize": lambda v, h, w: _table(LEVELS & ~(2 ** (8 - int(v)) - 1)),
    "solarize": lambda v, h, w: _table(np.where(v > LEVELS, LEVELS, 255 - LEVELS)),
    "autocontrast": lambda v, h, w: Step(kind=np.int32(AUTOCONTRAST)),
    "equalize": lambda v, h, w: Step(kind=np.int32(EQUALIZE)),
    "invert": lambda v, h, w: _table(255 - LEVELS),
}


def apply(name: str, image: Array, magnitude: float = 0.0) -> Array:
    """Does the op of that name (`ENCODERS`) to an image.

    Magnitudes mean what they mean in Pillow: shear as a slope, translation in pixels (positive
    moves the content left or up), rotation in degrees counter-clockwise, enhancers as the factor
    that leaves the image alone at 1, posterize in bits, solarize as the threshold; the rest
    ignore it. What a warp uncovers is 0.

    Args:
      name: the op.
      image: uint8 `[H, W, C]`.
      magnitude: a Python number.
    """
    step = ENCODERS[name](magnitude, *image.shape[:2])
    return run(jnp.asarray(image)[None], Step(*(jnp.asarray(field)[None] for field in step)))[0]


# ---- The pass on the device


def run(images: Array, steps: Step) -> Array:
    """Does one encoded op to each image, uint8 `[B, H, W, C]`; fields of steps are `[B, ...]`."""
    bases, tables = lax.platform_dependent(images, steps, cpu=for_those, default=for_all)
    return jax.vmap(_look_up)(jax.vmap(_warp)(images, steps.warp), bases, tables)


def for_all(images: Array, steps: Step) -> tuple[Array, Array]:
    """Bases uint8 `[B, H, W, C]` and tables float32 `[B, C, 511]`: each image has all, and one."""
    cases = [jax.vmap(case)(images) for case in BASES]
    bases = jnp.select([_each(steps.base, images) == i for i in range(len(BASES))], cases)
    cases = [jax.vmap(case)(images) for case in (_histogram_table(t) for t in MADE_TABLES)]
    tables = _given(images, steps)
    return bases, jnp.select(
        [_each(steps.kind, tables) == i for i in range(1, len(cases) + 1)], cases, tables
    )


def for_those(images: Array, steps: Step) -> tuple[Array, Array]:
    """The same, made only for those images that want them, in a loop."""

    def base(image, which):
        return lax.switch(which, BASES, image)

    def table(image, which):
        return lax.switch(which - 1, [_histogram_table(t) for t in MADE_TABLES], image)

    return (
        _fill(jnp.zeros_like(images), base, images, steps.base),
        _fill(_given(images, steps), table, images, steps.kind),
    )


def _fill(into: Array, make: Callable[[Array, Array], Array], images: Array, which: Array) -> Array:
    """`into` with the rows where `which` `[B]` is not 0 recomputed from their images."""
    wanted = which != 0
    order = jnp.argsort(~wanted, stable=True)

    def body(i, into):
        row = order[i]
        return lax.dynamic_update_index_in_dim(into, make(images[row], which[row]), row, 0)

    return lax.fori_loop(0, jnp.sum(wanted), body, into)


def _each(values: Array, like: Array) -> Array:
    """Values `[B]` with the rank of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _given(images: Array, steps: Step) -> Array:
    """The tables that the steps bring, for every channel; float32 `[B, C, 511]`."""
    return jnp.repeat(steps.table[:, None], images.shape[-1], axis=1)


def _warp(image: Array, warp: Array) -> Array:
    """Nearest-neighbour affine warp, 0 where the source lies outside."""
    height, width = image.shape[:2]
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    from_x = (warp[0] * x + warp[1] * y + warp[2]) >> 16
    from_y = (warp[3] * x + warp[4] * y + warp[5]) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    pixels = image[jnp.clip(from_y, 0, height - 1), jnp.clip(from_x, 0, width - 1)]
    return jnp.where(inside[:, :, None], pixels, 0)


def _look_up(image: Array, base: Array, tables: Array) -> Array:
    """`base + table[image − base]` clipped and cut to whole levels; tables float32 `[C, 511]`."""
    difference = image.astype(jnp.int32) - base + 255
    channel = jnp.arange(image.shape[-1])[None, None, :]
    return jnp.clip(base + tables[channel, difference], 0, 255).astype(jnp.uint8)


def _histogram_table(make: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """From an image to its table float32 `[C, 511]`, given one from counts to levels."""

    def table(image):
        levels = make(histogram(image)).astype(jnp.float32)
        return jnp.pad(levels, ((0, 0), (255, 0)))  # image − 0 is never below 0

    return table


def histogram(image: Array) -> Array:
    """How often each level occurs, int32 `[C, 256]`."""
    channels = image.shape[-1]
    # One flat scatter: 60 times faster on CPU than one-hot matrix products, 15 than a sort.
    index = image.astype(jnp.int32) + 256 * jnp.arange(channels)[None, None, :]
    return jnp.zeros(channels * 256, jnp.int32).at[index.ravel()].add(1).reshape(channels, 256)


def equalize_table(counts: Array) -> Array:
    """Pillow's equalize: int32 `[C, 256]` from counts `[C, 256]`."""
    below = jnp.cumsum(counts, axis=1) - counts
    highest = jnp.max(jnp.where(counts > 0, LEVELS[None], 0), axis=1, keepdims=True)
    # Pixels below the highest level, shared out over 255 steps; too few of them: no change.
    step = jnp.take_along_axis(below, highest, axis=1) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, LEVELS[None])


def autocontrast_table(counts: Array) -> Array:
    """Pillow's autocontrast: int32 `[C, 256]` from counts `[C, 256]`."""
    low = jnp.min(jnp.where(counts > 0, LEVELS[None], 255), axis=1, keepdims=True)
    high = jnp.max(jnp.where(counts > 0, LEVELS[None], 0), axis=1, keepdims=True)
    exact = jnp.clip(255 * (LEVELS[None] - low) // jnp.maximum(high - low, 1), 0, 255)
    masks, which = _float64_shortfalls()
    bits = jnp.asarray(masks)[jnp.asarray(which)[low[:, 0], high[:, 0]]]
    short = (bits[:, LEVELS // 8] >> (LEVELS % 8)[None].astype(np.uint8)) & 1
    return jnp.where(high > low, exact - short, LEVELS[None])


@functools.cache
def _float64_shortfalls() -> tuple[np.ndarray, np.ndarray]:
    """Where Pillow's float64 falls just short of a whole level and loses it, as bits.

    Returns:
      uint8 `[M, 32]` bit masks over the 256 levels; which mask, uint16 `[256, 256]`, by the
      lowest and the highest level of the image.
    """
    packed = np.zeros((256, 256, 32), np.uint8)
    for low in range(255):
        span = np.arange(1, 256 - low)[:, None]
        scale = 255.0 / span
        pillow = (LEVELS * scale + -low * scale).astype(int)
        short = (pillow < 255 * (LEVELS - low) // span) & (LEVELS >= low) & (LEVELS <= low + span)
        packed[low, low + 1 :] = np.packbits(short, axis=1, bitorder="little")
    masks, which = np.unique(packed.reshape(-1, 32), axis=0, return_inverse=True)
    return masks, which.reshape(256, 256).astype(np.uint16)


def grey(image: Array) -> Array:
    """Pillow's luma on every channel; uint8 `[H, W, C]`."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., c : c + 1].astype(jnp.int32) for c in range(3))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return jnp.broadcast_to(luma.astype(jnp.uint8), image.shape)


def mean(image: Array) -> Array:
    """The mean of the luma, rounded; uint8 `[]`."""
    luma = grey(image)[..., 0]
    return ((2 * jnp.sum(luma, dtype=jnp.int32) + luma.size) // (2 * luma.size)).astype(jnp.uint8)


def smooth(image: Array) -> Array:
    """Pillow's SMOOTH filter, 1 1 1 / 1 5 1 / 1 1 1 over 13, border as it was."""
    levels = image.astype(jnp.uint16)
    columns = levels[:-2] + levels[1:-1] + levels[2:]
    total = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * levels[1:-1, 1:-1]
    # Rounding to nearest meets no ties, 13 being odd.
    inner = jnp.pad(((2 * total + 13) // 26).astype(jnp.uint8), ((1, 1), (1, 1), (0, 0)))
    # Not `image.at[1:-1, 1:-1].set`, which XLA does in place on CPU while still reading the image.
    return fill_box(image, (1, 1, image.shape[0] - 1, image.shape[1] - 1), inner)


# By number: what `Step.base` and, from 1, `Step.kind` mean.
BASES = (jnp.zeros_like, grey, smooth, lambda image: jnp.full_like(image, mean(image)))
MADE_TABLES = (autocontrast_table, equalize_table)


# ---- Ops outside the fixed pass


def crop(image: Array, top: Array, left: Array, pad: int) -> Array:
    """The `[H, W, C]` window at (top, left), each in 0..2·pad, of the zero-padded image."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(image: Array, on: Array) -> Array:
    """The image mirrored left to right where `on`."""
    return jnp.where(on, image[:, ::-1], image)


def quarter_turns(image: Array, turns: Array) -> Array:
    """The image turned counter-clockwise by 0 to 3 quarters; by 0 or 2 where it is not square."""
    half = jnp.where(turns >= 2, image[::-1, ::-1], image)
    if image.shape[0] != image.shape[1]:
        return half
    return jnp.where(turns % 2 == 1, half.swapaxes(0, 1)[::-1], half)


def fill_box(image: Array, box: Sequence[Any] | Array, value: Array) -> Array:
    """The image with the pixels of box (top, left, bottom, right) taken from `value`."""
    y, x = jnp.arange(image.shape[0])[:, None, None], jnp.arange(image.shape[1])[None, :, None]
    inside = (y >= box[0]) & (x >= box[1]) & (y < box[2]) & (x < box[3])
    return jnp.where(inside, value, image)


def mix(images: list[Array], weights: Array) -> Array:
    """The weighted mean of images, rounded; int32 weights `[n]` that sum to 65536.

    In whole numbers, so that equal images mix to themselves and every device gives the same bits.
    """
    total = jnp.int32(0)
    for image, weight in zip(images, weights, strict=True):
        total = total + image.astype(jnp.int32) * weight
    return ((total + (1 << 15)) >> 16).astype(jnp.uint8)


# Optical densities of haematoxylin, eosin and residual (DAB) in red, green and blue.
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED = HED / np.linalg.norm(HED, axis=1, keepdims=True)


def stain(image: Array, scale: Array, shift: Array) -> Array:
    """Scales and shifts the amount of each stain, float32 `[3]` each, in HED space.

    Colour deconvolution of Ruifrok & Johnston, 2001; the augmentation of Tellez et al., 2018,
    https://arxiv.org/abs/1808.05896. Densities are natural logarithms of (level + 1) / 256.
    """
    if image.shape[-1] != 3:
        raise UserError(
            f"stain_jitter needs colour images and these have {image.shape[-1]} channel; "
            "remove stain_jitter from config.augment"
        )
    exact = functools.partial(jnp.einsum, "hwc,cd->hwd", precision=lax.Precision.HIGHEST)
    density = -jnp.log((image.astype(jnp.float32) + 1) / 256)
    amounts = exact(density, jnp.asarray(np.linalg.inv(HED), jnp.float32))
    amounts = amounts * scale[None, None] + shift[None, None]
    levels = 256 * jnp.exp(-exact(amounts, jnp.asarray(HED, jnp.float32))) - 1
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)
