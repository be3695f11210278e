"""Shared by data sources: a checked download and a validation split."""

from pathlib import Path

import numpy as np
import pooch

from jaxunlearn.data.dataset import Examples
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.keys import stage_rng


def fetch(url: str, md5: str, folder: Path, name: str) -> Path:
    """Returns `folder/name`, downloaded where it is missing; its MD5 is the published one."""
    path = folder / name
    if path.exists():
        given = pooch.file_hash(str(path), alg="md5")
        if given != md5:
            raise UserError(
                f"{path} has the MD5 {given}, published: {md5}; delete it to have it downloaded "
                "again, or give it as data.path to use it as it is"
            )
        return path
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=folder)
    except (OSError, ValueError) as error:  # no network or disk; another checksum
        raise UserError(
            f"cannot download {name}: download {url} (MD5 {md5}) yourself and put it in {folder} "
            f"({one_line(error)})"
        ) from error
    return path


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Train and validation: a random tenth, at least one example, is held out."""
    order = stage_rng("validation", seed).permutation(len(examples))
    num_val = max(1, round(0.1 * len(examples)))
    val, train = np.sort(order[:num_val]), np.sort(order[num_val:])
    return (
        Examples(examples.images[train], examples.labels[train]),
        Examples(examples.images[val], examples.labels[val]),
    )
