"""The one form in which every data source gives its examples."""

import collections
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from jaxunlearn.errors import UserError, shown

SETS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images uint8 `[N, H, W, C]`, labels int32 `[N]`, groups (patient or lesion) int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        """A hash of each image, `[N]`: equal where images are exact copies."""
        images = np.ascontiguousarray(self.images)
        return np.array([hashlib.blake2b(each.data, digest_size=16).hexdigest() for each in images])


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
      caution: what is known of groups in several sets where the data do not say; a sentence.
      group_names: the texts that groups number; empty where the numbers are ids themselves.
    """

    name: str
    train: Examples
    val: Examples
    test: Examples
    class_names: tuple[str, ...]
    malignant: tuple[int, ...] = ()
    licence: str = "unknown"
    synthetic: bool = False
    caution: str = ""
    group_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every array and over what the labels mean."""
        return self._digest([list(self.class_names), list(self.malignant)])

    @functools.cached_property
    def arrays(self) -> str:
        """SHA-256 over every array alone."""
        return self._digest([])

    def _digest(self, meaning: list[Any]) -> str:
        """SHA-256 over what the labels mean and every array."""
        digest = hashlib.sha256(json.dumps(meaning).encode())
        for examples in (self.train, self.val, self.test):
            for array in (examples.images, examples.labels, examples.groups):
                if array is None:
                    digest.update(b"none")
                else:
                    digest.update(f"{array.dtype}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @functools.cached_property
    def notes(self) -> list[str]:
        """What is odd but allowed, in sentences: classes that a set lacks, images in two sets."""
        known = [self.caution] * (self.caution != "" and self.train.groups is None)
        return known + _level_notes(self) + _class_notes(self) + _overlap_notes(self)


def check(dataset: Dataset, allow_empty_classes: bool = False) -> Dataset:
    """Returns the dataset, or raises `UserError` at the first thing that does not fit.

    Args:
      dataset: any.
      allow_empty_classes: whether there may be classes without a training image.
    """
    _check_names(dataset)
    shape = dataset.train.images.shape[1:]
    for name, examples in _sets(dataset).items():
        images, labels = examples.images, examples.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{dataset.name}: {name} images are {images.dtype} {list(images.shape)}; "
                "allowed: uint8 [N, H, W, 1 or 3]; convert the file"
            )
        if min(images.shape[1:3]) < 8:
            raise UserError(
                f"{dataset.name}: {name} images are {list(images.shape[1:3])}; allowed: 8 pixels "
                "or more a side, as the models pool three times; resize them"
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
                f"allowed: 0 to {dataset.num_classes - 1}; number the classes from 0, or fix the "
                "class names"
            )
        if examples.groups is not None and examples.groups.shape != labels.shape:
            raise UserError(
                f"{dataset.name}: {name} has {len(labels)} labels and groups of shape "
                f"{list(examples.groups.shape)}; give one group per image"
            )
        if examples.groups is not None and examples.groups.min() < 0:
            raise UserError(
                f"{dataset.name}: {name} has the group {examples.groups.min()}; allowed: whole "
                "numbers from 0; where an id is missing, give that image a group of its own"
            )
        names = len(dataset.group_names)
        if (
            names
            and examples.groups is not None
            and not np.isin(examples.groups, range(names)).all()
        ):
            raise UserError(
                f"{dataset.name}: there are {names} names of groups (about_group_names), and "
                f"{name} has others; number groups from 0, in the order of their names"
            )
    wrong = [c for c in dataset.malignant if not 0 <= c < dataset.num_classes]
    if wrong:
        raise UserError(
            f"data.malignant must be labels from 0 to {dataset.num_classes - 1} of {dataset.name}, "
            f"got {wrong[0]}"
        )
    _check_classes(dataset, allow_empty_classes)
    return dataset


def _check_names(dataset: Dataset) -> None:
    """Raises unless the classes have names that tables can tell apart."""
    names = dataset.class_names
    for label, name in enumerate(names):
        if not (name.isprintable() and 0 < len(name.strip()) and len(name) <= 100):
            raise UserError(
                f"{dataset.name}: class {label} has the name {shown(name)}; allowed: 1 to 100 "
                "printable characters; fix the class names"
            )
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(
                f"{dataset.name}: {times} classes have the name {shown(name)}; "
                "give each class a name of its own"
            )


def _check_classes(dataset: Dataset, allow_empty: bool) -> None:
    """Raises unless train has images of every class, or of two where some may be empty."""
    present = np.unique(dataset.train.labels)
    empty = np.setdiff1d(np.arange(dataset.num_classes), present)
    if len(empty) and not allow_empty:
        advice = "fix the labels or the class names"
        if empty.tolist() == [0] and all((s.labels > 0).all() for s in _sets(dataset).values()):
            advice = "the labels start at 1: subtract 1"
        raise UserError(
            f"{dataset.name}: {len(empty)} of {dataset.num_classes} classes have no training "
            f"image: {_listed(dataset, empty)}; {advice}, or set data.allow_empty_classes=True"
        )
    if len(present) < 2:
        raise UserError(
            f"{dataset.name}: all {len(dataset.train)} training images are of class "
            f"{_listed(dataset, present)}; give images of another class too"
        )


def _sets(dataset: Dataset) -> dict[str, Examples]:
    """The three sets by name."""
    return {name: getattr(dataset, name) for name in SETS}


def _listed(dataset: Dataset, labels: np.ndarray) -> str:
    """Classes by label and name, the first few of them."""
    words = [f"{label} ({shown(dataset.class_names[label], 40)[1:-1]})" for label in labels[:3]]
    return ", ".join(words) + (", …" if len(labels) > 3 else "")


def _level_notes(dataset: Dataset) -> list[str]:
    """Whether images look as if they had been made uint8 the wrong way."""
    images = dataset.train.images
    highest = images.max((1, 2, 3))
    if highest.max() <= 1:
        return [
            f"The highest level of train is {highest.max()}, where 255 is white: images from 0 to "
            "1 become (255 * x).round().astype(np.uint8)."
        ]
    flat = int((highest == images.min((1, 2, 3))).sum())
    if flat == 0:
        return []
    return [
        f"{flat} of {len(images)} training images have one level in every pixel, as where 16-bit "
        "files are cut to 8: look at them."
    ]


def _class_notes(dataset: Dataset) -> list[str]:
    """Which classes a set has no image of."""
    every = np.arange(dataset.num_classes)
    present = np.unique(dataset.train.labels)
    notes = []
    empty = np.setdiff1d(every, present)
    if len(empty):
        notes.append(
            f"Train has no image of {len(empty)} of {dataset.num_classes} classes: "
            f"{_listed(dataset, empty)} (data.allow_empty_classes)."
        )
    if dataset.malignant and not np.isin(dataset.malignant, present).any():
        notes.append("Train has no image of a malignant class: no model can learn to find one.")
    if dataset.malignant and np.isin(present, dataset.malignant).all():
        notes.append("Every class of train is malignant: there are no false alarms to count.")
    for which in ("val", "test"):
        lacking = np.setdiff1d(present, getattr(dataset, which).labels)
        if len(lacking):
            notes.append(
                f"{which.capitalize()} has no image of {len(lacking)} of the {len(present)} "
                f"classes of train: {_listed(dataset, lacking)}; its numbers say nothing of them."
            )
    return notes


def _overlap_notes(dataset: Dataset) -> list[str]:
    """How many images and groups are in two sets."""
    notes = []
    for first, which in (("train", "val"), ("train", "test"), ("val", "test")):
        ours, others = getattr(dataset, first), getattr(dataset, which)
        unseen, name = f"{which} is not of unseen", "training" if first == "train" else first
        if first == "val":
            unseen = "what is chosen on val is judged on the same"
        copies = int(np.isin(others.digests, ours.digests).sum())
        if copies:
            notes.append(
                f"{copies} of {len(others)} {which} images are exact copies of {name} images: "
                f"{unseen} images."
            )
        if ours.groups is not None and others.groups is not None:
            again = np.isin(others.groups, ours.groups)
            if again.any():
                notes.append(
                    f"{len(np.unique(others.groups[again]))} groups of {first} have "
                    f"{again.sum()} of {len(others)} {which} images: {unseen} groups."
                )
    return notes
