"""Image operations on uint8 `[H, W, C]`, C 1 or 3, that give what Pillow gives, to the bit.

A `vmap` over `lax.switch` would compute every branch for every image. So accelerators give all
images of a batch one fixed pass: a nearest-neighbour affine warp; a table of levels, given or made
from the histogram; and `base + factor·(image − base)`, where base is the grey copy, the smoothed
copy or the mean; of which each image keeps one. A TPU, which gathers slowly, does its look-ups as
products with one-hot matrices: whole numbers up to 256 are exact in bfloat16. A CPU takes one image
after the other and does only what its op needs, which a loop would be too slow for elsewhere. What
can be known ahead (warp coefficients, tables) is computed on the host as Pillow computes it, in
float64 or float32; what is left for the device is integer arithmetic, look-ups, and a float32
product and sum, which no compiler can contract or reorder.
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

SAME, WARP, TABLE, AUTOCONTRAST, EQUALIZE, GREY, SMOOTH, MEAN = range(8)
LEVELS = np.arange(256)
WITHIN = "promise_in_bounds"  # of a gather
GREY_STAIN = (
    "stain_jitter needs colour images, and these have 1 channel; take it out of config.augment"
)
Size = Sequence[int]  # (H, W)
Neighbour = tuple[int, int]  # along this axis, this far


class Step(NamedTuple):
    """One op at one magnitude, as numbers: what `run` does to an image.

    Attributes:
      kind: int32: SAME leaves the image alone, WARP and TABLE are told by their fields,
        AUTOCONTRAST and EQUALIZE make their own table, GREY, SMOOTH and MEAN their base.
      warp: int32 `[6]`, 16.16 fixed point: output (x, y) comes from (a·x + b·y + c, d·x + e·y + f).
      table: uint8 `[256]`: the new levels.
      factor: float32: of the image's difference from its base.
    """

    kind: Any = np.int32(SAME)
    warp: Any = np.array([1 << 16, 0, 1 << 15, 0, 1 << 16, 1 << 15], np.int32)
    table: Any = LEVELS.astype(np.uint8)
    factor: Any = np.float32(1)


# ---- Encoding on the host: magnitude → Step


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Step:
    """Pillow's `transform(AFFINE, NEAREST)`: 16.16 fixed point, half a pixel in."""
    exact = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    warp = np.array([math.floor(v * 65536 + 0.5) for v in exact], np.int32)
    return Step(np.int32(WARP), warp)


def _rotate(degrees: float, height: int, width: int) -> Step:
    """Pillow's `rotate`: degrees counter-clockwise about the centre."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return _affine(
        cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    )  # fmt: skip


def _blend(kind: int, factor: float) -> Step:
    """Pillow's enhancers: base + factor·(image − base), with the product rounded to float32."""
    return Step(np.int32(kind), factor=np.float32(factor))


def _brightness(factor: float) -> Step:
    """The same over a base of 0."""
    return _table(np.float32(factor) * LEVELS.astype(np.float32))


def _table(values: np.ndarray) -> Step:
    """A table over the 256 levels, clipped and cut to whole ones."""
    return Step(np.int32(TABLE), table=np.clip(values, 0, 255).astype(np.uint8))


ENCODERS: dict[str, Callable[[float, int, int], Step]] = {
    "identity": lambda v, h, w: Step(),
    "shear_x": lambda v, h, w: _affine(1, v, 0, 0, 1, 0),
    "shear_y": lambda v, h, w: _affine(1, 0, 0, v, 1, 0),
    # Pillow translates in float64; only the nearest whole pixel matters.
    "translate_x": lambda v, h, w: _affine(1, 0, math.floor(v + 0.5), 0, 1, 0),
    "translate_y": lambda v, h, w: _affine(1, 0, 0, 0, 1, math.floor(v + 0.5)),
    "rotate": _rotate,
    "brightness": lambda v, h, w: _brightness(v),
    "color": lambda v, h, w: _blend(GREY, v),
    "contrast": lambda v, h, w: _blend(MEAN, v),
    "sharpness": lambda v, h, w: _blend(SMOOTH, v),
    "posterize": lambda v, h, w: _table(LEVELS & ~(2 ** (8 - int(v)) - 1)),
    "solarize": lambda v, h, w: _table(np.where(v > LEVELS, LEVELS, 255 - LEVELS)),
    "autocontrast": lambda v, h, w: Step(np.int32(AUTOCONTRAST)),
    "equalize": lambda v, h, w: Step(np.int32(EQUALIZE)),
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
    return run_chains(images, jax.tree.map(lambda field: field[:, None], steps))


def run_chains(images: Array, steps: Step) -> Array:
    """Does several to each image, one after the other; fields of steps are `[B, n, ...]`."""
    return lax.platform_dependent(
        images,
        steps,
        cpu=one_by_one,
        tpu=functools.partial(all_at_once, by=PRODUCTS),
        default=functools.partial(all_at_once, by=GATHERS),
    )


class LookUps(NamedTuple):
    """How planes, uint8 `[B, C, H·W]`, are looked up in.

    Attributes:
      warp: (planes, warps int32 [B, 6], (H, W)) -> planes.
      levels: (planes, tables uint8 [B, C, 256]) -> planes.
      histogram: planes -> int32 [B, C, 256].
      rows: (table [n, m], which of its rows int32 [...]) -> [..., m].
    """

    warp: Callable[[Array, Array, Size], Array]
    levels: Callable[[Array, Array], Array]
    histogram: Callable[[Array], Array]
    rows: Callable[[np.ndarray, Array], Array]


def all_at_once(images: Array, steps: Step, by: LookUps) -> Array:
    """One fixed pass without branches over all images for each op of a chain.

    In planes, whose pixels lie next to each other: in pixels of three channels a TPU would fill
    three of its 128 lanes, and copies them into planes and back around every product.
    """
    count, *size, channels = images.shape

    def do(planes, steps):
        counts = by.histogram(planes)
        given = jnp.repeat(steps.table[:, None], channels, axis=1)
        made = {kind: make(counts, by.rows) for kind, make in MADE_TABLES.items()}
        levelled = by.levels(planes, _chosen(steps.kind, given, made))
        luma = grey(planes, axis=1)
        smoothed = smooth(planes, (2, 1), (2, size[1]), _inside(size, 1).reshape(1, 1, -1))
        bases = {GREY: luma, MEAN: mean(luma, axes=(1, 2)), SMOOTH: smoothed}
        base = _chosen(steps.kind, planes, bases)
        blended = _blend_with(planes, base, _each(steps.factor, 3))
        done = dict.fromkeys((TABLE, *MADE_TABLES), levelled) | dict.fromkeys(bases, blended)
        done[WARP] = by.warp(planes, steps.warp, size)
        planes = _chosen(steps.kind, planes, done)
        # Otherwise passes in a row would be fused, and the first repeated for every later pixel.
        return lax.optimization_barrier(planes), None

    def chains(planes, steps):
        by_pass = jax.tree.map(lambda field: field.swapaxes(0, 1), steps)
        # A TPU moves three times as much in the rounds of a loop.
        return lax.scan(do, planes, by_pass, unroll=by is PRODUCTS)[0]

    planes = images.transpose(0, 3, 1, 2).reshape(count, channels, -1)
    if by is PRODUCTS and planes.shape[-1] > SMALL:
        planes = _in_rounds(chains, planes, steps)
    else:
        planes = chains(planes, steps)
    return planes.reshape(count, channels, *size).transpose(0, 2, 3, 1)


def _in_rounds(chains: Callable[[Array, Step], Array], planes: Array, steps: Step) -> Array:
    """The chains of some images at a time, so that all between lies in a TPU's fast memory.

    Every chip has its share of each round: a round's images lie apart, by the number of rounds.
    """
    count = len(planes)
    least = max(count / ROUNDS, ROUND)
    of_chips = math.gcd(count, 64)  # which divides what chips share, as far as it can
    size = next(
        (n for n in range(of_chips, count, of_chips) if count % n == 0 and n >= least), count
    )
    apart = jax.tree.map(
        lambda a: a.reshape(size, count // size, *a.shape[1:]).swapaxes(0, 1), (planes, steps)
    )
    done = lax.map(lambda each: chains(*each), apart)
    return done.swapaxes(0, 1).reshape(planes.shape)


def _chosen(kinds: Array, default: Array, values: dict[int, Array]) -> Array:
    """Of each image the value of its kind, or the default."""
    of_kind = [_each(kinds, default.ndim) == kind for kind in values]
    return jnp.select(of_kind, [value.astype(default.dtype) for value in values.values()], default)


def _each(values: Array, rank: int) -> Array:
    """Values `[B]` with this rank."""
    return values.reshape(-1, *[1] * (rank - 1))


def _whole(levels: Array) -> Array:
    """Levels clipped and cut to uint8."""
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def _blend_with(image: Array, base: Array, factor: Array) -> Array:
    """`base + factor·(image − base)`, with the product rounded to float32."""
    base = base.astype(jnp.float32)
    product = factor * (image.astype(jnp.float32) - base)
    # To clip it changes no level, but keeps compilers from contracting product and sum.
    return _whole(base + jnp.clip(product, -255, 255))


def one_by_one(images: Array, steps: Step) -> Array:
    """Each chain by itself, so that its image stays in the cache; each op the shortest way."""
    length = steps.kind.shape[1]
    steps = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), steps)
    wanted = steps.kind != SAME
    order = jnp.argsort(~wanted, stable=True)

    def body(i, images):
        row = order[i] // length
        step = jax.tree.map(lambda field: field[order[i]], steps)
        case = jnp.int32(step.kind >= TABLE) + (step.kind >= GREY)
        # With its rank: XLA would copy `images[row]` twice.
        image = lax.dynamic_slice_in_dim(images, row, 1)
        done = lax.switch(case, (_warped, _levelled, _blended), image, step)
        return lax.dynamic_update_slice_in_dim(images, done, row, 0)

    return lax.fori_loop(0, jnp.sum(wanted), body, images)


# The ops on a CPU, of one image uint8 `[1, H, W, C]`. What XLA fuses with a look-up it does not
# vectorise, nor loops over channels alone: so what a `switch` gives here is small or in rows.


def _warped(image: Array, step: Step) -> Array:
    return _warp(image[0], step.warp)[None]


def _levelled(image: Array, step: Step) -> Array:
    """Each level through a table uint8 `[C, 256]`."""
    given = jnp.tile(step.table, (image.shape[-1], 1))
    made = [
        lambda image, _, make=make: make(histogram(image[0]), GATHERS.rows).astype(jnp.uint8)
        for make in MADE_TABLES.values()
    ]
    table = lax.switch(step.kind - TABLE, [lambda _, given: given, *made], image, given)
    return table.at[jnp.arange(image.shape[-1]), image.astype(jnp.int32)].get(mode=WITHIN)


def _blended(image: Array, step: Step) -> Array:
    _, *size, channels = image.shape
    rows = (size[0], -1)
    inside = _inside(size, channels)

    def in_rows(base):
        return jnp.broadcast_to(base, image.shape).reshape(rows)

    bases = (  # GREY, SMOOTH, MEAN
        lambda image: in_rows(grey(image, axis=-1)),
        lambda image: smooth(image.reshape(rows), (1, channels), (0, 1), inside),
        lambda image: in_rows(mean(grey(image, axis=-1))),
    )
    base = lax.switch(step.kind - GREY, bases, image).reshape(image.shape)
    return _blend_with(image, base, step.factor)


def _warp(image: Array, warp: Array) -> Array:
    """Nearest-neighbour affine warp of `[H, W, C]`."""
    source = _source(warp, image.shape[:2])
    inside = source >= 0
    pixels = image.reshape(-1, image.shape[-1]).at[jnp.where(inside, source, 0)].get(mode=WITHIN)
    return jnp.where(inside[:, None], pixels, 0).reshape(image.shape)


def histogram(image: Array) -> Array:
    """How often each level occurs in `[H, W, C]`, int32 `[C, 256]`."""
    # Scatters: 60 times faster on CPU than one-hot matrix products, 15 than a sort.
    return jnp.stack([_counts(plane.ravel()) for plane in jnp.moveaxis(image, -1, 0)])


def _counts(levels: Array) -> Array:
    return jnp.zeros(256, jnp.int32).at[levels.astype(jnp.int32)].add(1)


def _source(warp: Array, size: Size) -> Array:
    """The pixel that each comes from, int32 `[H·W]`; -1 where that lies outside."""
    height, width = size
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    column = (warp[0] * x + warp[1] * y + warp[2]) >> 16
    row = (warp[3] * x + warp[4] * y + warp[5]) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside, row * width + column, -1).reshape(-1)


# Look-ups by gathers, in planes.


def gathered_warp(planes: Array, warps: Array, size: Size) -> Array:
    """Nearest-neighbour affine warps."""
    source = jax.vmap(_source, in_axes=(0, None))(warps, tuple(size))[:, None]
    pixels = jnp.take_along_axis(planes, jnp.maximum(source, 0), axis=2, mode=WITHIN)
    return jnp.where(source >= 0, pixels, 0)


def gathered_levels(planes: Array, tables: Array) -> Array:
    """Each level through its table."""
    return jnp.take_along_axis(tables, planes.astype(jnp.int32), axis=2, mode=WITHIN)


# Look-ups by products with one-hot matrices. The compiler makes these where it multiplies: they are
# never in memory.

EXACT = jnp.bfloat16  # of whole numbers up to 256
ROUND, ROUNDS = 32, 12  # images of more pixels than SMALL at a time, at least; times, at most
SMALL = 32 * 32  # pixels of an image up to which a product over all of them moves less


def one_hot_warp(planes: Array, warps: Array, size: Size) -> Array:
    """`gathered_warp`."""
    if planes.shape[-1] <= SMALL:
        return _warp_by_pixels(planes, warps, size)
    return _warp_by_axes(planes, warps, size)


def _warp_by_pixels(planes: Array, warps: Array, size: Size) -> Array:
    """A warp that may take any pixel to any other."""
    source = jax.vmap(_source, in_axes=(0, None))(warps, tuple(size))[:, None]
    given = source == jnp.arange(planes.shape[-1])[None, :, None]
    return _product("bcq,bqp->bcp", planes.astype(EXACT), given.astype(EXACT)).astype(jnp.uint8)


def _warp_by_axes(planes: Array, warps: Array, whole: Size) -> Array:
    """A warp along the source's rows, and then along its columns: 4/size of the arithmetic.

    From one source row come two pixels of an output column at most, as a step down the column moves
    by half a row or more in all of `ENCODERS`. Where it moves along the row rather, as when turned
    by a quarter, the source is transposed first.
    """
    (height, width), shape = whole, planes.shape
    size = max(height, width)
    padding = ((0, 0), (0, 0), (0, size - height), (0, size - width))
    planes = jnp.pad(planes.reshape(*shape[:2], *whole), padding).astype(EXACT)
    a, b, c, d, e, f = (_each(field, 4) for field in warps.T)
    across = jnp.abs(b) > jnp.abs(e)
    planes = jnp.where(across, planes.swapaxes(2, 3), planes)
    a, b, c, d, e, f = (
        jnp.where(across, theirs, own)
        for own, theirs in zip((a, b, c, d, e, f), (d, e, f, a, b, c), strict=True)
    )
    # Rows that fall as y grows: from the last y upwards.
    up, last = e < 0, height - 1
    c, f = jnp.where(up, c + b * last, c), jnp.where(up, f + e * last, f)
    b, e = jnp.where(up, -b, b), jnp.where(up, -e, e)

    row = jnp.arange(size)[None, :, None, None]
    x = jnp.arange(width)[None, None, None, :]
    first = -((d * x + f - (row << 16)) // e)  # of the y that come from this row, or a later one
    y = first + jnp.arange(2)[None, None, :, None]  # [B, size, 2, W]
    column = (a * x + b * y + c) >> 16
    given = column[:, :, None] == jnp.arange(size)[None, None, :, None, None]
    found = _product("bcrs,brskx->bcrkx", planes, given.astype(EXACT)).astype(jnp.uint8)
    found = lax.optimization_barrier(found)  # to be stored as such, not as bfloat16
    # Which of these an output pixel is: of its row, and the first or second that comes from there.
    x, y = jnp.arange(width)[None, :, None], jnp.arange(height)[None, None, :]
    d, e, f, up = (field[..., 0] for field in (d, e, f, up))
    y = jnp.where(up, last - y, y)
    row = (d * x + e * y + f) >> 16
    place = 2 * row + ((d * x + e * (y - 1) + f) >> 16 == row)  # [B, W, H]
    found = found.transpose(0, 1, 4, 2, 3).reshape(*shape[:2], width, -1)
    found, place = lax.optimization_barrier((found, place))
    wanted = place[:, :, None] == jnp.arange(2 * size)[None, None, :, None]
    done = _product("bcxm,bxmy->bcxy", found.astype(EXACT), wanted.astype(EXACT)).swapaxes(2, 3)
    # A TPU has no room to turn whole levels that are stored as uint8 from one layout to another.
    return lax.optimization_barrier(done.reshape(shape)).astype(jnp.uint8)


def one_hot_levels(planes: Array, tables: Array) -> Array:
    """`gathered_levels`: one of 16 rows of the table, then one of the row's 16 entries."""
    high, low = _nibbles(planes)
    parts = tables.reshape(*tables.shape[:2], 16, 16).astype(EXACT)
    rows = _product("bcij,bcip->bcjp", parts, high.astype(EXACT))
    return jnp.sum(jnp.where(low, rows, 0), axis=2).astype(jnp.uint8)


def one_hot_histogram(planes: Array) -> Array:
    """How often a high half of a level meets a low one."""
    high, low = (half.astype(EXACT) for half in _nibbles(planes))
    counts = _product("bcip,bcjp->bcij", high, low, jnp.float32)  # exact up to 2²⁴ pixels
    return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def _nibbles(planes: Array) -> tuple[Array, Array]:
    """The high and the low half of each level as one of 16, bool `[B, C, 16, H·W]` each."""
    # By exclusive or with the one looked for: shifted first, a level would be stored again.
    which = jnp.arange(16, dtype=jnp.uint8)[None, None, :, None]
    levels = planes[:, :, None]
    return levels ^ (which << 4) < 16, (levels ^ which) & 15 == 0


def one_hot_rows(table: np.ndarray, which: Array) -> Array:
    """Rows of a table of whole numbers below 2²⁴."""
    given = which[..., None] == jnp.arange(len(table)).reshape(*[1] * which.ndim, -1)
    numbers = jnp.asarray(table, jnp.float32)
    rows = jnp.einsum(
        "...i,ij->...j", given.astype(jnp.float32), numbers, precision=lax.Precision.HIGHEST
    )
    return rows.astype(table.dtype)


def _product(formula: str, a: Array, b: Array, dtype: Any = EXACT) -> Array:
    return jnp.einsum(formula, a, b, preferred_element_type=dtype)


# ---- Tables and bases


def equalize_table(counts: Array, rows: Callable) -> Array:
    """Pillow's equalize: the new levels, int32 `[..., 256]`, by how often each occurs."""
    del rows
    levels = jnp.broadcast_to(LEVELS, counts.shape)
    below = jnp.cumsum(counts, axis=-1) - counts
    highest = jnp.max(jnp.where(counts > 0, levels, 0), axis=-1, keepdims=True)
    # Pixels below the highest level, shared out over 255 steps; too few of them: no change.
    step = jnp.sum(jnp.where(levels == highest, below, 0), axis=-1, keepdims=True) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, levels)


def autocontrast_table(counts: Array, rows: Callable) -> Array:
    """Pillow's autocontrast: the new levels, int32 `[..., 256]`, by how often each occurs.

    Args:
      counts: int32 `[..., 256]`.
      rows: as in `LookUps`.
    """
    levels = jnp.broadcast_to(LEVELS, counts.shape)
    low = jnp.min(jnp.where(counts > 0, levels, 255), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(counts > 0, levels, 0), axis=-1, keepdims=True)
    exact = jnp.clip(255 * (levels - low) // jnp.maximum(high - low, 1), 0, 255)
    masks, which = _float64_shortfalls()
    by_high = jnp.where(levels == high, rows(which, low[..., 0]), 0)
    bits = rows(masks, jnp.sum(by_high, axis=-1, dtype=jnp.int32))
    short = (jnp.repeat(bits, 8, axis=-1) >> (levels % 8).astype(np.uint8)) & 1
    return jnp.where(high > low, exact - short, levels)


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


def grey(image: Array, axis: int) -> Array:
    """Pillow's luma of the channels along the axis, which is kept with one; uint8."""
    if image.shape[axis] == 1:
        return image
    red, green, blue = (part.astype(jnp.int32) for part in jnp.split(image, 3, axis))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(jnp.uint8)


def mean(luma: Array, axes: tuple[int, ...] | None = None) -> Array:
    """The mean over the axes, which are kept, rounded; uint8."""
    total = jnp.sum(luma, axes, dtype=jnp.uint32, keepdims=True)  # of up to 4,103² pixels
    count = luma.size // total.size
    return ((total + count // 2) // count).astype(jnp.uint8)


def smooth(levels: Array, across: Neighbour, down: Neighbour, inside: np.ndarray) -> Array:
    """Pillow's SMOOTH filter, 1 1 1 / 1 5 1 / 1 1 1 over 13, border as it was; uint8.

    Args:
      levels: uint8, in any shape.
      across: where the pixel to the right of one lies.
      down: where the one below lies.
      inside: bool, which are not of the border.
    """

    def of_three(values, axis, apart):
        """The sum of each with the one before and the one after."""
        width = [(0, 0)] * values.ndim
        width[axis] = (apart, apart)
        padded, size = jnp.pad(values, width), values.shape[axis]
        starts = (0, apart, 2 * apart)
        parts = (lax.slice_in_dim(padded, start, start + size, axis=axis) for start in starts)
        return sum(part.astype(jnp.uint16) for part in parts)

    total = of_three(of_three(levels, *down), *across) + 4 * levels.astype(jnp.uint16)
    # Rounding to nearest meets no ties, 13 being odd.
    return jnp.where(inside, ((2 * total + 13) // 26).astype(jnp.uint8), levels)


def _inside(size: Size, channels: int) -> np.ndarray:
    """Which pixels are not of the border, bool `[H, W·channels]`."""
    y, x = (np.arange(length) for length in size)
    rows, columns = (y > 0) & (y < size[0] - 1), (x > 0) & (x < size[1] - 1)
    return rows[:, None] & np.repeat(columns, channels)[None]


# By kind: how to make the table, int32 `[..., 256]`, of a histogram, with `rows` of `LookUps`.
MADE_TABLES = {AUTOCONTRAST: autocontrast_table, EQUALIZE: equalize_table}

GATHERS = LookUps(
    gathered_warp,
    gathered_levels,
    jax.vmap(jax.vmap(_counts)),
    lambda table, which: jnp.asarray(table)[which],
)
PRODUCTS = LookUps(one_hot_warp, one_hot_levels, one_hot_histogram, one_hot_rows)


# ---- Ops outside the fixed pass


def crop(image: Array, top: Array, left: Array, pad: int) -> Array:
    """The `[H, W, C]` window at (top, left), each in 0..2·pad, of the zero-padded image."""
    return lax.platform_dependent(
        image,
        top - pad,
        left - pad,
        tpu=one_hot_shift,  # slices of a batch would be a loop over its images
        default=functools.partial(_slice, pad=pad),
    )


def _slice(image: Array, down: Array, right: Array, pad: int) -> Array:
    """The image from (down, right) on, each at most `pad` away from 0, and 0 beyond it."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return lax.dynamic_slice(padded, (down + pad, right + pad, 0), image.shape)


def one_hot_shift(image: Array, down: Array, right: Array) -> Array:
    """`_slice` by products: no source, no match, and so 0."""
    y, x = (jnp.arange(size) for size in image.shape[:2])
    rows, columns = (y[:, None] + down == y[None]), (x[:, None] + right == x[None])
    shifted = _product("yh,hwc->ywc", rows.astype(EXACT), image.astype(EXACT))
    return _product("xw,ywc->yxc", columns.astype(EXACT), shifted).astype(jnp.uint8)


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
        raise UserError(GREY_STAIN)
    exact = functools.partial(jnp.einsum, "hwc,cd->hwd", precision=lax.Precision.HIGHEST)
    density = -jnp.log((image.astype(jnp.float32) + 1) / 256)
    amounts = exact(density, jnp.asarray(np.linalg.inv(HED), jnp.float32))
    amounts = amounts * scale[None, None] + shift[None, None]
    levels = 256 * jnp.exp(-exact(amounts, jnp.asarray(HED, jnp.float32))) - 1
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)
