"""Files in MedMNIST's layout: the reader that medmnist shares, and the source for a user's own."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError, one_line


def load(config: Any) -> Dataset:
    """The user's own images, from one `.npz` file in MedMNIST's layout.

    The file holds, for each of `train`, `val` and `test`: `*_images` uint8 `[N, H, W]` or
    `[N, H, W, C]`, `*_labels` integers `[N]` or `[N, 1]` and, where wanted, `*_groups` integers
    `[N]` (patient or lesion id, one numbering for the three sets); and, where wanted,
    `class_names`, a unicode array `[num_classes]`. Without it the classes are named "0", "1", ...

    Args:
      config: the `data` config; `path` is the file.

    Raises:
      UserError: no path, or the file is missing, unreadable, pickled, or of another layout.
    """
    if not config.path:
        raise UserError("data.name='npz' needs data.path: a .npz file in MedMNIST's layout")
    sets, class_names = read(config.path)
    if not class_names:
        highest = max(int(examples.labels.max()) for examples in sets)
        # Guards against ids taken for labels, before a name is made for every number up to them.
        if highest >= len(sets[0]):
            raise UserError(
                f"{config.path}: the highest label is {highest} and train has {len(sets[0])} "
                "images; number the classes from 0 without gaps"
            )
        class_names = tuple(str(c) for c in range(highest + 1))
    if len(class_names) < 2:
        raise UserError(f"{config.path}: {len(class_names)} class; at least 2 are needed")
    return Dataset(Path(config.path).stem, *sets, class_names)


def read(path: str | os.PathLike) -> tuple[tuple[Examples, Examples, Examples], tuple[str, ...]]:
    """Train, val and test of a file in MedMNIST's layout, and its class names, () where none."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"data.path: no file {path}; give a .npz file in MedMNIST's layout")
    try:
        # Opened here, as NumPy leaves a file open that it cannot read. A pickle could run any code.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a .npz of plain arrays (pickled ones are not allowed); "
            f"save it again with numpy.savez ({one_line(error)})"
        ) from error
    needed = [f"{s}_{kind}" for s in ("train", "val", "test") for kind in ("images", "labels")]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; needed: {', '.join(needed)}")
    names = arrays.get("class_names", np.array([], dtype=str))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(
            f"{path}: class_names are {names.dtype} {list(names.shape)}; "
            "allowed: a unicode array [num_classes]"
        )
    train, val, test = (_examples(path, arrays, name) for name in ("train", "val", "test"))
    return (train, val, test), tuple(str(name) for name in names)


def _examples(path: Path, arrays: dict[str, np.ndarray], name: str) -> Examples:
    """One of the three sets, brought to the contract's shapes and types."""
    images = arrays[f"{name}_images"]
    labels = _integers(path, f"{name}_labels", arrays[f"{name}_labels"])
    groups = arrays.get(f"{name}_groups")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise UserError(
            f"{path}: {name}_images are {images.dtype} {list(images.shape)}; "
            "allowed: uint8 [N, H, W] or [N, H, W, C], at least one image"
        )
    return Examples(
        images[..., None] if images.ndim == 3 else images,
        labels,
        None if groups is None else _integers(path, f"{name}_groups", groups),
    )


def _integers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as int32 `[N]`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0:
        raise UserError(
            f"{path}: {name} are {array.dtype} {list(array.shape)}; allowed: integers [N] or [N, 1]"
        )
    if array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min:
        raise UserError(f"{path}: {name} do not fit in 32 bits; renumber them")
    return array.astype(np.int32)
