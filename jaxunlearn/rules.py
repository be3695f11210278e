"""Rules: the values that a setting may have, and the one wording of the error for any other."""

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from jaxunlearn.errors import UserError, near


class Rule(NamedTuple):
    """The values that a setting may have.

    Attributes:
      fits: whether a value is allowed; a `TypeError` or `ValueError` counts as no.
      allowed: the same in words that follow "must be".
      table: the names to choose from, where it is a choice; they are listed and searched for near
        matches, so `allowed` may end where they begin.
    """

    fits: Callable[[Any], bool]
    allowed: str
    table: Collection[str] = ()


def one_of(table: Collection[str]) -> Rule:
    """A name in a table."""
    return Rule(lambda value: value in table, "one of", table)


def at_least(low: float) -> Rule:
    """A number that is `low` or more."""
    return Rule(lambda value: value >= low, f"{low} or more")


def above(low: float) -> Rule:
    """A number greater than `low`."""
    return Rule(lambda value: value > low, f"more than {low}")


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both allowed."""
    return Rule(lambda value: low <= value <= high, f"{low} to {high}")


def below(low: float, high: float) -> Rule:
    """A number from `low`, allowed, to `high`, not allowed."""
    return Rule(lambda value: low <= value < high, f"{low} to below {high}")


def whole(low: int) -> Rule:
    """A whole number that is `low` or more."""
    return Rule(
        lambda value: _is(Integral, value) and value >= low, f"a whole number, {low} or more"
    )


def whole_numbers(low: float = -math.inf, allowed: str = "whole numbers") -> Rule:
    """Any number of whole numbers, each `low` or more."""
    return Rule(lambda value: all(_is(Integral, each) and each >= low for each in value), allowed)


def numbers(
    fits: Callable[[float], bool] = lambda each: True,
    allowed: str = "numbers",
    counts: tuple[int, ...] | None = None,
) -> Rule:
    """Numbers that all fit; where `counts` is given, one of so many."""
    return Rule(
        lambda value: (
            all(_is(Real, each) and fits(each) for each in value)
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


def _fits(rule: Rule, value: Any) -> bool:
    try:
        return bool(rule.fits(value))
    except (TypeError, ValueError):
        return False


def broken(rule: Rule, what: str, value: Any) -> UserError:
    """The error for a value that breaks a rule."""
    allowed = f"{rule.allowed} {', '.join(rule.table)}" if rule.table else rule.allowed
    return UserError(f"{what} must be {allowed}, got {value!r}{near(value, rule.table)}")
