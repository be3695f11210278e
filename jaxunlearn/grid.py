"""Grids: one experiment at every combination of some settings' values.

A config is a grid where it lists axes, the field and its values:

    config.axes = (("augment", ("none", "crop_flip")), ("forget.fraction", (0.1, 0.5)))

The first value of the first axis is the reference: the change of Avg Gap is against it, all other
settings equal.
"""

import copy
import hashlib
import itertools
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxunlearn import metrics
from jaxunlearn.errors import UserError, one_line

# What is one for the whole grid.
FIXED = ("axes", "name", "seeds", "store", "devices", "checkpoint_every")


class Cell(NamedTuple):
    """One experiment of a grid: the values of the axes' fields, and the config with these."""

    point: dict[str, Any]
    config: ConfigDict

    @property
    def label(self) -> str:
        """The point as one word, good for a folder's name."""
        text = ",".join(f"{field}={value_name(value)}" for field, value in self.point.items())
        text = re.sub(r"[^\w.=+,-]", "_", text)
        if len(text) > 150:  # no file system takes more than 255 bytes
            text = f"{text[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return text


def value_name(value: Any) -> str:
    """A value as results name it."""
    if not isinstance(value, tuple | list):
        return str(value)
    names = "+".join(map(value_name, value))
    # A tuple of one is another thing than what is in it: a policy alone, not the scenario.
    return names if len(value) > 1 else f"({names})"


def cells(config: ConfigDict) -> list[Cell]:
    """Every combination of the axes' values, the last axis fastest; without axes one, the config.

    Raises:
      UserError: axes that are not pairs of a field and its values, or a field or value that the
        config cannot take.
    """
    if not config.axes:
        return [Cell({}, config)]
    if not len(config.methods):
        raise UserError(
            "config.axes makes a grid, which compares methods, and config.methods is empty"
        )
    for axis in config.axes:
        _check_axis(axis)
    fields = [field for field, _ in config.axes]
    if len(set(fields)) < len(fields):
        raise UserError(f"config.axes names a field twice: {', '.join(fields)}; name each once")
    made = []
    for values in itertools.product(*(values for _, values in config.axes)):
        cell = Cell(dict(zip(fields, values, strict=True)), copy.deepcopy(config))
        # A copy forgets the order of the methods.
        cell.config.methods = ConfigDict(copy.deepcopy(dict(config.methods)), sort_keys=False)
        cell.config.axes = ()
        for field, value in cell.point.items():
            _set(cell.config, field, value)
        cell.config.name = f"{config.name}, {cell.label}"
        made.append(cell)
    labels = [cell.label for cell in made]
    if len(set(labels)) < len(labels):
        raise UserError("config.axes gives two cells one name; values must differ in their letters")
    return made


def _check_axis(axis: Any) -> None:
    """Raises unless the axis is a field that can vary, and its values."""
    pair = isinstance(axis, tuple | list) and len(axis) == 2
    if not (pair and isinstance(axis[0], str) and isinstance(axis[1], tuple | list) and axis[1]):
        raise UserError(
            f"config.axes holds {axis!r}; allowed: pairs of a field and its values, such as "
            '(("augment", ("none", "crop_flip")), ("forget.fraction", (0.1, 0.5)))'
        )
    if axis[0].split(".")[0] in FIXED:
        raise UserError(
            f"config.axes varies {axis[0]!r}, which is one for the whole grid; allowed: any field "
            f"but {', '.join(FIXED)}"
        )


def _set(config: ConfigDict, field: str, value: Any) -> None:
    """Sets a field by its dotted name."""
    *path, last = field.split(".")
    try:
        inner: Any = config
        for part in path:
            inner = getattr(inner, part)
        if isinstance(getattr(inner, last), ConfigDict):
            raise TypeError("it is a section; name one of its fields")
        setattr(inner, last, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"config.axes, {field}={value!r}: {one_line(error)}") from error


def comparisons(entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A grid's entries (`merge`) that differ in the first axis only, its first value first."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        rest = tuple(value_name(value) for value in list(entry["point"].values())[1:])
        groups.setdefault(rest, []).append(entry)
    return list(groups.values())


def avg_gaps(entry: dict[str, Any], name: str) -> list[float]:
    """A model's Avg Gap in each seed."""
    return [values["avg_gap"] for values in entry["models"][name]["per_seed"]]


def merge(config: ConfigDict, points: list[Cell], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The grid's results, as its `metrics.json` holds them, from those of its cells.

    Each model's mean and interval get `avg_gap_change`: the change of Avg Gap in percent against
    the same model at the first value of the first axis; None there and where that is 0.

    Args:
      config: the grid's config.
      points: its cells.
      reports: what each cell's `metrics.json` holds.
    """
    entries = [
        {"point": cell.point, "folder": f"cells/{cell.label}", **copy.deepcopy(report)}
        for cell, report in zip(points, reports, strict=True)
    ]
    for first, *others in comparisons(entries):
        for entry in (first, *others):
            for name, model in entry["models"].items():
                change, interval = None, None
                if entry is not first and name != "retrained":
                    change, interval = metrics.statistics.percent_change(
                        avg_gaps(entry, name), avg_gaps(first, name)
                    )
                if interval is not None:  # a gap is never below 0, so none falls by more than all
                    interval = max(interval[0], -100.0), interval[1]
                model["mean"]["avg_gap_change"] = change
                model["interval"]["avg_gap_change"] = interval
    return {
        "name": config.name,
        "axes": [[field, list(values)] for field, values in config.axes],
        **{name: reports[0][name] for name in ("seeds", "versions", "device")},
        "notes": list(dict.fromkeys(note for report in reports for note in report["notes"])),
        "cells": entries,
    }
