"""The source that a module stands on: what must be hashed to know that its results still hold.

A static walk over import statements. It stays within the module's own package or, for a module
outside any package, within its folder; libraries are not followed. A package's `__init__` counts
only where it is imported from, so a table in one changes nothing for modules that go around it.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path


@functools.cache
def _find(name: str) -> Path | None:
    """The source file of a module, None where it has none or does not exist."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """The modules that a source file may import, by absolute name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            found = [module for module in submodules if _find(module)]
            yield from found
            if len(found) < len(submodules):  # something else of the module itself
                yield base


def modules(roots: Iterable[str]) -> dict[str, Path]:
    """The modules named and all that they import, directly or not, by name."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _find(name)
        if name in found or path is None:
            continue
        found[name] = path
        package = name.partition(".")[0]
        for other in _imports(name, path):
            near = _find(other)
            beside = near is not None and near.parent == path.parent
            if other.partition(".")[0] == package or beside:
                waiting.append(other)
    return found


def fingerprint(roots: Iterable[str]) -> str:
    """SHA-256 of the sources of `modules(roots)`, with their names."""
    digest = hashlib.sha256()
    for name, path in sorted(modules(roots).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
