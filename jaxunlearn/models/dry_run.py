"""A look at what a model gives for the data's images, by shapes alone: nothing is computed."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.errors import UserError, one_line
from jaxunlearn.jaxprs import equations
from jaxunlearn.models.model import Model

# Operations that have nothing to compute from where an operand is empty.
REDUCING = ("reduce", "arg", "dot_general", "conv_general_dilated")
ONLOOKER = 'what a Flax module sows goes into "intermediates", which are dropped'
SIZES = (8, 28, 32, 64, 224)  # of images to try, to tell why a model fails


class _TooSmall(UserError):
    """Images of which a layer leaves nothing."""


@functools.lru_cache
def dry_run(
    name: str,
    model: Model,
    shape: tuple[int, ...],
    num_classes: int,
    wider: bool = False,
    trains: bool = False,
) -> None:
    """Traces the model's initial variables, an evaluation, and a training step's gradient; once.

    Args:
      name: as errors call it.
      model: its functions.
      shape: of an image, (H, W, C).
      num_classes: how many logits an image must get.
      wider: whether it may get more, as of a model that was trained for other classes besides.
      trains: whether it is known that it does, as of this library's own: then its gradient, which
        is half of the work, is left out.

    Raises:
      UserError: the model fails, or does not keep what `Model` says.
    """
    what = f"model {name!r}"
    size = " x ".join(map(str, shape))
    try:
        _trace(model, shape, num_classes, wider, trains)
    except UserError as error:
        hint = _hint(model, shape, num_classes, wider) if isinstance(error, _TooSmall) else ""
        raise UserError(f"{what}, on images of {size}: {error}{hint}") from error
    except Exception as error:  # the user's own code, which may raise anything
        problem = f"{type(error).__name__}: {one_line(error)}"
        hint = _hint(model, shape, num_classes, wider)
        raise UserError(f"{what} fails on images of {size}: {problem}{hint}") from error


def _trace(
    model: Model, shape: tuple[int, ...], num_classes: int, wider: bool, trains: bool = False
) -> None:
    """Raises at the first thing that is wrong."""
    # One image, as evaluation must take it; and a batch that is no square with the classes.
    one, batch = (
        jax.ShapeDtypeStruct((count, *shape), jnp.float32) for count in (1, num_classes + 1)
    )
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(model.init, key, one)
    _check_variables(variables)
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def evaluate(variables, images):
        given = model.apply(variables, images, False, None)
        _check_output(given, images, num_classes, wider, state, "evaluation")
        return given

    for empty in _emptied(jax.make_jaxpr(evaluate)(variables, one).jaxpr):
        raise _TooSmall(f"they are too small, a layer is left with {empty} to compute from")

    if trains:
        return

    def train(params, state, images, key):
        def loss(params):
            given = model.apply({"params": params, **state}, images, True, key)
            _check_output(given, images, num_classes, wider, state, "training")
            return jnp.sum(given[0]), given[1]

        return jax.grad(loss, has_aux=True)(params)

    jax.eval_shape(train, variables["params"], state, batch, key)


def _check_variables(variables: Any) -> None:
    """Raises unless these are nested dicts of arrays with parameters to train."""
    if not isinstance(variables, Mapping) or not jax.tree.leaves(variables.get("params")):
        got = ", ".join(variables) or "nothing" if isinstance(variables, Mapping) else variables
        raise UserError(
            "it has no parameters, so that there is nothing to train: its variables must be a "
            f'dict with "params", got {_shown(got)}'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        where = jax.tree_util.keystr(path)
        if any(not isinstance(getattr(step, "key", None), str) for step in path):
            boxed = isinstance(path[-1], jax.tree_util.GetAttrKey)
            hint = "flax.linen.unbox makes them so" if boxed else ONLOOKER
            raise UserError(
                f"its variables must be dicts within dicts, by names, got {where}; {hint}"
            )
        if path[0].key == "params" and leaf.dtype != jnp.float32:
            raise UserError(
                f"its parameters must be float32, whatever it computes in, got {where} of "
                f"{leaf.dtype}"
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise UserError(f"its variables must be numbers, got {where} of {leaf.dtype}")


def _check_output(
    given: Any, images: Any, num_classes: int, wider: bool, state: dict[str, Any], mode: str
) -> None:
    """Raises unless this is (logits [N, num_classes], the state in its old shapes)."""
    count = len(images)
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
        raise UserError(f"its apply must give (logits, a dict of its state), got {_shown(given)}")
    logits, new = given
    wanted = f"floating [{count}, {num_classes}]"
    if not hasattr(logits, "shape"):
        raise UserError(
            f"in {mode} it gives {_shown(logits)} for {count} images; return nothing but the "
            f"logits, {wanted}"
        )
    enough = wider and logits.ndim == 2 and logits.shape[1] > num_classes
    if logits.shape != (count, logits.shape[1] if enough else num_classes):
        raise UserError(
            f"in {mode} it gives {_shown(logits)} for {count} images of {num_classes} classes; "
            f"return one logit for each class, {wanted}, as many as num_classes says"
        )
    if logits.dtype != jnp.float32:
        raise UserError(
            f"in {mode} it gives {_shown(logits)}; return logits, float32, not classes or others"
        )
    if _shapes(new) != _shapes(state):
        raise UserError(
            f"{mode} turns its state of {_shown(state)} into {_shown(dict(new))}; it must keep its "
            f"shapes and types; {ONLOOKER}"
        )


def _shapes(tree: Any) -> Any:
    """The structure of a tree with the shapes and types of its leaves."""
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _shown(tree: Any) -> str:
    """What was given, by its shapes, in a line."""
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return f"{tree.dtype}[{', '.join(map(str, tree.shape))}]"
    if isinstance(tree, Mapping):
        text = "{" + ", ".join(f"{name}: {_shown(value)}" for name, value in tree.items()) + "}"
    elif isinstance(tree, tuple | list):
        text = f"({', '.join(map(_shown, tree))})"
    else:
        text = tree if isinstance(tree, str) else type(tree).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def _emptied(jaxpr: Any) -> Iterator[str]:
    """The empty arrays that something is computed from."""
    for equation in equations(jaxpr):
        if equation.primitive.name.startswith(REDUCING):
            for operand in equation.invars:
                if 0 in getattr(operand.aval, "shape", ()):
                    yield _shown(operand.aval)


def _hint(model: Model, shape: tuple[int, ...], num_classes: int, wider: bool) -> str:
    """The first shape of image that a failing model does take, as the end of the message."""
    height, width, channels = shape
    others = [(size, size, channels) for size in SIZES]
    others += [(height, width, other) for other in (1, 3)]
    for other in others:
        if other != shape and _passes(model, other, num_classes, wider):
            return f"; it takes images of {' x '.join(map(str, other))}"
    return ""


def _passes(model: Model, shape: tuple[int, ...], num_classes: int, wider: bool) -> bool:
    try:
        _trace(model, shape, num_classes, wider)
    except Exception:  # the user's own code, which may raise anything
        return False
    return True
