"""A table of whose images are whose: a CSV with a row for each image, as hospitals keep them."""

import contextlib
import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import reading
from jaxunlearn.data.dataset import SETS, Dataset
from jaxunlearn.errors import UserError, near, shown, unknown

INDEX, SETS_COLUMN = "index", ("set", "split")  # columns, the second by either name
# What a column of sets holds, in the words of others too.
SET_WORDS = {*SETS, "training", "valid", "validation", "testing"}
FORM = reading.Form(
    "a table of images",
    "give a CSV in UTF-8 whose first line names its columns, one of them 'index'",
)


class Table(NamedTuple):
    """What a table says of the images.

    Attributes:
      path: of the file.
      columns: names of columns besides index and set.
      cells: by set, texts `[N, columns]` for all of its images; empty where no row is theirs.
    """

    path: Path
    columns: tuple[str, ...]
    cells: dict[str, np.ndarray]

    def column(self, name: str) -> dict[str, np.ndarray]:
        """By set the texts `[N]` of a column.

        Raises:
          UserError: there is no such column.
        """
        if name not in self.columns:
            raise unknown(f"column of {reading.named(self.path)}", name, self.columns)
        at = self.columns.index(name)
        return {which: cells[:, at] for which, cells in self.cells.items()}


def read(path: str, what: str, dataset: Dataset) -> Table:
    """Reads a table of the images of a data set.

    Args:
      path: a CSV in UTF-8, with commas, semicolons or tabs. Its first line names the columns:
        `index` is an image's position in its set, from 0; `set` (or `split`) is train, val or test,
        and all are of train where there is no such column; the others say what there is to know of
        an image, such as `patient`, `site` or `consent`. The case of `index` and `set` is free.
      what: what the user calls the path.
      dataset: how many images there are.

    Raises:
      UserError: the file is no such table, has two rows of an image or one of none, or names its
        column of sets otherwise.
    """
    file = reading.regular(path, what, FORM)
    lines = reading.text(file, FORM).split("\n")
    name, rows = reading.named(file), None
    try:
        rows, header = _headed(lines)
        if len(set(header)) < len(header) or INDEX not in header:
            raise UserError(f"{name}: its columns are {shown(header)}; {FORM.advice}, none twice")
        place_of = next((name for name in SETS_COLUMN if name in header), None)
        columns = tuple(column for column in header if column not in (INDEX, place_of))
        cells = {
            which: np.full((len(getattr(dataset, which)), len(columns)), "", object)
            for which in SETS
        }
        found: list[tuple[str, dict[str, str]]] = []
        for row in rows:
            place = f"{name}, line {rows.line_num}"
            values = [cell.strip() for cell in row]
            if not any(values):
                continue
            if len(values) != len(header):
                raise UserError(f"{place} has {len(values)} cells, and the first {len(header)}")
            found.append((place, dict(zip(header, values, strict=True))))
        for column in columns if not place_of else ():
            words = {given[column].lower() for _, given in found} - {""}
            if words <= SET_WORDS and words - {"train", "training"}:  # not of train alone
                raise UserError(
                    f"{name} has no column 'set', and its column {shown(column)} looks like it; "
                    f"name it 'set', with the words {', '.join(SETS)}"
                )
        seen: set[tuple[str, int]] = set()
        for place, given in found:
            which = given.pop(place_of) if place_of else "train"
            if which not in SETS:
                raise UserError(f"{place}: the set is {shown(which)}; allowed: {', '.join(SETS)}")
            index = _index(given.pop(INDEX), len(cells[which]), which, place)
            if (which, index) in seen:
                raise UserError(f"{place}: image {index} of {which} has a row above; list it once")
            seen.add((which, index))
            cells[which][index] = list(given.values())
    except csv.Error as error:
        place = f"{name}, line {rows.line_num if rows else 1}"
        raise UserError(f"{place}: {error}; {FORM.advice}") from error
    return Table(file, columns, cells)


def _headed(lines: list[str]) -> tuple[Any, list[str]]:
    """The rows below the first line, and its columns, by the separator that finds `INDEX` there."""
    found = []
    for separator in ",;\t":
        rows = csv.reader(lines, delimiter=separator, strict=True)
        with contextlib.suppress(csv.Error):  # "a";"b" is no line with commas
            found.append((rows, [_column(cell.strip()) for cell in next(rows)]))
    if not found:
        raise csv.Error("the first line has an open or misplaced quotation mark")
    return next((each for each in found if INDEX in each[1]), found[0])


def _column(name: str) -> str:
    """A column by its name; index and set in small letters, however they are written."""
    return name.lower() if name.lower() in (INDEX, *SETS_COLUMN) else name


def _index(text: str, count: int, which: str, place: str) -> int:
    """An image's position in its set."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) >= count:
        raise UserError(
            f"{place}: the index {shown(text)} is not in {which}; allowed: 0 to {count - 1}"
        )
    return int(text)


def select(table: Table, column: str, ids: Iterable[object]) -> np.ndarray:
    """Indices `[M]` of the training images that have one of the values in the column.

    Raises:
      UserError: there is no such column, or no training image has a value.
    """
    texts = table.column(column)["train"]
    known = set(texts) - {""}
    wanted = [str(value).strip() for value in ids]
    if not all(wanted) or not wanted:
        raise UserError(
            f"forget.ids is {'empty' if not wanted else shown(wanted)}; name values of the column "
            f"{column!r}, of which none is empty"
        )
    for value in wanted:
        if value not in known:
            several = tuple(part.strip() for part in value.split(","))
            others = [which for which, rows in table.column(column).items() if value in rows]
            advice = f"; it stands in rows of {' and '.join(others)}" if others else ""
            advice = advice or near(value, known)
            if known.issuperset(several):
                advice = f'; give several as --config.forget.ids="{shown(several, 1000)}"'
            raise UserError(
                f"forget.ids: no training image of {reading.named(table.path)} has {column} "
                f"{shown(value)}, among {len(known)} values{advice}"
            )
    return np.flatnonzero(np.isin(texts.astype(str), wanted))
