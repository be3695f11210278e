"""Files in MedMNIST's layout: the reader that medmnist shares, and the source for a user's own."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data import reading
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError, shown

_SETS = ("train", "val", "test")
_NEEDED = tuple(f"{name}_{kind}" for name in _SETS for kind in ("images", "labels"))
_OPTIONAL = (*(f"{name}_groups" for name in _SETS), "class_names")
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

    Args:
      config: the `data` config; `path` is the file.

    Raises:
      UserError: no path, or the file is missing, unreadable, larger than the machine's memory,
        or of another layout. Only the arrays named above are read, and nothing is unpickled.
    """
    if not config.path:
        raise UserError("data.name='npz' needs data.path: a .npz file in MedMNIST's layout")
    sets, class_names = read(config.path)
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
        raise UserError(
            f"{shown(config.path)}: {len(class_names)} class; at least 2 are needed: give images "
            "of another one"
        )
    return Dataset(Path(config.path).stem, *sets, class_names)


def read(path: str | os.PathLike) -> tuple[tuple[Examples, Examples, Examples], tuple[str, ...]]:
    """Train, val and test of a file in MedMNIST's layout, and its class names, () where none."""
    path = reading.regular(path, "data.path", _FORM)
    arrays = reading.npz(path, _FORM, _NEEDED, _OPTIONAL)
    train, val, test = (_examples(path, arrays, name) for name in _SETS)
    return (train, val, test), _class_names(path, arrays.get("class_names"))


def _class_names(path: Path, names: np.ndarray | None) -> tuple[str, ...]:
    """The names of the classes in the order of their labels, () where the file has none."""
    if names is None:
        return ()
    if names.dtype.kind != "U" or names.ndim != 1:
        raise _other(path, "class_names", names, "a unicode array [num_classes]")
    try:
        return tuple(names.tolist())
    except ValueError as error:  # four bytes that are no character
        raise UserError(
            f"{reading.named(path)}: class_names are no text; save them again"
        ) from error


def _examples(path: Path, arrays: dict[str, np.ndarray], name: str) -> Examples:
    """One of the three sets, brought to the contract's shapes and types."""
    images = arrays[f"{name}_images"]
    labels = _integers(path, f"{name}_labels", arrays[f"{name}_labels"])
    groups = arrays.get(f"{name}_groups")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        allowed = "uint8 [N, H, W] or [N, H, W, C], at least one image"
        raise _other(path, f"{name}_images", images, allowed)
    return Examples(
        np.ascontiguousarray(images[..., None] if images.ndim == 3 else images),
        labels,
        None if groups is None else _integers(path, f"{name}_groups", groups),
    )


def _integers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as int32 `[N]`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0:
        advice = ""
        if array.ndim == 2 and array.dtype.kind in "biuf" and name.endswith("_labels"):
            advice = "; of one-hot labels take .argmax(1)"
        elif array.dtype.kind in "bf":
            advice = "; convert them with .astype(int)"
        elif array.dtype.kind in "US":
            advice = "; number them"
            advice += " from 0 and name them in class_names" if name.endswith("_labels") else ""
        raise _other(path, name, array, f"integers [N] or [N, 1]{advice}")
    if array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min:
        raise UserError(f"{reading.named(path)}: {name} do not fit in 32 bits; renumber them")
    return array.astype(np.int32)


def _other(path: Path, name: str, array: np.ndarray, allowed: str) -> UserError:
    """The error for an array of another type or shape."""
    found = f"{str(array.dtype)[:40]} {list(array.shape)}"
    return UserError(f"{reading.named(path)}: {name} are {found}; allowed: {allowed}")
