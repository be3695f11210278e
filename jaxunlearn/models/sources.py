"""What makes a model what it is, for the store's keys: its modules, and a table entry's fields."""

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import numpy as np

from jaxunlearn import closure
from jaxunlearn.models.build import MODELS
from jaxunlearn.names import is_path, resolve


def sources(name: str) -> tuple[str, ...]:
    """The modules that define the model of that name; what these import counts too."""
    found = resolve("model", name, MODELS)
    names = {module for part in _parts(found) for module in _modules(part)}
    names = {module for module in names if closure.is_local(module)}
    if is_path(name):
        module, _, path = name.partition(":")
        names.add(module)
        within: Any = sys.modules[module]
        for word in path.split("."):  # through the modules of a package, which may have no file
            within = getattr(within, word)
            if isinstance(within, types.ModuleType):
                names.add(within.__name__)
    return tuple(sorted(names))


def described(name: str) -> str:
    """What a table's entry is, with its fields and arguments; of a path its source tells."""
    return "" if is_path(name) else " ".join(map(_shown, _parts(MODELS[name])))


def _parts(found: Any, above: tuple[Any, ...] = ()) -> Iterator[Any]:
    """An object and all that it holds."""
    yield found
    if not any(found is one for one in above):
        for held in _held(found):
            yield from _parts(held, (*above, found))


def _held(part: Any) -> list[Any]:
    """What an object holds that makes a model what it is."""
    if isinstance(part, functools.partial):
        return [part.func, *part.args, part.keywords]
    if isinstance(part, types.MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, types.FunctionType):
        values = [cell.cell_contents for cell in part.__closure__ or () if cell != _EMPTY]
        return [*values, part.__defaults__, part.__kwdefaults__]
    if isinstance(part, Mapping):
        return [each for pair in part.items() for each in pair]
    if isinstance(part, list | tuple):
        return list(part)
    if is_dataclass(part) and not isinstance(part, type):
        return [getattr(part, field.name, None) for field in fields(part)]
    return []


_EMPTY = types.CellType()


def _modules(part: Any) -> set[str]:
    """The modules that an object's code lies in, the bases of its class included."""
    if isinstance(part, types.FunctionType):
        return {part.__module__}
    return {kind.__module__ for kind in (part if isinstance(part, type) else type(part)).__mro__}


def _shown(part: Any) -> str:
    """An object in words that are the same in every process."""
    if isinstance(part, type | types.FunctionType):
        return f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, np.ndarray | jax.Array):
        return hashlib.sha256(np.asarray(part).tobytes()).hexdigest()
    if _held(part):
        return f"{type(part).__qualname__}:{len(_held(part))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(part))
