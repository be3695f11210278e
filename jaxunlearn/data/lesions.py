"""The embedded data set: generated images like dermoscopy, for runs without a download."""

from typing import Any

import numpy as np

from jaxunlearn.data import reading
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng

MALIGNANT_SHARE = 0.3
WRONG_LABELS = 0.05

# Colours as red, green, blue of 1; one row per site (its camera's cast), then the skin's pigments.
_CASTS = np.array([[1.00, 1.00, 1.00], [1.07, 0.97, 0.88], [0.92, 0.98, 1.08]], np.float32)
_SKIN = np.array([0.86, 0.67, 0.58], np.float32)
_BROWN = np.array([0.50, 0.31, 0.21], np.float32)
_BLACK = np.array([0.17, 0.11, 0.10], np.float32)
_BLUE_GREY = np.array([0.44, 0.47, 0.55], np.float32)
_RED = np.array([0.74, 0.36, 0.32], np.float32)


def load(config: Any) -> Dataset:
    """Skin lesions generated with numpy: benign (0) and malignant (1), with patients as groups.

    They are not of patients: for trying, teaching and testing, never for clinical claims. A patient
    has one to six images of one or more lesions from one of three sites, each with its colour cast,
    and is in one of the three sets only. Malignant lesions (30%) tend to more asymmetry, a more
    irregular border, more colours, a coarser texture and a larger size (the ABCD rule of
    dermoscopy, Nachbar et al. 1994, https://doi.org/10.1016/S0190-9622(94)70061-3), but every one
    of these overlaps between the classes. The labels of 5% of the train images are wrong, so that a
    network has something to memorise; those of val and test are right.

    `seed`, `count` and `size` fix every bit: pixels are made with operations that
    IEEE 754 rounds exactly (no sine, no exponential), so they are the same on every machine.

    Args:
      config: the `data` config; `count` is the number of train images (val has a fifth and test a
        third as many), `size` the image side, `seed` seeds every draw.

    Raises:
      UserError: the images do not fit in this machine's memory; or are so few that all are of one
        class.
    """
    count, size = int(config.count), int(config.size)  # NumPy's integers would overflow
    _check_memory(count, size)
    counts = (count, count // 5, count // 3)
    train, val, test = (
        # At most as many patients as images: numbers from the sum of the sets before are new.
        _draw(stage_rng("lesions", config.seed, i), number, size, sum(counts[:i]))
        for i, number in enumerate(counts)
    )
    wrong = stage_rng("wrong labels", config.seed).permutation(count)
    wrong = wrong[: round(WRONG_LABELS * count)]
    train.labels[wrong] = 1 - train.labels[wrong]
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"data.count={count} gave lesions of one class alone; ask for more")
    return Dataset(
        "lesions (synthetic)",
        *(train, val, test),
        class_names=("benign", "malignant"),
        malignant=(1,),
        licence="CC0 1.0 (synthetic)",
        synthetic=True,
    )


def _check_memory(count: int, size: int) -> None:
    """Raises where the images, their traits and the planes of a chunk exceed the memory."""
    each = 3 * size**2 + 1000  # bytes of an image and of what its look is drawn from
    needed = count * each * 23 // 15 + 200 * max(2**17, size**2)
    if needed > reading.memory():
        raise UserError(
            f"data.count={count} images of data.size={size} need about {reading.gib(needed)}; "
            f"this machine's memory: {reading.gib(reading.memory())}; ask for fewer or smaller ones"
        )


def _draw(rng: np.random.Generator, count: int, size: int, first_group: int) -> Examples:
    """Images of patients of their own, in random order."""
    patient = np.repeat(np.arange(count), rng.integers(1, 7, count))[:count]
    first = np.diff(patient, prepend=-1) > 0  # a patient's first image, so a new lesion
    lesion = np.cumsum(first | (rng.random(count) < 0.6)) - 1
    malignant = rng.random(count) < MALIGNANT_SHARE  # by lesion; there are at most `count`
    traits = _lesions(rng, malignant)
    people = {
        "cast": _CASTS[rng.integers(0, len(_CASTS), count)],
        "skin": _SKIN * _normal(rng, count, 1, mean=1.0, sd=0.07) + _normal(rng, count, 3, sd=0.02),
    }
    look = {
        **{name: value[lesion] for name, value in traits.items()},
        **{name: value[patient] for name, value in people.items()},
        **_views(rng, count),
    }
    order = rng.permutation(count)
    images = np.empty((count, size, size, 3), np.uint8)
    step = max(1, 2**17 // size**2)  # a chunk's planes stay in cache
    for i in range(0, count, step):
        chunk = order[i : i + step]
        images[i : i + step] = _paint(rng, {k: v[chunk] for k, v in look.items()}, size)
    labels = malignant[lesion][order].astype(np.int32)
    return Examples(images, labels, (first_group + patient[order]).astype(np.int32))


def _normal(
    rng: np.random.Generator, *shape: int, mean: float = 0.0, sd: float = 1.0
) -> np.ndarray:
    """Normal float32 numbers."""
    return (mean + sd * rng.standard_normal(shape)).astype(np.float32)


def _lesions(rng: np.random.Generator, malignant: np.ndarray) -> dict[str, np.ndarray]:
    """What all images of a lesion share, one row per lesion; the classes differ in means."""
    n = len(malignant)

    def trait(benign: float, change: float, sd: float, low: float) -> np.ndarray:
        value = benign + change * malignant + sd * rng.standard_normal(n)
        return np.maximum(value, low).astype(np.float32)

    return {
        "radius": trait(0.48, 0.06, 0.08, 0.25),
        "asymmetry": trait(0.04, 0.065, 0.022, 0.0),
        "irregularity": trait(0.012, 0.026, 0.009, 0.0),
        "variegation": trait(0.18, 0.54, 0.17, 0.0),
        "texture": trait(0.06, 0.09, 0.05, 0.0),
        "softness": trait(0.16, 0.02, 0.05, 0.06),
        "darkness": trait(0.92, -0.08, 0.09, 0.55),
        "harmonics": _normal(rng, n, 7, 2),
        "waves": _normal(rng, n, 4, 3, sd=0.8),
        "tint": _normal(rng, n, 3, sd=0.012),
    }


def _views(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """What changes from image to image: position, lighting, hairs."""
    turn = _normal(rng, n, 2)
    return {
        "turn": turn / np.sqrt(turn[:, :1] ** 2 + turn[:, 1:] ** 2),
        "shift": _normal(rng, n, 2, sd=0.07),
        "zoom": _normal(rng, n, mean=1.0, sd=0.06),
        "light": _normal(rng, n, mean=1.0, sd=0.05),
        "slope": _normal(rng, n, 2, sd=0.05),
        "hairs": _normal(rng, n, 3, 4),
        "hairy": (rng.random(n) < 0.2).astype(np.float32),
    }


def _wave(turns: np.ndarray) -> np.ndarray:
    """Close to a cosine of that many turns, of exactly rounded operations only."""
    up = np.abs(2 * (turns - np.floor(turns)) - 1)
    return 2 * up * up * (3 - 2 * up) - 1


def _paint(rng: np.random.Generator, look: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Images uint8 `[n, size, size, 3]` of a look with one row per image."""
    # Every plane is [n, H, W]; `col` brings one number per image to that rank.
    col = {
        name: np.moveaxis(value, 0, -1)[..., None, None]  # [..., n, 1, 1]
        for name, value in look.items()
    }
    axis = (np.arange(size, dtype=np.float32) * 2 + 1) / size - 1
    down, right = axis[None, :, None], axis[None, None, :]

    # The lesion's own coordinates, then its outline: a circle bent by harmonics of the angle.
    dx, dy = right - col["shift"][0], down - col["shift"][1]
    cos, sin = col["turn"] * col["zoom"]
    x, y = dx * cos - dy * sin, dx * sin + dy * cos
    r = np.sqrt(x * x + y * y) + np.float32(1e-3)
    ux, uy = x / r, y / r
    zx, zy = ux, uy  # cosine and sine of k times the angle, by complex powers
    outline = np.ones_like(r)
    for k in range(1, 8):
        bend = col["asymmetry"] if k < 4 else col["irregularity"]
        outline += bend * (col["harmonics"][k - 1, 0] * zx + col["harmonics"][k - 1, 1] * zy)
        zx, zy = zx * ux - zy * uy, zx * uy + zy * ux
    inside = np.clip((col["radius"] * outline - r) / col["softness"] + 0.5, 0, 1)
    inside = inside * inside * (3 - 2 * inside)

    # Patches of other pigments, and a fine network.
    a, b, c, d = (_wave(w[0] * x + w[1] * y + w[2]) for w in col["waves"])
    dark = np.clip(col["variegation"] * (0.55 * (a + b)), 0, 1)
    blue = np.clip(col["variegation"] * (0.8 * (c - a)) - 0.35, 0, 0.8)
    red = np.clip(col["variegation"] * (0.8 * (d - b)) - 0.35, 0, 0.7)
    mesh = _wave(3.1 * x + 0.6 * c) * _wave(3.1 * y + 0.6 * d)
    shade = col["darkness"] * (1 + col["texture"] * mesh) * (1.08 - 0.16 * inside)

    # Light falls off in one direction and towards the corners.
    light = col["light"] + col["slope"][0] * right + col["slope"][1] * down
    light = light - 0.07 * (right * right + down * down)
    keep = 1 - _hairs(col, right, down, size)
    grain = rng.random((*r.shape, 3), np.float32)
    images = np.empty(grain.shape, np.uint8)
    for channel in range(3):
        pigment = _BROWN[channel] + col["tint"][channel]
        lesion = pigment * shade
        lesion += dark * (_BLACK[channel] - lesion)
        lesion += blue * (_BLUE_GREY[channel] - lesion)
        lesion += red * (_RED[channel] - lesion)
        skin = col["skin"][channel]
        value = (skin + inside * (lesion - skin)) * light * keep * col["cast"][channel]
        value += np.float32(0.06) * (grain[..., channel] - np.float32(0.5))
        images[..., channel] = np.rint(np.clip(value, 0, 1) * 255)
    return images


def _hairs(
    col: dict[str, np.ndarray], right: np.ndarray, down: np.ndarray, size: int
) -> np.ndarray:
    """How much light three hairs, thin parabolas, take away."""
    taken = np.zeros((1, 1, 1), np.float32)
    for a, b, bend, place in col["hairs"]:
        along, across = a * right + b * down, a * down - b * right
        norm = np.sqrt(a * a + b * b)
        off = np.abs(across + 0.3 * bend * along * along - 0.5 * place * norm) / norm
        taken = np.maximum(taken, np.clip((0.03 - off) * np.float32(size / 2) + 0.5, 0, 1))
    return 0.55 * col["hairy"] * taken
