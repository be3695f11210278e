"""Augmentation policies: each a pair of what is chosen at random and what is done with the choice.

A policy is a function of its parameters that returns `(draw, apply)`:

  draw(key, shape) -> choices                          one example of shape (H, W, C)
  apply(images, targets, choices) -> images, targets   a batch, choices stacked

so a test can fix the choices and make the same ones in Pillow.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxunlearn.augment import ops
from jaxunlearn.errors import UserError

Shape = tuple[int, ...]
Draw = Callable[[Array, Shape], Any]
Apply = Callable[[Array, Array, Any], tuple[Array, Array]]
Policy = tuple[Draw, Apply]
Space = dict[str, np.ndarray]  # magnitudes by op, one per bin

OPS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
ENHANCERS = OPS[6:10]
SIGNED = OPS[1:10]


def draw_batch(draw: Draw, key: Array, shape: Shape) -> Any:
    """Choices for a batch of `shape` `[B, H, W, C]`, one key per example made from `key`."""
    return jax.vmap(lambda k: draw(k, shape[1:]))(jax.random.split(key, shape[0]))


def per_image(op: Callable[[Array, Any], Array]) -> Apply:
    """The batched form of `op(image, choices) -> image`, which leaves targets as they are."""
    return lambda images, targets, choices: (jax.vmap(op)(images, choices), targets)


def _require(fits: bool, parameter: str, given: object, allowed: str) -> None:
    """Raises unless a policy's parameter fits."""
    if not fits:
        raise UserError(f"augment_params.{parameter} must be {allowed}, got {given}")


# ---- Geometry


def none() -> Policy:
    """Leaves images and targets as they are."""
    return lambda key, shape: (), lambda images, targets, choices: (images, targets)


def crop_flip(padding: float = 4 / 32, pixels: int = 0) -> Policy:
    """Zero-pads, crops at random, mirrors left to right with p .5.

    The padding is `pixels` or, where that is 0, `padding`, a share of the size. The papers' code
    pads with 4 pixels whatever the size.
    """
    _require(0 <= padding <= 1, "crop_flip.padding", padding, "0 to 1, a share of the size")
    _require(pixels >= 0, "crop_flip.pixels", pixels, "0 or more")

    def pad(shape):
        return pixels or round(padding * max(shape[:2]))

    def draw(key, shape):
        key_crop, key_flip = jax.random.split(key)
        return {
            "corner": jax.random.randint(key_crop, (2,), 0, 2 * pad(shape) + 1),
            "flip": jax.random.bernoulli(key_flip),
        }

    def apply(image, choices):
        top, left = choices["corner"]
        return ops.flip(ops.crop(image, top, left, pad(image.shape)), choices["flip"])

    return draw, per_image(apply)


def rotate90_flip() -> Policy:
    """One of the 8 symmetries of the square, uniformly; of the 4 of the rectangle if not square."""

    def draw(key, shape):
        key_turn, key_flip = jax.random.split(key)
        quarter = 1 if shape[0] == shape[1] else 2
        return {
            "turns": quarter * jax.random.randint(key_turn, (), 0, 4 // quarter),
            "flip": jax.random.bernoulli(key_flip),
        }

    def apply(image, choices):
        return ops.flip(ops.quarter_turns(image, choices["turns"]), choices["flip"])

    return draw, per_image(apply)


# ---- Policies over the ops of Pillow


def bins(start: float, end: float, num_bins: int) -> np.ndarray:
    """Evenly spaced magnitudes float32 `[num_bins]`, rounded as torchvision's are.

    Counted in float32 steps from both ends to the middle, each value rounded once, so that a whole
    number may be missed: bin 15 of 31 from 0 to 32 is 15.999998, and translates by 15 pixels.
    """
    low, high, i = np.float32(start), np.float32(end), np.arange(num_bins)
    step = float((high - low) / np.float32(max(num_bins - 1, 1)))
    from_high = float(high) - step * (num_bins - 1 - i)
    return np.where(i < num_bins // 2, float(low) + step * i, from_high).astype(np.float32)


def narrow_space(num_bins: int, shape: Shape) -> Space:
    """Magnitudes of AutoAugment and RandAugment."""
    height, width = shape[:2]
    return {
        "identity": np.zeros(num_bins),
        **dict.fromkeys(("shear_x", "shear_y"), bins(0, 0.3, num_bins)),
        "translate_x": np.trunc(bins(0, 150 / 331 * width, num_bins)),
        "translate_y": np.trunc(bins(0, 150 / 331 * height, num_bins)),
        "rotate": bins(0, 30, num_bins),
        **dict.fromkeys(ENHANCERS, bins(0, 0.9, num_bins)),
        "posterize": 8 - np.round(np.linspace(0, 4, num_bins)),
        "solarize": bins(255, 0, num_bins),
        **dict.fromkeys(("autocontrast", "equalize"), np.zeros(num_bins)),
    }


def wide_space(num_bins: int, shape: Shape) -> Space:
    """Magnitudes of TrivialAugmentWide; translation is in pixels, whatever the size."""
    return narrow_space(num_bins, shape) | {
        **dict.fromkeys(("shear_x", "shear_y"), bins(0, 0.99, num_bins)),
        **dict.fromkeys(("translate_x", "translate_y"), np.trunc(bins(0, 32, num_bins))),
        "rotate": bins(0, 135, num_bins),
        **dict.fromkeys(ENHANCERS, bins(0, 0.99, num_bins)),
        "posterize": 8 - np.round(np.linspace(0, 6, num_bins)),
    }


def mix_space(num_bins: int, shape: Shape) -> Space:
    """Magnitudes of AugMix."""
    height, width = shape[:2]
    return narrow_space(num_bins, shape) | {
        "translate_x": np.trunc(bins(0, width / 3, num_bins)),
        "translate_y": np.trunc(bins(0, height / 3, num_bins)),
        "posterize": np.maximum(4 - np.round(np.linspace(0, 4, num_bins)), 1),
    }


def magnitude(space: Space, name: str, level: int, sign: int) -> float:
    """What `ops.apply` takes for an op at a bin of its space; sign 1 is the negative direction."""
    value = float(space[name][level]) * (-1 if sign and name in SIGNED else 1)
    return 1 + value if name in ENHANCERS else value


def encode(space: Space, shape: Shape) -> Callable[[Array, Array, Array], ops.Step]:
    """Encodes a space, giving `look_up(op, level, sign) -> Step` by index, traceable."""
    num_bins = len(space["identity"])
    steps = [
        ops.ENCODERS[name](magnitude(space, name, level, sign), *shape[:2])
        for name in space
        for level in range(num_bins)
        for sign in (0, 1)
    ]
    stacked = ops.Step(*(np.stack(field) for field in zip(*steps, strict=True)))
    # Most ops have the same table at every bin.
    tables, which = np.unique(stacked.table, axis=0, return_inverse=True)

    def look_up(op, level, sign):
        row = (op * num_bins + level) * 2 + sign
        kind, warp, table, factor = (
            jnp.asarray(a)[row] for a in (stacked.kind, stacked.warp, which, stacked.factor)
        )
        return ops.Step(kind, warp, jnp.asarray(tables)[table], factor)

    return look_up


def do_ops(images: Array, space: Space, choices: dict[str, Array]) -> Array:
    """Does the chosen ops one after the other; `op`, `level` and `sign`, int32 `[B, n]` each."""
    steps = encode(space, images.shape[1:])(choices["op"], choices["level"], choices["sign"])
    return ops.run_chains(images, steps)


def trivialaugment(num_bins: int = 31) -> Policy:
    """TrivialAugmentWide: one op, one magnitude, one sign, each uniformly.

    Müller & Hutter, 2021, https://arxiv.org/abs/2103.10158.
    """
    _require(num_bins >= 2, "trivialaugment.num_bins", num_bins, "2 or more")

    def draw(key, shape):
        keys = jax.random.split(key, 3)
        return {
            "op": jax.random.randint(keys[0], (1,), 0, len(OPS)),
            "level": jax.random.randint(keys[1], (1,), 0, num_bins),
            "sign": jax.random.randint(keys[2], (1,), 0, 2),
        }

    def apply(images, targets, choices):
        return do_ops(images, wide_space(num_bins, images.shape[1:]), choices), targets

    return draw, apply


def randaugment(num_ops: int = 2, magnitude: int = 9, num_bins: int = 31) -> Policy:
    """RandAugment: `num_ops` ops uniformly, all at bin `magnitude`, signs at random.

    Cubuk et al., 2019, https://arxiv.org/abs/1909.13719.
    """
    _require(num_ops >= 1, "randaugment.num_ops", num_ops, "1 or more")
    _require(
        0 <= magnitude < num_bins,
        "randaugment.magnitude",
        magnitude,
        f"0 to below num_bins, {num_bins}",
    )

    def draw(key, shape):
        key_op, key_sign = jax.random.split(key)
        return {
            "op": jax.random.randint(key_op, (num_ops,), 0, len(OPS)),
            "level": jnp.full((num_ops,), magnitude),
            "sign": jax.random.randint(key_sign, (num_ops,), 0, 2),
        }

    def apply(images, targets, choices):
        return do_ops(images, narrow_space(num_bins, images.shape[1:]), choices), targets

    return draw, apply


# (op, probability, bin) twice, as found on CIFAR-10; a bin that the op ignores is 0.
CIFAR10_SUBPOLICIES = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


def autoaugment() -> Policy:
    """AutoAugment: one of the 25 sub-policies for CIFAR-10, each of its two ops with its own p.

    Cubuk et al., 2019, https://arxiv.org/abs/1805.09501, table 7.
    """
    names = (*OPS, "invert")
    table = CIFAR10_SUBPOLICIES
    op = np.array([[names.index(name) for name, _, _ in pair] for pair in table])
    probability = np.array([[p for _, p, _ in pair] for pair in table], np.float32)
    level = np.array([[level for _, _, level in pair] for pair in table])

    def draw(key, shape):
        keys = jax.random.split(key, 3)
        subpolicy = jax.random.randint(keys[0], (), 0, len(table))
        on = jax.random.bernoulli(keys[1], jnp.asarray(probability)[subpolicy])
        return {
            "subpolicy": subpolicy,
            "op": jnp.where(on, jnp.asarray(op)[subpolicy], names.index("identity")),
            "level": jnp.asarray(level)[subpolicy],
            "sign": jax.random.randint(keys[2], (2,), 0, 2),
        }

    def apply(images, targets, choices):
        space = narrow_space(10, images.shape[1:]) | {"invert": np.zeros(10)}
        return do_ops(images, space, choices), targets

    return draw, apply


def augmix(severity: int = 3, width: int = 3, depth: int = 3, num_bins: int = 10) -> Policy:
    """AugMix: `width` chains of 1 to `depth` ops, mixed with each other and with the image.

    Each op at one of the lowest `severity` bins; Dirichlet(1) weights over the chains, Beta(1, 1)
    between their mean and the image. Hendrycks et al., 2020, https://arxiv.org/abs/1912.02781.
    """
    _require(width >= 1, "augmix.width", width, "1 or more")
    _require(depth >= 1, "augmix.depth", depth, "1 or more")
    _require(1 <= severity <= num_bins, "augmix.severity", severity, f"1 to num_bins, {num_bins}")

    def draw(key, shape):
        keys = jax.random.split(key, 6)
        size = (width, depth)
        length = jax.random.randint(keys[0], (width, 1), 1, depth + 1)
        # Identity, the first op, cannot be chosen: it stands for what a shorter chain lacks.
        op = jax.random.randint(keys[1], size, 1, len(OPS))
        chains = jax.random.dirichlet(keys[2], jnp.ones(width)) * jax.random.uniform(keys[3])
        weights = jnp.floor(65536 * chains).astype(jnp.int32)
        return {
            "op": jnp.where(jnp.arange(depth)[None] < length, op, 0),
            "level": jax.random.randint(keys[4], size, 0, severity),
            "sign": jax.random.randint(keys[5], size, 0, 2),
            "weights": jnp.append(weights, 65536 - jnp.sum(weights)),
        }

    def apply(images, targets, choices):
        space = mix_space(num_bins, images.shape[1:])
        # A batch of all chains: the first chain of every image, then the second, …
        chains = {
            name: choices[name].swapaxes(0, 1).reshape(-1, depth)
            for name in ("op", "level", "sign")
        }
        done = do_ops(jnp.tile(images, (width, 1, 1, 1)), space, chains)
        mixed = [*done.reshape(width, *images.shape), images]
        return jax.vmap(ops.mix)(mixed, choices["weights"]), targets

    return draw, apply


# ---- Erasing, mixing, staining


def random_erasing(
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.33),
    aspect: tuple[float, float] = (0.3, 3.3),
    fill: tuple[int, ...] = (128,),
) -> Policy:
    """Erases a random box, with area a share of the image and aspect log-uniform.

    Zhong et al., 2017, https://arxiv.org/abs/1708.04896. The box is filled with the level that
    (x / 255 − .5) / .5 normalises to nearest 0; for other means give `fill`, one level for all
    channels or one per channel.
    """
    _require(0 <= p <= 1, "random_erasing.p", p, "0 to 1")
    _require(
        len(area) == 2 and 0 < area[0] <= area[1] < 1,
        "random_erasing.area",
        area,
        "shares (low, high) within 0 to 1",
    )
    _require(
        len(aspect) == 2 and 0 < aspect[0] <= aspect[1],
        "random_erasing.aspect",
        aspect,
        "(low, high), both above 0",
    )
    _require(
        len(fill) in (1, 3) and 0 <= min(fill) <= max(fill) <= 255,
        "random_erasing.fill",
        fill,
        "1 or 3 levels, 0 to 255",
    )
    tries = 10  # the first box that fits; none of them: no box

    def draw(key, shape):
        height, width = shape[:2]
        keys = jax.random.split(key, 5)
        share = jax.random.uniform(keys[0], (tries,), minval=area[0], maxval=area[1])
        low, high = np.log(aspect)
        root = jnp.exp(jax.random.uniform(keys[1], (tries,), minval=low, maxval=high) / 2)
        side = jnp.sqrt(share * height * width)
        sizes = jnp.round(jnp.stack([side * root, side / root])).astype(jnp.int32)
        fits = (sizes[0] < height) & (sizes[1] < width)
        size = sizes[:, jnp.argmax(fits)]
        top = jax.random.randint(keys[2], (), 0, jnp.maximum(height - size[0] + 1, 1))
        left = jax.random.randint(keys[3], (), 0, jnp.maximum(width - size[1] + 1, 1))
        box = jnp.stack([top, left, top + size[0], left + size[1]])
        on = jax.random.bernoulli(keys[4], p) & jnp.any(fits)
        return {"box": jnp.where(on, box, 0)}

    def apply(image, choices):
        levels = jnp.asarray(fill, image.dtype)[None, None, : image.shape[-1]]
        return ops.fill_box(image, choices["box"], jnp.broadcast_to(levels, image.shape))

    return draw, per_image(apply)


def mixup(alpha: float = 1.0) -> Policy:
    """Mixes each example and its target with the one before it, with weights Beta(alpha, alpha).

    Zhang et al., 2017, https://arxiv.org/abs/1710.09412. Batches come shuffled, so the example
    before is a random partner.
    """
    _require(alpha > 0, "mixup.alpha", alpha, "more than 0")

    def draw(key, shape):
        share = jax.random.beta(key, alpha, alpha)
        return {"own": jnp.round(65536 * share).astype(jnp.int32)}

    def apply(images, targets, choices):
        weights = jnp.stack([choices["own"], 65536 - choices["own"]], axis=1)
        mixed = jax.vmap(lambda a, b, w: ops.mix([a, b], w))(
            images, jnp.roll(images, 1, 0), weights
        )
        return mixed, mix_targets(targets, choices["own"] / 65536)

    return draw, apply


def cutmix(alpha: float = 1.0) -> Policy:
    """Pastes a box of the example before into each example, and mixes targets by its area.

    The box has 1 − Beta(alpha, alpha) of the area and its centre anywhere, cut at the border.
    Yun et al., 2019, https://arxiv.org/abs/1905.04899.
    """
    _require(alpha > 0, "cutmix.alpha", alpha, "more than 0")

    def draw(key, shape):
        height, width = shape[:2]
        keys = jax.random.split(key)
        side = jnp.sqrt(1 - jax.random.beta(keys[0], alpha, alpha))
        size = jnp.stack([side * height, side * width]).astype(jnp.int32)
        most = jnp.array([height, width])
        centre = jax.random.randint(keys[1], (2,), 0, most)
        first = jnp.clip(centre - size // 2, 0, most)
        return {"box": jnp.append(first, jnp.clip(centre - size // 2 + size, 0, most))}

    def apply(images, targets, choices):
        box = choices["box"]
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        pasted = jax.vmap(ops.fill_box)(images, box, jnp.roll(images, 1, 0))
        return pasted, mix_targets(targets, 1 - area / (images.shape[1] * images.shape[2]))

    return draw, apply


def mix_targets(targets: Array, own: Array) -> Array:
    """Targets `[B, num_classes]` mixed with the ones before, `own` `[B]` of their own."""
    return own[:, None] * targets + (1 - own[:, None]) * jnp.roll(targets, 1, 0)


def stain_jitter(sigma: float = 0.05) -> Policy:
    """Scales each stain by 1 ± `sigma` and shifts it by ± `sigma`, uniformly, in HED space.

    Tellez et al., 2018, https://arxiv.org/abs/1808.05896.
    """
    _require(0 <= sigma < 1, "stain_jitter.sigma", sigma, "0 to below 1")

    def draw(key, shape):
        jitter = jax.random.uniform(key, (2, 3), minval=-sigma, maxval=sigma)
        return {"scale": 1 + jitter[0], "shift": jitter[1]}

    def apply(image, choices):
        return ops.stain(image, choices["scale"], choices["shift"])

    return draw, per_image(apply)
