"""The data sources by name, the `data` section of a config, and a data set made from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn import rules
from jaxunlearn.data import cifar, lesions, medmnist, npz, tfds
from jaxunlearn.data.dataset import Dataset, Examples, check
from jaxunlearn.errors import UserError
from jaxunlearn.rules import Rule

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
    "size": rules.whole(8),  # the models pool three times
    "malignant": rules.whole_numbers(0, "labels, whole numbers from 0"),
    "seed": rules.whole(0),
    "count": rules.whole(10),
    "mean": rules.numbers(lambda each: True, "1 or 3 numbers", counts=(1, 3)),
    "std": rules.numbers(lambda each: each > 0, "1 or 3 numbers above 0", counts=(1, 3)),
}


def load(config: Any) -> Dataset:
    """The data set that the `data` config asks for, checked.

    Args:
      config: see `DEFAULTS`.

    Raises:
      UserError: a setting that breaks its rule, data that does not fit, or binary without malignant
        classes.
    """
    rules.check(config, RULES, "data")
    dataset = SOURCES[config.name](config)
    if config.malignant:
        dataset = dataclasses.replace(dataset, malignant=tuple(sorted(set(config.malignant))))
    check(dataset)
    return _binary(dataset) if config.binary else dataset


def _binary(dataset: Dataset) -> Dataset:
    """Label 1 for the malignant classes, 0 for the rest."""
    if not 0 < len(dataset.malignant) < dataset.num_classes:
        raise UserError(
            f"data.binary=True needs some malignant classes and some benign ones; {dataset.name} "
            f"counts {len(dataset.malignant)} of {dataset.num_classes} as malignant; "
            "set data.malignant"
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
