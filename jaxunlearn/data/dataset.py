"""The one form in which every data source gives its examples."""

import dataclasses
import functools
import hashlib
import json

import numpy as np

from jaxunlearn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images uint8 `[N, H, W, C]`, labels int32 `[N]`, groups (patient or lesion) int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Train, validation and test examples, and what their labels mean.

    Attributes:
      name: how results name it.
      train, val, test: the examples; one image shape for all three.
      class_names: one name per class, by label.
      malignant: labels that count as malignant; empty where the data has no such reading.
      licence: the data's licence, repeated in every result.
      synthetic: True where the images are not of patients; every output states it.
    """

    name: str
    train: Examples
    val: Examples
    test: Examples
    class_names: tuple[str, ...]
    malignant: tuple[int, ...] = ()
    licence: str = "unknown"
    synthetic: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every array and over what the labels mean."""
        digest = hashlib.sha256()
        meaning = [list(self.class_names), list(self.malignant)]
        digest.update(json.dumps(meaning).encode())
        for examples in (self.train, self.val, self.test):
            for array in (examples.images, examples.labels, examples.groups):
                if array is None:
                    digest.update(b"none")
                else:
                    digest.update(f"{array.dtype}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check(dataset: Dataset) -> Dataset:
    """Returns the dataset, or raises `UserError` at the first thing that does not fit."""
    shape = dataset.train.images.shape[1:]
    for name in ("train", "val", "test"):
        examples: Examples = getattr(dataset, name)
        images, labels = examples.images, examples.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{dataset.name}: {name} images are {images.dtype} {list(images.shape)}; "
                "allowed: uint8 [N, H, W, 1 or 3]; convert the file"
            )
        if images.shape[1:] != shape:
            raise UserError(
                f"{dataset.name}: {name} images are {list(images.shape[1:])} and train images "
                f"{list(shape)}; all three sets need one shape"
            )
        if labels.shape != (len(images),) or len(images) == 0:
            raise UserError(
                f"{dataset.name}: {name} has {len(images)} images and labels of shape "
                f"{list(labels.shape)}; give one integer label per image, at least one image"
            )
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise UserError(
                f"{dataset.name}: {name} labels run from {labels.min()} to {labels.max()}; "
                f"allowed: 0 to {dataset.num_classes - 1}; fix the labels or the class names"
            )
        if examples.groups is not None and examples.groups.shape != labels.shape:
            raise UserError(
                f"{dataset.name}: {name} has {len(labels)} labels and groups of shape "
                f"{list(examples.groups.shape)}; give one group per image"
            )
    wrong = [c for c in dataset.malignant if not 0 <= c < dataset.num_classes]
    if wrong:
        raise UserError(
            f"data.malignant must be labels from 0 to {dataset.num_classes - 1} of {dataset.name}, "
            f"got {wrong[0]}"
        )
    return dataset
