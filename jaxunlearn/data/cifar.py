"""CIFAR-10 and CIFAR-100, read from their binary archives as published."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data import common, reading
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError

_URL = "https://www.cs.toronto.edu/~kriz/"
_MD5 = {
    "cifar10": ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
_NEEDED = r"(data_batch_\d+|test_batch|train|test)\.bin|fine_label_names\.txt"
_CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load(config: Any) -> Dataset:
    """CIFAR-10 or CIFAR-100 (fine labels); Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.

    Nothing is unpacked to disk. A random tenth of the published training set, seeded by
    `config.seed`, is the validation set: 45,000 train, 5,000 val and 10,000 test images
    `[N, 32, 32, 3]`.

    Args:
      config: the `data` config; `path` is an archive of that layout, read without a checksum, in
        place of the published one; `root` the folder for the download (~/.cache/jaxunlearn).

    Raises:
      UserError: the download fails, the checksum is wrong, or the archive has another layout.
    """
    filename, md5 = _MD5[config.name]
    form = reading.Form("a CIFAR archive (.tar.gz)", f"give one of the layout of {_URL + filename}")
    path = config.path
    if not path:
        folder = config.root or "~/.cache/jaxunlearn"
        path = common.fetch(_URL + filename, md5, folder, filename)
    path = reading.regular(path, "data.path", form)
    files = reading.tar_gz(path, form, _NEEDED)
    if config.name == "cifar10":
        train = _examples(path, files, r"data_batch_\d+\.bin", 1)
        test = _examples(path, files, r"test_batch\.bin", 1)
        class_names: tuple[str, ...] = _CIFAR10_NAMES
    else:
        train = _examples(path, files, r"train\.bin", 2)
        test = _examples(path, files, r"test\.bin", 2)
        class_names = _fine_names(path, files.get("fine_label_names.txt"))
    train, val = common.hold_out(train, config.seed)
    return Dataset(config.name, train, val, test, class_names, licence="none stated")


def _fine_names(path: Path, listed: bytes | None) -> tuple[str, ...]:
    """The names of CIFAR-100's classes, in the order of their labels."""
    if listed is None:
        return tuple(map(str, range(100)))
    names = tuple(listed.decode(errors="replace").split())
    if len(names) != 100:
        raise UserError(
            f"{reading.named(path)}: fine_label_names.txt has {len(names)} names; needed: 100, or "
            "no such file"
        )
    return names


def _examples(path: Path, files: dict[str, bytes], name: str, label_bytes: int) -> Examples:
    """The records of every file of that name: label bytes, the last of them ours, then CHW."""
    found = b"".join(files[file] for file in sorted(files) if re.fullmatch(name, file))
    size = label_bytes + 3072
    if not found or len(found) % size:
        raise UserError(
            f"{reading.named(path)}: {len(found)} bytes in files named {name}; "
            f"needed: the binary version, records of {size} bytes"
        )
    records = np.frombuffer(found, np.uint8).reshape(-1, size)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32))
