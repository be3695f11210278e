"""The one exception for what a user can get wrong."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line: what was given, what is allowed, what to do. The command line exits with code 2."""


def unknown(what: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the near matches first."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UserError(f"unknown {what} {given!r}: {hint}allowed: {', '.join(names)}")


def one_line(error: BaseException) -> str:
    """What a library's error says, for the end of ours."""
    # A KeyError's text is the repr of its message, and some libraries nest that.
    quoted = isinstance(error, LookupError | AttributeError) and error.args
    text = str(error.args[0] if quoted else error) or type(error).__name__
    if text[0] == text[-1] in "'\"":
        text = text[1:-1].replace("\\'", "'").replace("\\n", " ")
    return " ".join(text.split())[:240]
