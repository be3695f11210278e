"""The data sources by name, the `data` section of a config, and a data set made from it."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn import rules
from jaxunlearn.data import cifar, lesions, medmnist, npz, rows, tfds
from jaxunlearn.data.dataset import SETS, Dataset, Examples, check
from jaxunlearn.errors import UserError, shown
from jaxunlearn.rules import Rule

MISSING = ("na", "n/a", "nan", "none", "null")  # how R, Python and others write no id

SOURCES: dict[str, Callable[[Any], Dataset]] = {
    "lesions": lesions.load,
    **dict.fromkeys([*medmnist.FLAGS, "chestmnist"], medmnist.load),
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "npz": npz.load,
    "tfds": tfds.load,
}

DEFAULTS = {
    "name": "lesions",  # lesions, a MedMNIST name, cifar10, cifar100, npz, tfds
    "path": "",  # a file to read in place of the published download
    "root": "",  # folder of downloads; empty: where each data set usually lies
    "size": 28,  # image size in pixels, where the source has several
    "groups": "",  # a CSV of whose images are whose, see jaxunlearn.data.rows
    "groups_column": "patient",  # its column that tells
    "allow_empty_classes": False,  # True: there may be classes without a training image
    "malignant": (),  # malignant labels; (): those that the data set is known for
    "binary": False,  # True: two classes, benign 0 and malignant 1
    "seed": 0,  # of generated images and of random validation sets
    "count": 2000,  # training images to generate
    "tfds_name": "",
    "mean": (0.5,),  # subtracted from images in [0, 1], per channel; constants, so that
    "std": (0.5,),  # nothing of the forgotten images lives on in them
}
RULES: dict[str, Rule] = {
    "name": rules.one_of(SOURCES),
    "size": rules.whole(8, 2**14),  # the models pool three times
    "allow_empty_classes": rules.TRUTH,
    "malignant": rules.whole_numbers(0, "labels, whole numbers from 0"),
    "binary": rules.TRUTH,
    "seed": rules.SEED,
    "count": rules.whole(10, 10**9),
    # Of images in [0, 1]; numbers of images in 0 to 255 are refused, and no value overflows.
    "mean": rules.numbers(
        lambda each: 0 <= each <= 1, "1 or 3 numbers from 0 to 1, as images are", counts=(1, 3)
    ),
    "std": rules.numbers(
        lambda each: 0.001 <= each <= 10, "1 or 3 numbers from 0.001 to 10", counts=(1, 3)
    ),
}
# The settings that each source reads, beyond those that all do: malignant, binary, mean, std,
# groups, groups_column and allow_empty_classes.
READS: dict[str, tuple[str, ...]] = {
    "lesions": ("size", "count", "seed"),
    **dict.fromkeys([*medmnist.FLAGS, "chestmnist"], ("path", "root", "size")),
    "cifar10": ("path", "root", "seed"),
    "cifar100": ("path", "root", "seed"),
    "npz": ("path",),
    "tfds": ("tfds_name", "root", "seed"),
}


def load(config: Any) -> Dataset:
    """The data set that the `data` config asks for, checked.

    Args:
      config: see `DEFAULTS`.

    Raises:
      UserError: a setting that breaks its rule, data that does not fit, a class without a training
        image that is not allowed, or binary without images of both kinds.
    """
    rules.check(config, RULES, "data")
    dataset = SOURCES[config.name](config)
    if len(config.malignant):
        malignant = tuple(sorted({int(label) for label in config.malignant}))
        dataset = dataclasses.replace(dataset, malignant=malignant)
    check(dataset, config.get("allow_empty_classes", False))
    if config.get("groups"):
        dataset = _grouped(dataset, config.groups, config.groups_column)
    return _binary(dataset) if config.binary else dataset


def _grouped(dataset: Dataset, path: str, column: str) -> Dataset:
    """With the groups of a table; ids that are numbers stay, other texts are numbered in order."""
    texts = rows.read(path, "data.groups", dataset).column(column)
    texts = {
        which: np.array(["" if text.lower() in MISSING else text for text in each])
        for which, each in texts.items()
    }
    texts = {which: each for which, each in texts.items() if any(each)}
    for which, each in {"train": np.full(len(dataset.train), ""), **texts}.items():
        if not all(each):
            raise UserError(
                f"data.groups={shown(path)}: {np.sum(each == '')} of {len(each)} {which} images "
                f"have no {column}; give each a row with one, or leave all of a set out but train"
            )
    known = np.unique(np.concatenate(list(texts.values())))
    numbers = all(re.fullmatch("[0-9]{1,9}", text) for text in known)
    written: dict[int, str] = {}
    for text in map(str, known if numbers else ()):
        other = written.setdefault(int(text), text)
        if other != text:
            raise UserError(
                f"data.groups={shown(path)}: {column} is both {shown(other)} and {shown(text)}; "
                "write one id in one way, or put a letter before ids that are no numbers"
            )

    def with_groups(which: str) -> Examples:
        found = texts.get(which)
        if found is not None:
            found = (found if numbers else np.searchsorted(known, found)).astype(np.int32)
        return dataclasses.replace(getattr(dataset, which), groups=found)

    train, val, test = map(with_groups, SETS)
    names = () if numbers else tuple(known.tolist())
    return dataclasses.replace(dataset, train=train, val=val, test=test, group_names=names)


def _binary(dataset: Dataset) -> Dataset:
    """Label 1 for the malignant classes, 0 for the rest."""
    if not 0 < len(dataset.malignant) < dataset.num_classes:
        raise UserError(
            f"data.binary=True needs some malignant classes and some benign ones; {dataset.name} "
            f"counts {len(dataset.malignant)} of {dataset.num_classes} as malignant; "
            "set data.malignant"
        )

    malignant = np.isin(dataset.train.labels, dataset.malignant)
    if malignant.all() or not malignant.any():
        raise UserError(
            f"data.binary=True needs training images of malignant classes and of benign ones; of "
            f"the {len(malignant)} of {dataset.name} {malignant.sum()} are malignant; "
            "set data.malignant, or give images of both"
        )

    def relabel(examples: Examples) -> Examples:
        labels = np.isin(examples.labels, dataset.malignant).astype(np.int32)
        return dataclasses.replace(examples, labels=labels)

    return dataclasses.replace(
        dataset,
        name=f"binary {dataset.name}",
        train=relabel(dataset.train),
        val=relabel(dataset.val),
        test=relabel(dataset.test),
        class_names=("benign", "malignant"),
        malignant=(1,),
    )
