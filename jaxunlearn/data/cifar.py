"""CIFAR-10 and CIFAR-100, read from their binary archives as published."""

import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data import common
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError, one_line

_URL = "https://www.cs.toronto.edu/~kriz/"
_MD5 = {
    "cifar10": ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
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
    folder = Path(config.root or "~/.cache/jaxunlearn").expanduser()
    if config.path:
        path = Path(config.path).expanduser()
    else:
        path = common.fetch(_URL + filename, md5, folder, filename)
    try:
        # Opened here, as tarfile leaves a file open that it cannot read.
        with open(path, "rb") as file, tarfile.open(fileobj=file) as tar:
            files = {
                Path(member.name).name: tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.isfile()
            }
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a CIFAR archive (.tar.gz); give one of the layout of "
            f"{_URL + filename} ({one_line(error)})"
        ) from error
    if config.name == "cifar10":
        train = _examples(path, files, r"data_batch_\d+\.bin", 1)
        test = _examples(path, files, r"test_batch\.bin", 1)
        class_names = _CIFAR10_NAMES
    else:
        train = _examples(path, files, r"train\.bin", 2)
        test = _examples(path, files, r"test\.bin", 2)
        listed = files.get("fine_label_names.txt", b"").decode().split()
        class_names = tuple(listed or map(str, range(100)))
    train, val = common.hold_out(train, config.seed)
    return Dataset(config.name, train, val, test, class_names, licence="none stated")


def _examples(path: Path, files: dict[str, bytes], name: str, label_bytes: int) -> Examples:
    """The records of every file of that name: label bytes, the last of them ours, then CHW."""
    found = b"".join(files[file] for file in sorted(files) if re.fullmatch(name, file))
    size = label_bytes + 3072
    if not found or len(found) % size:
        raise UserError(
            f"{path}: {len(found)} bytes in files named {name}; "
            f"needed: the binary version, records of {size} bytes"
        )
    records = np.frombuffer(found, np.uint8).reshape(-1, size)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32))
