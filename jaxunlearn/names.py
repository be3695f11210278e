"""Names in a config: of what ships, from a table; of a user's own code, by path.

A path is MODULE:ATTRIBUTE, such as "mynets:MyNet". Modules are imported as any other: from the
folder that the command starts in, or installed.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxunlearn.errors import UserError, one_line, unknown


def is_path(name: str) -> bool:
    """Whether a name is MODULE:ATTRIBUTE rather than a table's."""
    return ":" in name


def by_path(name: str) -> Any:
    """The object that MODULE:ATTRIBUTE names; the attribute may have dots.

    Raises:
      UserError: no such module or attribute, or the module raises when it is imported.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UserError(f"{name!r} must be MODULE:NAME, such as 'mynets:MyNet'")
    found: Any = _module(name, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise unknown(f"name in {module_name}", part, _names(found))
        found = getattr(found, part)
    return found


def resolve(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """The table's entry of that name; the imported object where the name is a path.

    Args:
      kind: what is looked for, for the message: "model", "method".
      name: a key of `table`, or MODULE:ATTRIBUTE.
      table: what ships, by name.

    Raises:
      UserError: there is none; near matches are suggested.
    """
    if is_path(name):
        return by_path(name)
    if name not in table:
        raise UserError(f"{unknown(kind, name, table)}, or MODULE:NAME for your own")
    return table[name]


def _module(name: str, module_name: str) -> ModuleType:
    """The module, imported."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{name!r}: there is no module {error.name!r}; start in the folder that it lies in,"
                " or install it"
            ) from error
        raise UserError(f"{name!r}: importing {module_name} fails: {one_line(error)}") from error
    except Exception as error:  # the user's own code, which may raise anything
        raise UserError(f"{name!r}: importing {module_name} fails: {one_line(error)}") from error


def _names(found: Any) -> list[str]:
    """The public names of an object: its own, or where it has none those that it imports too."""
    public = [name for name in dir(found) if not name.startswith("_")]
    module = getattr(found, "__name__", None)
    own = [name for name in public if getattr(getattr(found, name), "__module__", None) == module]
    return own or public
