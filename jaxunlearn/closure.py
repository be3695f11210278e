"""The source that a module stands on: what must be hashed to know that its results still hold.

A static walk over import statements. It stays within the library or, from a module of the user's,
within its package and all that is not installed: libraries are not followed, nor is what
`importlib.import_module` finds. A package's `__init__` counts only where it is imported from, so a
table in one changes nothing for modules that go around it; but a module of the user's stands on the
methods' table where it has that from `jaxunlearn.methods`.
"""

import ast
import functools
import hashlib
import importlib.util
import itertools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxunlearn.errors import UserError

LIBRARY = "jaxunlearn"
METHODS = f"{LIBRARY}.methods"
INSTALLED = ("site-packages", "dist-packages")
STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
CHANGED = "{} has changed since it was imported: restart Python to use it"
# By name: what the module was imported as, and its source then. What runs in this process is that
# source, whatever its file holds since.
_read: dict[str, tuple[Any, bytes]] = {}


def _spec(name: str) -> Any:
    """How a module is found, None where it does not exist."""
    try:
        return importlib.util.find_spec(name)
    except Exception:  # packages above it are imported: code of the user's
        return None


def _find(name: str) -> Path | None:
    """The file that a module comes from, None where it has none or does not exist."""
    spec = _spec(name)
    origin = spec.origin if spec else getattr(sys.modules.get(name), "__file__", None)
    return Path(origin) if origin and Path(origin).is_file() else None


def is_local(name: str) -> bool:
    """Whether a module belongs to the user's own code or to this library."""
    top = name.partition(".")[0]
    spec = _spec(top)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    paths = [Path(place).resolve() for place in places if place not in (None, "built-in", "frozen")]
    if top in (LIBRARY, "__main__"):
        return True
    return bool(paths) and not any(
        set(INSTALLED) & set(path.parts) or path.is_relative_to(standard)
        for path in paths
        for standard in STANDARD
    )


def _follows(name: str, other: str) -> bool:
    """Whether the walk goes from a module to one that it imports."""
    top, package = other.partition(".")[0], name.partition(".")[0]
    return top == package or (package != LIBRARY and is_local(top))


@functools.lru_cache(1024)
def _imports(name: str, path: Path, source: bytes) -> tuple[str, ...]:
    """The modules that a source file may import, by absolute name, as far as they are followed."""
    return tuple(_walk(name, path, source))


def _walk(name: str, path: Path, source: bytes) -> Iterator[str]:
    """The same, one after the other."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # compiled, or nothing that is ever imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _follows(name, alias.name):
                    # `import a.b` runs a and gives it.
                    yield from itertools.accumulate(alias.name.split("."), "{}.{}".format)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if not base or not _follows(name, base):
                continue
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            found = [module for module in submodules if _spec(module)]
            yield from found
            if len(found) < len(submodules):  # something else of the module itself
                if base == METHODS and _crosses(name, base):
                    yield from _origins(base, {alias.name for alias in node.names})
                else:
                    yield base


def _is_package(name: str) -> bool:
    path = _find(name)
    return path is not None and path.name == "__init__.py"


def _origins(package: str, names: set[str]) -> Iterator[str]:
    """The modules that one of the library's packages has names from."""
    path = _find(package)
    for node in ast.parse(_source(package, path)).body if path else ():
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if names & {alias.asname or alias.name for alias in node.names}:
                yield node.module


def modules(roots: Iterable[str]) -> dict[str, Path]:
    """The modules named and all that they import, directly or not, by name."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = None if name in found else _find(name)
        if path is None:
            continue
        found[name] = path
        for other in _imports(name, path, _source(name, path)):
            if not (_crosses(name, other) and _is_package(other)):
                waiting.append(other)
            elif other == METHODS:  # whose names may be read from it as attributes
                waiting.append(f"{METHODS}.table")
    return found


def _crosses(name: str, other: str) -> bool:
    """Whether an import enters the library from outside, where its tables say nothing."""
    return other.partition(".")[0] == LIBRARY != name.partition(".")[0]


def _source(name: str, path: Path) -> bytes:
    """A module's source as it was when it was first looked at since its import."""
    module = sys.modules.get(name)
    if module is None:
        return path.read_bytes()
    imported = module.__spec__ or module  # reloading makes another spec
    if name not in _read or _read[name][0] is not imported:
        if _has_changed(module, path):
            raise UserError(CHANGED.format(path))
        _read[name] = imported, path.read_bytes()
    return _read[name][1]


def _has_changed(module: Any, path: Path) -> bool:
    """Whether a file is not the one that was imported, as far as its bytecode tells.

    That has the time and the size of its source, unless it could not be written.
    """
    cached = getattr(module.__spec__, "cached", None)
    if not cached or sys.dont_write_bytecode or not os.access(cached, os.W_OK):
        return False
    try:
        header, now = Path(cached).read_bytes()[:16], path.stat()
    except OSError:
        return False
    flags, time, size = (int.from_bytes(header[i : i + 4], "little") for i in (4, 8, 12))
    return flags == 0 and (time, size) != (int(now.st_mtime) % 2**32, now.st_size % 2**32)


def _told(roots: Iterable[str]) -> dict[str, Path]:
    """The modules of the roots, where each has a file."""
    roots = tuple(roots)
    found = modules(roots)
    for name in roots:
        spec = _spec(name)
        if name not in found and not (spec and spec.submodule_search_locations):
            raise UserError(
                f"the source of {name} cannot be found, so that results could not be told from "
                "those of another version; put the code into a file of its own, such as mynets.py"
            )
    return found


def check(roots: Iterable[str]) -> None:
    """Raises unless the sources can be told, and are those that were imported.

    Raises:
      UserError: a root has no file, or a file has changed since.
    """
    for name, path in _told(roots).items():
        if _source(name, path) != path.read_bytes():
            raise UserError(CHANGED.format(path))


def fingerprint(roots: Iterable[str]) -> str:
    """SHA-256 of the sources of `modules(roots)`, with their names.

    Raises:
      UserError: a root has no file.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_told(roots).items()):
        digest.update(name.encode() + b"\0" + _source(name, path) + b"\0")
    return digest.hexdigest()
