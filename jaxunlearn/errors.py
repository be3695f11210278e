"""The one exception for what a user can get wrong."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line: what was given, what is allowed, what to do. The command line exits with code 2."""


def near(given: object, allowed: Iterable[str]) -> str:
    """The closest of the allowed names as the end of a message; "" where none is close."""
    names = difflib.get_close_matches(str(given), sorted(allowed), n=3)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def unknown(what: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table; suggests the closest matches."""
    names = sorted(allowed)
    hint = near(given, names)
    hint = f"{hint.removeprefix('; ')} " if hint else ""
    return UserError(f"unknown {what} {given!r}: {hint}allowed: {', '.join(names)}")


def one_line(error: BaseException) -> str:
    """A library error as one line, to append to ours."""
    # A KeyError's text is the repr of its message, and some libraries nest that.
    quoted = isinstance(error, LookupError | AttributeError) and error.args
    text = str(error.args[0] if quoted else error) or type(error).__name__
    if text[0] == text[-1] in "'\"":
        text = text[1:-1].replace("\\'", "'").replace("\\n", " ")
    return " ".join(text.split())[:240]
