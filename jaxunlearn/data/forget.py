"""Forget requests: from what must go to the index arrays `forget` and `retain`."""

import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError, one_line, unknown
from jaxunlearn.keys import stage_rng


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices into train, int64 and sorted: disjoint, together all of train."""

    forget: np.ndarray
    retain: np.ndarray

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both index arrays."""
        digest = hashlib.sha256(f"{len(self.forget)} {len(self.retain)}".encode())
        for indices in (self.forget, self.retain):
            digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes a .npz with `forget` and `retain`."""
        with open(path, "wb") as file:  # a handle, as savez would add .npz to another name
            np.savez(file, forget=self.forget, retain=self.retain)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Split":
        """Reads what `save` wrote; `UserError` where the file is missing or is not a split."""
        forget, retain = _npz_arrays(path, "forget", "retain")
        both = np.concatenate([forget.ravel(), retain.ravel()])
        if not np.array_equal(np.sort(both), np.arange(len(both))):
            raise UserError(
                f"{path} is not a split: forget and retain must hold every index from 0 once; "
                "resolve the request again"
            )
        return cls(np.sort(forget).astype(np.int64), np.sort(retain).astype(np.int64))


def resolve(request: Any, dataset: Dataset) -> tuple[Split, list[str]]:
    """Turns a forget request into a split of the training examples.

    The same request and data set give the same split. A share of n examples is
    `round(fraction * n)` of them, a half to the even number; with one seed, the examples of a
    smaller fraction are among those of a larger one (but for whole groups).

    Args:
      request: the `forget` config. `kind` is a key of `REQUESTS`:
        "fraction": `fraction` of every class, or of all examples where `balanced` is False;
        "per_class": `fractions`, one a class by label, 0 where a class stays whole;
        "class": the whole `classes`;
        "groups": the `groups` of these ids or, without ids, random whole groups that together
          hold at most `fraction` of the examples;
        "indices": the training indices in the file `path`: text, one a line, `.npy`, or `.npz`
          with `forget`.
        `seed` draws what is random.
      dataset: the data set; only labels and groups are read.

    Returns:
      The split, and warnings in plain sentences: images of a forgotten group that stay in retain,
      val or test, so that the patient is not forgotten or the set is not one of unseen patients.

    Raises:
      UserError: what is asked for does not exist, or leaves forget, retain or, unless
        kind="class", a class of retain empty.
    """
    if request.kind not in REQUESTS:
        raise unknown("forget.kind", request.kind, REQUESTS)
    num_train = len(dataset.train)
    forgotten = np.zeros(num_train, bool)
    forgotten[REQUESTS[request.kind](request, dataset)] = True
    split = Split(np.flatnonzero(forgotten), np.flatnonzero(~forgotten))
    if len(split.forget) == 0:
        raise UserError(
            f"forget.kind={request.kind!r} selects none of {num_train} training examples; "
            "ask for more"
        )
    if len(split.retain) == 0:
        raise UserError(
            f"forget.kind={request.kind!r} selects all {num_train} training examples and leaves "
            "none to retain; ask for fewer"
        )
    labels = dataset.train.labels
    gone = np.setdiff1d(labels, labels[split.retain])
    if len(gone) and request.kind != "class":
        raise UserError(
            f"forget.kind={request.kind!r} takes every example of class {gone[0]} "
            f"({dataset.class_names[gone[0]]}); ask for fewer, or for the class by kind='class'"
        )
    return split, _warnings(split, dataset)


def _warnings(split: Split, dataset: Dataset) -> list[str]:
    """Where images of the forgotten groups are left."""
    groups = dataset.train.groups
    if groups is None:
        return []
    places = {
        "retain": (groups[split.retain], "forget.kind='groups' forgets whole groups"),
        "val": (dataset.val.groups, "val is not of unseen groups"),
        "test": (dataset.test.groups, "test is not of unseen groups"),
    }
    forgotten = np.unique(groups[split.forget])
    warnings = []
    for name, (others, advice) in places.items():
        if others is None:
            continue
        left = others[np.isin(others, forgotten)]
        if len(left):
            warnings.append(
                f"{len(np.unique(left))} of {len(forgotten)} forgotten groups still have "
                f"{len(left)} images in {name}: {advice}."
            )
    return warnings


def _fraction(request: Any, dataset: Dataset) -> np.ndarray:
    """A share of every class, or of all."""
    fraction = _checked("fraction", request.fraction)
    if request.balanced:
        return _share(request, dataset, [fraction] * dataset.num_classes)
    order = stage_rng("forget", request.seed).permutation(len(dataset.train))
    return order[: round(fraction * len(order))]


def _per_class(request: Any, dataset: Dataset) -> np.ndarray:
    """A share of its own for each class."""
    if len(request.fractions) != dataset.num_classes:
        raise UserError(
            f"forget.fractions has {len(request.fractions)} numbers; "
            f"allowed: one for each of the {dataset.num_classes} classes, by label"
        )
    for fraction in request.fractions:
        if fraction != 0:
            _checked("fractions", fraction)
    return _share(request, dataset, request.fractions)


def _share(request: Any, dataset: Dataset, fractions: Iterable[float]) -> np.ndarray:
    """Random examples, a fraction of each class."""
    rng = stage_rng("forget", request.seed)
    chosen = []
    for label, fraction in enumerate(fractions):
        order = rng.permutation(np.flatnonzero(dataset.train.labels == label))
        chosen.append(order[: round(fraction * len(order))])
    return np.concatenate(chosen)


def _class(request: Any, dataset: Dataset) -> np.ndarray:
    """Whole classes."""
    _known("classes", request.classes, range(dataset.num_classes), "a label of the data set")
    return np.flatnonzero(np.isin(dataset.train.labels, list(request.classes)))


def _groups(request: Any, dataset: Dataset) -> np.ndarray:
    """Whole groups: those named, or random ones up to a share of the examples."""
    groups = dataset.train.groups
    if groups is None:
        raise UserError(
            f"forget.kind='groups': {dataset.name} has no groups; "
            "use another kind, or a data set with patient or lesion ids"
        )
    ids, sizes = np.unique(groups, return_counts=True)
    if request.groups:
        _known("groups", request.groups, ids.tolist(), "a group of a training example")
        return np.flatnonzero(np.isin(groups, list(request.groups)))
    room = round(_checked("fraction", request.fraction) * len(groups))
    chosen = []
    for i in stage_rng("forget", request.seed).permutation(len(ids)):
        if sizes[i] <= room:
            chosen.append(ids[i])
            room -= sizes[i]
    return np.flatnonzero(np.isin(groups, chosen))


def _indices(request: Any, dataset: Dataset) -> np.ndarray:
    """The indices that a file lists."""
    if not request.path:
        raise UserError("forget.kind='indices' needs forget.path: a file of training indices")
    path = Path(request.path).expanduser()
    if path.suffix in (".npz", ".npy"):
        (indices,) = _npz_arrays(path, "forget")
    else:
        indices = _text_indices(path)
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise UserError(
            f"{path}: the indices are {indices.dtype} {list(indices.shape)}; allowed: integers [N]"
        )
    num_train = len(dataset.train)
    outside = indices[(indices < 0) | (indices >= num_train)]
    if len(outside):
        raise UserError(
            f"{path}: the index {outside[0]} is not in train; allowed: 0 to {num_train - 1}"
        )
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"{path}: the index {values[counts > 1][0]} is listed {counts[counts > 1][0]} times; "
            "list each once"
        )
    return indices.astype(np.int64)


REQUESTS: dict[str, Callable[[Any, Dataset], np.ndarray]] = {
    "fraction": _fraction,
    "per_class": _per_class,
    "class": _class,
    "groups": _groups,
    "indices": _indices,
}


def _checked(field: str, fraction: float) -> float:
    """The fraction, where it lies between 0 and 1."""
    if not 0 < fraction < 1:
        raise UserError(
            f"forget.{field}: {fraction}; allowed: more than 0 and less than 1; "
            "a share, not per cent or a count"
        )
    return fraction


def _known(field: str, given: Iterable[int], allowed: Iterable[int], what: str) -> None:
    """Raises unless there are ids and every one is allowed."""
    allowed = list(allowed)
    wrong = sorted(set(given) - set(allowed))
    if wrong:
        raise UserError(
            f"forget.{field} names {wrong[0]}, which is not {what}; "
            f"allowed: {len(allowed)} ids from {min(allowed)} to {max(allowed)}"
        )
    if not given:
        raise UserError(f"forget.{field} is empty; name {what}")


def _npz_arrays(path: str | os.PathLike, *names: str) -> list[np.ndarray]:
    """The named arrays of a .npz file; of a .npy file, its one array."""
    try:
        file = np.load(path, allow_pickle=False)  # a pickle could run any code
        return [file] if isinstance(file, np.ndarray) else [file[name] for name in names]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a file with {' and '.join(names)}: {one_line(error)}"
        ) from error


def _text_indices(path: Path) -> np.ndarray:
    """One integer a line; empty lines are passed over."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"forget.path: cannot read {path}; give one index a line ({error})"
        ) from error
    indices = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                indices.append(np.int64(line))
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}, line {number}: {line.strip()!r} is not an index; "
                    "give one integer a line"
                ) from error
    return np.array(indices, np.int64)
