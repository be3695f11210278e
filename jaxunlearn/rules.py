"""Rules: the values that a setting may have, and the one wording of the error for any other."""

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.errors import UserError, near, shown

MOST = 1e9  # far beyond any sensible setting, and well within what float32 and int32 compute with


class Rule(NamedTuple):
    """The values that a setting may have.

    Attributes:
      fits: whether a value is allowed; a `TypeError` or `ValueError` counts as no.
      allowed: the same in words that follow "must be".
      table: the names to choose from, where it is a choice; they are listed and searched for near
        matches, so `allowed` may end where they begin.
      most: the largest number allowed, which only a message on a larger one tells.
    """

    fits: Callable[[Any], bool]
    allowed: str
    table: Collection[str] = ()
    most: float = math.inf


def one_of(table: Collection[str]) -> Rule:
    """A name in a table."""
    return Rule(lambda value: value in table, "one of", table)


def at_least(low: float) -> Rule:
    """A number that is `low` or more, and not absurd."""
    return Rule(
        lambda value: is_number(value) and low <= value <= MOST, f"{low} or more", most=MOST
    )


def above(low: float) -> Rule:
    """A number greater than `low`, and not absurd."""
    return Rule(
        lambda value: is_number(value) and low < value <= MOST, f"more than {low}", most=MOST
    )


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both allowed."""
    return Rule(lambda value: is_number(value) and low <= value <= high, f"{low} to {high}")


def below(low: float, high: float) -> Rule:
    """A number from `low`, allowed, to `high`, not allowed."""
    return Rule(lambda value: is_number(value) and low <= value < high, f"{low} to below {high}")


def whole(low: int, high: int = 10**6) -> Rule:
    """A whole number from `low` to `high`."""
    return Rule(
        lambda value: _is(Integral, value) and low <= value <= high,
        f"a whole number, {low} or more",
        most=high,
    )


def whole_numbers(low: float = -MOST, allowed: str = "whole numbers") -> Rule:
    """Any number of whole numbers, each `low` or more."""
    return Rule(
        lambda value: all(_is(Integral, each) and low <= each <= MOST for each in value), allowed
    )


TRUTH = Rule(lambda value: isinstance(value, bool | np.bool_), "True or False")
# A name that files are called by, with more before and after it.
WORD = Rule(
    lambda value: (
        len(value.encode()) <= 150
        and not value.startswith(".")
        and value.isprintable()
        and not set(value) & set("/\\|")
        and bool(value.strip())
    ),
    "a name of up to 150 bytes without / \\ | or a dot at its start",
)
SEED = Rule(
    lambda value: _is(Integral, value) and 0 <= value < 2**32,  # JAX's keys take no more
    "a whole number, 0 or more",
    most=2**32 - 1,
)


# As a message names the type of a setting, by that of its default.
KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    tuple: "a tuple",
}


def is_like(value: Any, default: Any) -> bool:
    """Whether a setting is of its default's type; of an unusual one, whatever it is."""
    fits: dict[type, Callable[[Any], bool]] = {
        bool: TRUTH.fits,
        int: lambda value: _is(Integral, value),
        float: lambda value: _is(Real, value),
        str: lambda value: isinstance(value, str),
        tuple: lambda value: isinstance(value, tuple | list),
    }
    return fits.get(type(default), lambda value: True)(value)


def is_number(value: Any) -> bool:
    """Whether the value is a finite number; True and False are none here."""
    return _is(Real, value) and math.isfinite(value)


def numbers(
    fits: Callable[[float], bool] = lambda each: True,
    allowed: str = "numbers",
    counts: tuple[int, ...] | None = None,
) -> Rule:
    """Numbers that all fit; where `counts` is given, one of so many."""
    return Rule(
        lambda value: (
            all(is_number(each) and fits(each) for each in value)
            and (counts is None or len(value) in counts)
        ),
        allowed,
    )


def _is(kind: type, value: Any) -> bool:
    """Whether the value is of that kind; True and False are not numbers here."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check(settings: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    """Raises at the first setting that breaks its rule.

    Args:
      settings: nested as a config is; a field that it lacks is not checked.
      rules: by dotted path from `settings`; plain pairs (fits, allowed) will do.
      where: what `settings` is called in the message, such as "config.train".

    Raises:
      UserError: "WHERE.PATH must be ALLOWED, got VALUE", and near matches where there is a table.
    """
    for path, pair in rules.items():
        rule = Rule(*pair)
        *sections, field = path.split(".")
        section: Any = settings
        for part in sections:
            section = section.get(part, {})
        if field in section and not _fits(rule, section[field]):
            raise broken(rule, f"{where}.{path}", section[field])


class Unread(NamedTuple):
    """When a setting counts.

    Attributes:
      reads: whether settings like these read it.
      advice: what to set so that they do.
    """

    reads: Callable[[Any], bool]
    advice: str


def unread(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    conditions: Mapping[str, Unread],
    where: str,
) -> dict[str, str]:
    """Settings changed from their default that nothing reads, which would be dropped in silence.

    Args:
      settings: nested as a config is.
      defaults: nested the same.
      conditions: by dotted path from `settings`; a setting without one always counts.
      where: what `settings` is called in the message.

    Returns:
      The message by the setting's full path.
    """
    found = {}
    for path, (reads, advice) in conditions.items():
        value, default = settings, defaults
        for part in path.split("."):
            value, default = value[part], default[part]
        if value != default and not reads(settings):
            found[f"{where}.{path}"] = (
                f"{where}.{path} is {shown(value)}, which nothing reads here; {advice}, or leave "
                f"it at {shown(default)}"
            )
    return found


def _fits(rule: Rule, value: Any) -> bool:
    try:
        return bool(rule.fits(value))
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False


def broken(rule: Rule, what: str, value: Any) -> UserError:
    """The error for a value that breaks a rule."""
    allowed = f"{rule.allowed} {', '.join(rule.table)}" if rule.table else rule.allowed
    if _is(Real, value) and not value <= rule.most:
        most = f"{rule.most:g}" if isinstance(rule.most, float) else rule.most
        allowed += f" and at most {most}"
    return UserError(f"{what} must be {allowed}, got {shown(value)}{near(value, rule.table)}")
