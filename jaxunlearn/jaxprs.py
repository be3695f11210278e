"""What a traced program is made of."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of the jaxprs within it included."""
    for equation in jaxpr.eqns:
        yield equation
        for program in inner(equation):
            yield from equations(getattr(program, "jaxpr", program))


def inner(equation: Any) -> Iterator[Any]:
    """The jaxprs, open or closed, that an equation holds: of a call, a loop's body, branches."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield value


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
