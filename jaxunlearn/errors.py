"""The one exception for what a user can get wrong, and the wording that its messages share."""

import difflib
from collections.abc import Iterable

LONGEST = 300  # characters of a message


class UserError(Exception):
    """One line: what was given, what is allowed, what to do. The command line exits with code 2."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        if len(text) <= LONGEST:
            return text
        return f"{text[: LONGEST - 101]}…{text[-100:]}"  # what to do stands at the end

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"jaxunlearn: {self}"]


class Diverged(UserError):
    """A model's training diverged."""


class Stopped(BaseException):
    """The system asks the program to end (SIGTERM)."""


def shown(value: object, most: int = 80) -> str:
    """A value as a message shows it: its repr, cut in the middle, so that quotes stay whole."""
    text = repr(value)
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def near(given: object, allowed: Iterable[str]) -> str:
    """The closest of the allowed names as the end of a message; "" where none is close."""
    # Of long texts there are no near ones, and the search would take seconds.
    names = difflib.get_close_matches(str(given)[:100], sorted(allowed), n=3)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def unknown(what: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table; suggests the closest matches."""
    names = sorted(allowed)
    hint = near(given, names)
    hint = f"{hint.removeprefix('; ')} " if hint else ""
    return UserError(f"unknown {what} {shown(given)}: {hint}allowed: {', '.join(names)}")


def one_line(error: BaseException) -> str:
    """A library error as one line, to append to ours."""
    # A KeyError's text is the repr of its message, and some libraries nest that.
    quoted = isinstance(error, LookupError | AttributeError) and error.args
    text = str(error.args[0] if quoted else error) or type(error).__name__
    if text[0] == text[-1] in "'\"":
        text = text[1:-1].replace("\\'", "'").replace("\\n", " ")
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:120]}…{text[-39:]}"
