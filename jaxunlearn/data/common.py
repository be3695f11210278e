"""Shared by data sources: a checked download and a validation split."""

import os
from pathlib import Path

import numpy as np
import pooch

from jaxunlearn.data import reading
from jaxunlearn.data.dataset import Examples
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.files import discard, local, sweep, temporary
from jaxunlearn.keys import stage_rng


def fetch(url: str, md5: str, root: str, name: str) -> Path:
    """Returns `root/name`, downloaded where it is missing; its MD5 is the published one."""
    folder = local(root, "data.root")
    path = folder / name
    if os.path.exists(path):  # False, not an error, for a folder that may not be searched
        form = reading.Form(f"the download {name}", "delete it to have it downloaded again")
        reading.regular(path, "data.root", form)
        given = pooch.file_hash(str(path), alg="md5")
        if given != md5:
            raise UserError(
                f"{reading.named(path)} has the MD5 {given}, published: {md5}; delete it to have "
                "it downloaded again, or give it as data.path to use it as it is"
            )
        return path
    sweep(folder)
    # A folder of ours: pooch writes into it under names that tell nobody whose they are.
    away = temporary(path)
    try:
        pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=away)
        os.replace(away / name, path)
    # Exception: no network or disk, another checksum, or whatever else three libraries raise.
    except Exception as error:
        raise UserError(
            f"cannot download {name} ({one_line(error)[:60]}): download {url} (MD5 {md5}) "
            f"yourself and put it in {reading.named(folder)}"
        ) from error
    finally:
        discard(away)
    return path


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Train and validation: a random tenth of each class, at least one example, is held out."""
    rng, labels = stage_rng("validation", seed), examples.labels
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    val = np.sort(np.concatenate([order[: (len(order) + 5) // 10] for order in orders]))
    if not len(val):
        val = max(orders, key=len)[:1]
    train = np.setdiff1d(np.arange(len(examples)), val)
    return (
        Examples(examples.images[train], examples.labels[train]),
        Examples(examples.images[val], examples.labels[val]),
    )
