"""A program with some of its convolutions computed in another way.

A training step as JAX traces it has a convolution for every layer, one for the gradient of its
input and one for that of its kernel. Exchanging them there, in the program, rather than in the
layers, serves every model alike, the user's own too, and leaves JAX's differentiation, `vmap` and
`remat` as they are.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jaxunlearn.convolution.literal import Convolution, find

Call = Callable[[jax.Array, jax.Array], jax.Array]  # a convolution, (lhs, rhs) -> out
# What computes a convolution instead; None: nothing does.
Choose = Callable[[Convolution], Call | None]


def rewrite(function: Callable, traced: Any, choose: Choose) -> Callable:
    """The function as it was traced, but for the convolutions; the function where none changes.

    Args:
      function: what was traced.
      traced: what `jax.jit(function).trace(…)` gave.
      choose: what computes each.
    """
    closed = traced.jaxpr
    body = _body(closed.jaxpr, choose)
    if body is closed.jaxpr:
        return function
    call = jaxpr_as_fun(ClosedJaxpr(body, closed.consts))
    structure = jax.tree.structure(traced.out_info)

    def rewritten(*args):
        return jax.tree.unflatten(structure, call(*jax.tree.leaves(args)))

    return rewritten


def _body(jaxpr: Jaxpr, choose: Choose) -> Jaxpr:
    """The same, if nothing changes the very same object."""
    flipped = {e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "rev"}
    equations = [_equation(equation, choose, flipped) for equation in jaxpr.eqns]
    if all(new is old for new, old in zip(equations, jaxpr.eqns, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=equations)


def _equation(equation: Any, choose: Choose, flipped: set) -> Any:
    """A convolution exchanged, or what is within a loop, a branch or a call."""
    if equation.primitive.name == "conv_general_dilated":
        found = find(equation, equation.invars[1] in flipped)
        function = None if found is None else choose(found)
        if function is None:
            return equation
        avals = [variable.aval for variable in equation.invars]
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        (call,) = jax.make_jaxpr(jax.jit(function))(*shapes).eqns
        return call.replace(invars=equation.invars, outvars=equation.outvars)
    params = {name: _within(value, choose) for name, value in equation.params.items()}
    if all(params[name] is value for name, value in equation.params.items()):
        return equation
    return equation.replace(params=params)


def _within(value: Any, choose: Choose) -> Any:
    """A parameter of an equation that may hold programs."""
    if isinstance(value, Jaxpr):
        return _body(value, choose)
    if isinstance(value, ClosedJaxpr):
        body = _body(value.jaxpr, choose)
        return value if body is value.jaxpr else ClosedJaxpr(body, value.consts)
    if isinstance(value, tuple):
        new = tuple(_within(each, choose) for each in value)
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    return value
