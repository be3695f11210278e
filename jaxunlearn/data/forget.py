"""Forget requests: from what must go to the index arrays `forget` and `retain`."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import rules
from jaxunlearn.data import reading, rows
from jaxunlearn.data.dataset import SETS, Dataset
from jaxunlearn.errors import UserError, shown
from jaxunlearn.keys import stage_rng
from jaxunlearn.rules import Rule


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices into train, int64 and sorted: disjoint, together all of train.

    Of a later request of a sequence: together what the earlier ones have left of it.
    """

    forget: np.ndarray
    retain: np.ndarray

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both index arrays."""
        digest = hashlib.sha256(f"{len(self.forget)} {len(self.retain)}".encode())
        for indices in (self.forget, self.retain):
            digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()


def resolve(
    request: Any, dataset: Dataset, gone: np.ndarray | None = None
) -> tuple[Split, list[str]]:
    """Turns a forget request into a split of the training examples.

    The same request and data set give the same split. A share of n examples is
    `round(fraction * n)` of them, halves rounded to even; with one seed, the examples of a
    smaller fraction are among those of a larger one (except for whole groups).

    Args:
      request: the `forget` config, see `DEFAULTS`. `kind` is a key of `REQUESTS`:
        "fraction": `fraction` of every class, or of all examples where `balanced` is False;
        "per_class": `fractions`, one per class by label, 0 where a class stays whole;
        "class": the whole `classes`;
        "groups": the `groups` of these ids;
        "random_groups": random whole groups that together hold at most `fraction` of the examples;
        "indices": the training indices in the file `path`: UTF-8 text of up to 16 MiB, digits
          only, one index per line; `.npy`; or `.npz` with `forget`;
        "table": the training images that have one of the `ids` in a `column` of the CSV `path`,
          see `jaxunlearn.data.rows.read`. Where it has a column of patients (`PATIENT`), the
          warnings are about the forgotten images' patients, otherwise about the ids; and about the
          data set's groups where the table tells nothing of a set.
        `seed` seeds what is random.
      dataset: the data set.
      gone: training examples that earlier requests took, int `[M]`. They are in neither part of the
        split: who asks for them again asks for the rest of the request, which may be nothing.

    Returns:
      The split, and warnings in plain sentences: images of a forgotten group that stay in retain,
      val or test, so that the patient is not forgotten or the set is not one of unseen patients;
      what a table leaves open; classes that a request of no class takes whole; exact copies of
      forgotten images in retain, which teach what they taught.

    Raises:
      UserError: a setting that breaks its rule; what is asked for does not exist, or leaves forget
        or retain empty; or what is drawn at random leaves a class of retain empty.
    """
    rules.check(request, RULES, "forget")
    num_train = len(dataset.train)
    asked, there = np.zeros(num_train, bool), np.ones(num_train, bool)
    asked[REQUESTS[request.kind](request, dataset)] = True
    there[np.array([], int) if gone is None else gone] = False
    split = Split(np.flatnonzero(asked & there), np.flatnonzero(~asked & there))
    if not asked.any():
        raise UserError(
            f"forget.kind={request.kind!r} selects none of {num_train} training examples; "
            "forget more"
        )
    again = _again(asked, there)
    if len(split.forget) == 0:
        return split, again
    if len(split.retain) == 0:
        left = f"all {there.sum()} training examples" + " that are left" * (not there.all())
        raise UserError(
            f"forget.kind={request.kind!r} selects {left} and leaves none to retain; forget fewer"
        )
    labels = dataset.train.labels
    emptied = np.setdiff1d(labels[there], labels[split.retain])
    if len(emptied) and request.kind not in NAMING:
        raise UserError(
            f"forget.kind={request.kind!r} takes every example of class {emptied[0]} "
            f"({dataset.class_names[emptied[0]]}); forget fewer, or use kind='class'"
        )
    whole = [
        f"the request takes every training image of {shown(dataset.class_names[label])}, so that "
        "this class is forgotten whole."
        for label in (emptied if request.kind != "class" else ())
    ]
    sets = {name: getattr(dataset, name).groups for name in SETS}
    places: dict[str, str] = {}
    unknown: list[str] = []
    if sets["train"] is not None:
        places = _left(split, sets, "groups", "forget.kind='groups' forgets whole groups")
    if request.kind == "table":
        by_table, unknown = _left_by_table(split, request, dataset)
        places |= by_table
    return split, [*again, *whole, *places.values(), *unknown, *_copies(split, dataset)]


def _copies(split: Split, dataset: Dataset) -> list[str]:
    """How many forgotten images are in retain once more."""
    digests = dataset.train.digests
    copies = int(np.isin(digests[split.forget], digests[split.retain]).sum())
    if copies == 0:
        return []
    return [
        f"{copies} of {len(split.forget)} forgotten images have exact copies in retain, which "
        "teach the same: forget those too."
    ]


def _again(asked: np.ndarray, there: np.ndarray) -> list[str]:
    """How many of the images asked for went with an earlier request."""
    before, number = int(np.sum(asked & ~there)), int(asked.sum())
    if before == 0:
        return []
    if before == number:
        return [f"all {number} images asked for are forgotten already: nothing to do."]
    return [f"{before} of the {number} images asked for are forgotten already."]


def _left_by_table(
    split: Split, request: Any, dataset: Dataset
) -> tuple[dict[str, str], list[str]]:
    """What a table tells of the patients whose images are forgotten, and of those it lacks."""
    table = rows.read(request.path, "forget.path", dataset)
    patients = [column for column in table.columns if PATIENT.fullmatch(column.strip())]
    column = patients[0] if patients else request.column
    sets = table.column(column)
    left = _left(split, sets, f"{column}s", f"name them by forget.column={column!r}")
    if not patients:  # beside what the data set's groups tell, not in its place
        left = {f"{column} {name}": warning for name, warning in left.items()}
    grouped = [name for name in ("val", "test") if getattr(dataset, name).groups is not None]
    unknown = {column: [name for name in SETS if name not in grouped]}
    unknown |= {request.column: ["train"]} if request.column != column else {}
    notes = []
    for name, of in unknown.items():
        cells = table.column(name)
        counts = [
            f"{(cells[which] == '').sum()} of {len(cells[which])} of {which}"
            for which in of
            if (cells[which] == "").any()
        ]
        if counts:
            notes.append(
                f"Images without {name} in the table: {', '.join(counts)}. Whether some are of "
                "those to forget is not known."
            )
    return left, notes + _written_alike(table.column(request.column), request.ids)


def _written_alike(sets: Mapping[str, np.ndarray], ids: Iterable[object]) -> list[str]:
    """Whether other values are those to forget but for case, spaces or leading zeros."""

    def plain(text: str) -> str:
        return "".join(text.split()).casefold().lstrip("0")

    asked = {str(each).strip() for each in ids}
    alike = {plain(each) for each in asked}
    every = np.concatenate(list(sets.values()))
    others = [text for text in every if text not in {"", *asked} and plain(text) in alike]
    if not others:
        return []
    return [
        f"{len(others)} images have {shown(sorted(set(others)))}, written almost as what is to be "
        "forgotten: name these too, if they are the same."
    ]


def _left(
    split: Split, sets: Mapping[str, np.ndarray | None], what: str, advice: str
) -> dict[str, str]:
    """By set, how many images of the forgotten groups are left, by the groups of its images."""
    groups = sets["train"]
    assert groups is not None
    places = {
        "retain": (groups[split.retain], advice),
        "val": (sets["val"], f"val is not of unseen {what}"),
        "test": (sets["test"], f"test is not of unseen {what}"),
    }
    forgotten = np.unique(groups[split.forget])
    forgotten = forgotten[forgotten != ""] if groups.dtype == object else forgotten
    warnings = {}
    for name, (others, advice) in places.items():
        if others is None:
            continue
        left = others[np.isin(others, forgotten)]
        if len(left):
            warnings[name] = (
                f"{len(np.unique(left))} of {len(forgotten)} forgotten {what} still have "
                f"{len(left)} images in {name}: {advice}."
            )
    return warnings


def _fraction(request: Any, dataset: Dataset) -> np.ndarray:
    """A share of every class, or of all."""
    fraction = request.fraction
    if request.balanced:
        return _share(request, dataset, [fraction] * dataset.num_classes)
    order = stage_rng("forget", request.seed).permutation(len(dataset.train))
    return order[: round(fraction * len(order))]


def _per_class(request: Any, dataset: Dataset) -> np.ndarray:
    """A share of its own for each class."""
    if len(request.fractions) != dataset.num_classes:
        raise UserError(
            f"forget.fractions must be one number for each of the {dataset.num_classes} classes, "
            f"by label, got {len(request.fractions)}"
        )
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
    """The groups that are named."""
    groups = _of_train(request, dataset)
    if dataset.group_names:
        raise UserError(
            "forget.groups takes whole numbers, and the groups here are texts, such as "
            f"{shown(dataset.group_names[0])}; name them by forget.kind='table' and the CSV "
            "that has them, or give training indices"
        )
    if not len(request.groups):  # and not a random share, which an empty list does not ask for
        raise UserError(
            "forget.kind='groups' needs forget.groups, whole numbers such as (17, 42), and there "
            "are none; for random ones set forget.kind='random_groups'"
        )
    ids = np.unique(groups).tolist()
    _known("groups", request.groups, ids, "a group of a training example")
    return np.flatnonzero(np.isin(groups, list(request.groups)))


def _of_train(request: Any, dataset: Dataset) -> np.ndarray:
    """The training examples' groups."""
    if dataset.train.groups is None:
        raise UserError(
            f"forget.kind={request.kind!r}: {dataset.name} has no groups; "
            "use another kind, or a data set with patient or lesion ids"
        )
    return dataset.train.groups


def _random_groups(request: Any, dataset: Dataset) -> np.ndarray:
    """Random whole groups up to a share of the examples."""
    groups = _of_train(request, dataset)
    ids, sizes = np.unique(groups, return_counts=True)
    room = round(request.fraction * len(groups))
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
    suffix = os.path.splitext(request.path)[1].lower()
    form = _FORMS.get(suffix, _TEXT)
    path = reading.regular(request.path, "forget.path", form)
    lines, num_train = None, len(dataset.train)

    def check(declared: dict[str, reading.Declared]) -> None:
        (array,) = declared.values()
        if array.dtype.kind not in "iu" or array.ndim != 1:
            found = f"{str(array.dtype)[:40]} {list(array.shape)}"
            advice = "; of a mask take numpy.flatnonzero" if array.dtype.kind == "b" else ""
            raise UserError(
                f"{reading.named(path)}: the indices are {found}; allowed: integers [N]{advice}"
            )
        if array.shape[0] > num_train:
            raise UserError(
                f"{reading.named(path)} lists {array.shape[0]} indices and train has {num_train} "
                "images; list each once"
            )

    if suffix == ".npz":
        indices = reading.npz(path, form, ["forget"], check=check)["forget"]
    elif suffix == ".npy":
        indices = reading.npy(path, form, "the list", check)
    else:
        indices, lines = _text_indices(path)

    def place(at: int) -> str:
        return f"{reading.named(path)}{'' if lines is None else f', line {lines[at]}'}"

    outside = np.flatnonzero((indices < 0) | (indices >= num_train))
    if len(outside):
        raise UserError(
            f"{place(outside[0])}: the index {indices[outside[0]]} is not in train; "
            f"allowed: 0 to {num_train - 1}"
        )
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        twice, times = values[counts > 1][0], counts[counts > 1][0]
        raise UserError(
            f"{place(np.flatnonzero(indices == twice)[1])}: the index {twice} is listed {times} "
            "times; list each once"
        )
    return indices.astype(np.int64)


def _table(request: Any, dataset: Dataset) -> np.ndarray:
    """The images that a table says are of these values."""
    if not request.path or not request.column:
        raise UserError(
            "forget.kind='table' needs forget.path, a CSV with a row for each image, and "
            "forget.column, such as 'patient'"
        )
    table = rows.read(request.path, "forget.path", dataset)
    return rows.select(table, request.column, request.ids)


# Kinds that say which images, so that a class that they take whole is no accident.
NAMING = ("class", "groups", "indices", "table")
# The column by which warnings go, such as PatientID.
PATIENT = re.compile(r"patient([ _-]?id)?", re.IGNORECASE)
REQUESTS: dict[str, Callable[[Any, Dataset], np.ndarray]] = {
    "fraction": _fraction,
    "per_class": _per_class,
    "class": _class,
    "groups": _groups,
    "random_groups": _random_groups,
    "indices": _indices,
    "table": _table,
}


DEFAULTS = {
    "kind": "fraction",  # fraction, per_class, class, groups, random_groups, indices, table
    "fraction": 0.2,
    "balanced": True,  # the fraction of every class, rather than over all
    "fractions": (),  # kind per_class: one fraction per class, by label
    "classes": (),  # kind class: labels to forget whole
    "groups": (),  # kind groups: which
    "path": "",  # kind indices: a file of training indices; kind table: a CSV of images
    "column": "",  # kind table: the CSV's column that says whose, such as patient
    "ids": (),  # kind table: of whom, such as ("P17", "P42")
    "seed": 0,  # the request is the same for every seed of the run
}
RULES: dict[str, Rule] = {
    "kind": rules.one_of(REQUESTS),
    "balanced": rules.TRUTH,
    "fraction": Rule(
        lambda value: 0 < value < 1, "more than 0 and less than 1, a share rather than a count"
    ),
    "fractions": rules.numbers(
        lambda each: 0 <= each < 1, "numbers from 0 to below 1, one per class"
    ),
    "classes": rules.whole_numbers(0, "labels, whole numbers from 0"),
    "groups": rules.whole_numbers(),
    "seed": rules.SEED,
}
# The settings that each kind reads.
READS: dict[str, tuple[str, ...]] = {
    "fraction": ("fraction", "balanced", "seed"),
    "per_class": ("fractions", "seed"),
    "class": ("classes",),
    "groups": ("groups",),
    "random_groups": ("fraction", "seed"),
    "indices": ("path",),
    "table": ("path", "column", "ids"),
}


def reads(request: Any) -> tuple[str, ...]:
    """The settings that a request reads."""
    return READS[request.kind]


def check_named(changes: Mapping[str, Any], where: str) -> None:
    """Raises where a request says nothing, or names no group where it is about to name some.

    Either would be read as a random share: a list of patients that came out empty must not be.
    """
    groups = changes.get("groups", "")
    if not changes or (not isinstance(groups, str) and np.size(groups) == 0):
        raise UserError(
            f"{where} is {shown(changes)}, which names nothing to forget; name groups, or give a "
            "fraction, without groups, for random ones"
        )


def _known(field: str, given: Collection[int], allowed: Iterable[int], what: str) -> None:
    """Raises unless there are ids and every one is allowed."""
    allowed = list(allowed)
    wrong = sorted(set(given) - set(allowed))
    if wrong:
        raise UserError(
            f"forget.{field} must be among {len(allowed)} ids from {min(allowed)} to "
            f"{max(allowed)}, got {wrong[0]}, which is not {what}"
        )
    if not len(given):
        raise UserError(f"forget.{field} is empty; name {what}")


_TEXT = reading.Form(
    "a list of indices", "give one whole number a line, digits only, as UTF-8 text"
)
_FORMS = {
    ".npz": reading.Form("a .npz with forget", "save it with numpy.savez(path, forget=indices)"),
    ".npy": reading.Form("a .npy of indices", "save it with numpy.save(path, indices)"),
}


def _text_indices(path: Path) -> tuple[np.ndarray, list[int]]:
    """One index a line, and the numbers of these lines; empty lines are skipped."""
    indices, numbers = [], []
    for number, line in enumerate(reading.text(path, _TEXT).split("\n"), start=1):
        word = line.strip(" \t")
        if not word:
            continue
        # Python's int would take 1_000, +5 and digits of other scripts too.
        if not re.fullmatch(r"-?[0-9]{1,18}", word):
            raise UserError(
                f"{reading.named(path)}, line {number}: {shown(word)} is not an index; "
                f"{_TEXT.advice}"
            )
        indices.append(int(word))
        numbers.append(number)
    if not indices:
        raise UserError(f"{reading.named(path)} has no index in it; {_TEXT.advice}")
    return np.array(indices, np.int64), numbers
