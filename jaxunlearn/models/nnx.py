"""How an nnx module becomes a model: what it holds is split from what it does."""

import zlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models.model import DRAWS, UPDATES, Model, Modes, as_float32

STATE = "state"  # the collection of all that is neither a parameter nor of a random stream


def from_nnx(make: Callable[..., Any], init: Callable | None, features: Callable | None) -> Model:
    """The model of an nnx module, which `make(rngs=…)` makes: see `from_flax`."""
    _check_version()

    def made(key: jax.Array | int) -> nnx.Module:
        module = make(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise UserError(
                "a function that takes rngs must return a flax.nnx.Module, "
                f"got {type(module).__name__}"
            )
        for _, part in nnx.iter_graph(module):
            for name, value in list(getattr(part, "__dict__", {}).items()):
                if isinstance(part, nnx.Pytree) and isinstance(value, jax.Array):
                    setattr(part, name, nnx.data(value))  # nnx overlooks arrays being traced
        return module

    def start(key, images):
        del images
        return variables(made(key))

    def apply(values, images, train, key=None):
        graph, params, streams, state = _split(nnx.eval_shape(lambda: made(0)))
        held = values.get(STATE, {})
        before = (
            _filled(params, values["params"]),
            _seeded(streams, jax.random.key(0) if key is None else key),
            _filled(state, held),
        )
        old = [_flat(part) for part in before]  # a call changes the parts themselves
        module = nnx.merge(graph, *before)
        module.train() if train else module.eval()
        logits = as_float32(Modes.of(type(module)).call(module, train, images))
        _, _, drawn, new = _split(module)
        if train:
            kept = flatten_dict(held)
            left = {path: leaf for path, leaf in _flat(new).items() if path in kept}
            return logits, _collection(unflatten_dict(left))
        if _changed(old[1], drawn):
            raise UserError(DRAWS)
        if _changed(old[2], new):
            raise UserError(UPDATES)
        return logits, _collection(held)

    return Model(init or start, apply, features)


def from_instance(module: nnx.Module) -> Model:
    """The model of an nnx module that has its parameters, which are left aside: see `variables`.

    It cannot be drawn anew: initial parameters are NaN, so that whatever trains from them stops.
    """

    def start(key, images):
        del key, images

        def unknown(leaf: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jnp.full(leaf.shape, jnp.nan if floating else 0, leaf.dtype)

        return jax.tree.map(unknown, variables(module))

    return from_nnx(lambda rngs: nnx.clone(module), start, None)


def variables(module: nnx.Module) -> dict[str, Any]:
    """Those of an nnx module, as the model that `from_nnx` makes of its class has them."""
    _, params, _, state = _split(module)
    return {"params": _nested(params), **_collection(_nested(state))}


def with_variables(module: nnx.Module, values: dict[str, Any]) -> nnx.Module:
    """A copy of an nnx module with other variables; its streams of random numbers are the same."""
    graph, params, streams, state = _split(nnx.clone(module))
    filled = _filled(params, values["params"]), _filled(state, values.get(STATE, {}))
    return nnx.merge(graph, filled[0], streams, filled[1])


def _check_version() -> None:
    """Raises where nnx is too old."""
    if not hasattr(nnx, "data"):
        raise UserError(
            f"nnx modules need flax 0.12 or newer, here is {flax.__version__}; pip install -U flax"
        )


def _split(module: nnx.Module) -> Any:
    """What a module does, its parameters, its random streams, and the rest of its state."""
    _check_version()
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _flat(state: Any) -> dict[tuple[str, ...], Any]:
    """The values of a state by path, in words that a checkpoint can keep."""
    return {tuple(map(str, path)): _value(leaf) for path, leaf in nnx.to_flat_state(state)}


def _value(leaf: Any) -> Any:
    """Of a variable, or of an array that a module holds as it is."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _nested(state: Any) -> dict[str, Any]:
    """The initial values of a state, in JAX's types, which NumPy's arrays may not have."""
    return jax.tree.map(jnp.asarray, unflatten_dict(_flat(state)))


def _collection(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a collection; none where there is nothing."""
    return {STATE: state} if state else {}


def _with(state: Any, value: Callable[[tuple[str, ...], Any], Any]) -> Any:
    """A state with new values, by path and shape."""

    def changed(path: tuple[Any, ...], leaf: Any) -> Any:
        new = value(tuple(map(str, path)), _value(leaf))
        return leaf.replace(new) if isinstance(leaf, nnx.Variable) else new

    return nnx.from_flat_state(
        [(path, changed(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    )


def _filled(state: Any, values: dict[str, Any]) -> Any:
    """A state with the values of a nested dict."""
    flat = flatten_dict(values)
    return _with(state, lambda path, shape: flat[path])


def _seeded(streams: Any, key: jax.Array) -> Any:
    """Random streams that start anew from the key, each by its path."""

    def start(path: tuple[str, ...], shape: Any) -> jax.Array:
        if not jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.zeros(shape.shape, shape.dtype)  # how much a stream has given
        own = jax.random.fold_in(key, np.uint32(zlib.crc32("/".join(path).encode())))
        return jax.random.split(own, shape.shape) if shape.shape else own

    return _with(streams, start)


def _changed(old: dict[tuple[str, ...], Any], state: Any) -> bool:
    """Whether a call has put another value in place of one of the old."""
    new = _flat(state)
    return any(new[path] is not value for path, value in old.items())
