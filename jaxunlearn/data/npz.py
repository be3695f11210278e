"""Files in MedMNIST's layout: the reader that medmnist shares, and the source for a user's own."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data import reading
from jaxunlearn.data.dataset import SETS, Dataset, Examples
from jaxunlearn.errors import UserError, shown

_NEEDED = tuple(f"{name}_{kind}" for name in SETS for kind in ("images", "labels"))
ABOUT = ("name", "licence", "synthetic", "caution", "group_names")  # of `Dataset`
_ABOUT = tuple(f"about_{field}" for field in ABOUT)
_TEXTS = ("class_names", "about_group_names")
_OPTIONAL = (*(f"{name}_groups" for name in SETS), "class_names", *_ABOUT)
NAMES = (*_NEEDED, *_OPTIONAL)  # the arrays that are read
_FORM = reading.Form(
    "a .npz in MedMNIST's layout",
    f"save plain arrays {', '.join(_NEEDED)} with numpy.savez",
)


def load(config: Any) -> Dataset:
    """The user's own images, from one `.npz` file in MedMNIST's layout.

    The file holds, for each of `train`, `val` and `test`: `*_images` uint8 `[N, H, W]` or
    `[N, H, W, C]`, `*_labels` integers `[N]` or `[N, 1]` and, where wanted, `*_groups` integers
    `[N]` (patient or lesion id, one numbering for the three sets); and, where wanted,
    `class_names`, a unicode array `[num_classes]`. Without it the classes are named "0", "1", ...
    What a `Dataset` says of its data may be there too, such as `about_licence`: the fields `ABOUT`.

    Args:
      config: the `data` config; `path` is the file.

    Raises:
      UserError: no path, or the file is missing, unreadable, larger than the machine's memory,
        or of another layout. Only the arrays named above are read, and nothing is unpickled.
    """
    if not config.path:
        raise UserError("data.name='npz' needs data.path: a .npz file in MedMNIST's layout")
    sets, class_names, about = read(config.path)
    if not class_names:
        highest = max(int(examples.labels.max()) for examples in sets)
        # Guards against ids taken for labels, before a name is made for every number up to them.
        if highest >= len(sets[0]):
            raise UserError(
                f"{shown(config.path)}: the highest label is {highest} and train has "
                f"{len(sets[0])} images; number the classes from 0 without gaps"
            )
        class_names = tuple(str(c) for c in range(highest + 1))
    if len(class_names) < 2:
        lowest = min(int(examples.labels.min()) for examples in sets)
        advice = "give images of another one"
        if lowest < 0:
            advice = f"the lowest label is {lowest}; number the classes from 0"
        raise UserError(
            f"{shown(config.path)}: {len(class_names)} class; at least 2 are needed: {advice}"
        )
    return Dataset(about.pop("name", "") or Path(config.path).stem, *sets, class_names, **about)


def read(
    path: str | os.PathLike,
) -> tuple[tuple[Examples, Examples, Examples], tuple[str, ...], dict[str, Any]]:
    """A file in MedMNIST's layout: train, val and test; class names, () where none; `ABOUT`."""
    path = reading.regular(path, "data.path", _FORM)
    arrays = reading.npz(
        path, _FORM, _NEEDED, _OPTIONAL, check=lambda declared: _check(path, declared)
    )
    sets = [
        Examples(
            _images(arrays[f"{name}_images"]),
            _integers(path, f"{name}_labels", arrays),
            _integers(path, f"{name}_groups", arrays) if f"{name}_groups" in arrays else None,
        )
        for name in SETS
    ]
    try:
        # Without class_names, (): four bytes of an array of text may be no character.
        class_names = tuple(arrays.get("class_names", np.array([])).tolist())
        about = {
            field: tuple(found) if isinstance(found := arrays[name].tolist(), list) else found
            for field, name in zip(ABOUT, _ABOUT, strict=True)
            if name in arrays
        }
    except ValueError as error:
        raise UserError(
            f"{reading.named(path)}: class_names or {' or '.join(_ABOUT)} is no text; save it again"
        ) from error
    return (sets[0], sets[1], sets[2]), class_names, about


def _check(path: Path, declared: dict[str, reading.Declared]) -> None:
    """Raises at the first array of a type or shape that will not do."""
    for name, array in declared.items():
        if name in _TEXTS:
            # Groups may be as many as images, which have their place in memory checked.
            most = 2**24 if name == "class_names" else np.inf
            fits = array.dtype.kind == "U" and array.ndim == 1 and array.nbytes <= most
            allowed = "a unicode array [N]" + " of up to 16 MiB" * (name == "class_names")
        elif name in _ABOUT:
            truth = name == "about_synthetic"
            kind, allowed = ("b", "one truth") if truth else ("U", "one short text")
            fits = array.dtype.kind == kind and array.ndim == 0 and array.nbytes <= 2**14
        elif name.endswith("_images"):
            fits = array.dtype == np.uint8 and array.ndim in (3, 4) and array.nbytes > 0
            allowed = "uint8 [N, H, W] or [N, H, W, C], at least one image"
            if array.dtype.kind == "f":
                allowed += " (values from 0 to 1 become (255 * x).round().astype(np.uint8))"
        else:
            fits = array.dtype.kind in "iu" and array.nbytes > 0
            fits = fits and (array.ndim == 1 or array.shape[1:] == (1,))
            allowed = f"integers [N] or [N, 1]{_conversion(name, array)}"
        if not fits:
            found = f"{str(array.dtype)[:40]} {list(array.shape)}"
            raise UserError(f"{reading.named(path)}: {name} are {found}; allowed: {allowed}")
    for name in (key for key in declared if key not in ("class_names", *_ABOUT)):
        images = f"{name.split('_')[0]}_images"
        count, needed = declared[name].shape[0], declared[images].shape[0]
        if count != needed:
            raise UserError(
                f"{reading.named(path)}: {name} has {count} numbers for the {needed} images of "
                f"{images}; give one number for each image"
            )


def _conversion(name: str, array: reading.Declared) -> str:
    """How to make integers of an array of another type or shape, to end a message."""
    is_labels = name.endswith("_labels")
    if is_labels and array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        return "; of one-hot labels take .argmax(1)"
    if array.dtype.kind in "bf":
        return "; convert them with .astype(int)"
    if array.dtype.kind in "US":
        return "; number them from 0 and name them in class_names" if is_labels else "; number them"
    return ""


def _images(array: np.ndarray) -> np.ndarray:
    """The images as `[N, H, W, C]`."""
    return np.ascontiguousarray(array[..., None] if array.ndim == 3 else array)


def _integers(path: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The array of that name as int32 `[N]`."""
    array = arrays[name].reshape(-1)
    if array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min:
        raise UserError(f"{reading.named(path)}: {name} do not fit in 32 bits; renumber them")
    return array.astype(np.int32)
