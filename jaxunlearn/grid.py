"""Grids: one experiment at every combination of some settings' values; and sequences of requests.

A config is a grid where it lists axes, the field and its values:

    config.axes = (("augment", ("none", "crop_flip")), ("forget.fraction", (0.1, 0.5)))

The first value of the first axis is the reference: the change of Avg Gap is against it, all other
settings equal.

A config is a sequence where it lists requests, as changes of `config.forget`:

    config.requests = ({"groups": (12,)}, {"groups": (40, 41)})

Each is an experiment too: the plan starts its methods from what the one before left.
"""

import itertools
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxunlearn import files
from jaxunlearn.config import change, plain
from jaxunlearn.data.forget import check_named
from jaxunlearn.errors import UserError, one_line

# Fixed across the grid.
FIXED = (
    *("axes", "requests", "name", "seeds", "store", "devices", "checkpoint_every", "convolution"),
    "tune.chosen",
)


class Cell(NamedTuple):
    """One experiment of a grid: the values of the axes' fields, and the config with these."""

    point: dict[str, Any]
    config: ConfigDict

    @property
    def labels(self) -> dict[str, str]:
        """The point's values as results name them, by field."""
        return {field: value_name(value) for field, value in self.point.items()}

    @property
    def label(self) -> str:
        """The point as one word that can name a folder."""
        text = ",".join(f"{field}={label}" for field, label in self.labels.items())
        return files.within(re.sub(r"[^\w.=+,-]", "_", text), 150)


def value_name(value: Any) -> str:
    """A value as results name it."""
    if not isinstance(value, tuple | list):
        return str(value)
    names = "+".join(map(value_name, value))
    # A tuple of one differs from its only value: a policy alone, not the scenario of that name.
    return names if len(value) > 1 else f"({names})"


def cells(config: ConfigDict) -> list[Cell]:
    """Every combination of the axes' values, the last axis fastest; or every request in turn.

    Without axes and requests there is one, the config.

    Raises:
      UserError: axes that are not pairs of a field and its values, or a field or value that the
        config cannot take; or the same of requests.
    """
    if config.requests:
        return _requests(config)
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
        cell = Cell(dict(zip(fields, values, strict=True)), plain(config))
        cell.config.axes = ()
        for field, value in cell.point.items():
            _set(cell.config, field, value)
        cell.config.name = files.within(f"{config.name}, {cell.label}", 150)
        made.append(cell)
    labels = [cell.label for cell in made]
    if len(set(labels)) < len(labels):
        raise UserError(
            "config.axes gives two cells one name; axis values must have distinct names"
        )
    return made


def _requests(config: ConfigDict) -> list[Cell]:
    """One experiment a request: it is `forget`, and `requests` ends with it."""
    if config.axes:
        raise UserError("config.axes and config.requests exclude each other; leave one empty")
    if not len(config.methods):
        raise UserError(
            "config.requests are unlearned one after another, and config.methods is empty"
        )
    made = []
    for number, request in enumerate(config.requests, start=1):
        cell = Cell({"request": number}, plain(config))
        cell.config.requests = config.requests[:number]
        check_named(request, f"request {number}")
        change(cell.config.forget, request, f"request {number}")
        cell.config.name = files.within(f"{config.name}, request {number}", 150)
        made.append(cell)
    return made


def _check_axis(axis: Any) -> None:
    """Raises unless the axis is a field that can vary, and its values."""
    pair = isinstance(axis, tuple | list) and len(axis) == 2
    if not (pair and isinstance(axis[0], str) and isinstance(axis[1], tuple | list) and axis[1]):
        raise UserError(
            f"config.axes holds {axis!r}; allowed: pairs of a field and its values, such as "
            '(("augment", ("none", "crop_flip")), ("forget.fraction", (0.1, 0.5)))'
        )
    if axis[0] in FIXED or axis[0].split(".")[0] in FIXED:
        raise UserError(
            f"config.axes varies {axis[0]!r}, which is fixed across the grid; allowed: any field "
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
