"""Data sources by name, each giving the same `Dataset`; `forget` turns requests into splits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn.data import cifar, lesions, medmnist, npz, tfds
from jaxunlearn.data.dataset import Dataset, Examples, check
from jaxunlearn.errors import UserError, unknown

__all__ = ["SOURCES", "Dataset", "Examples", "load"]

SOURCES: dict[str, Callable[[Any], Dataset]] = {
    "lesions": lesions.load,
    **dict.fromkeys([*medmnist.FLAGS, "chestmnist"], medmnist.load),
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "npz": npz.load,
    "tfds": tfds.load,
}


def load(config: Any) -> Dataset:
    """The data set that the `data` config asks for, checked.

    Args:
      config: `name` (a key of `SOURCES`), `path`, `root`, `size`, `seed`, `count`, `tfds_name` as
        the source reads them; `malignant`, the labels that count as malignant, () for the data
        set's own; `binary`, True for two classes, 0 benign and 1 malignant.

    Raises:
      UserError: an unknown name, data that does not fit, or binary without malignant classes.
    """
    if config.name not in SOURCES:
        raise unknown("dataset", config.name, SOURCES)
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
