"""Links of an update: what a pass does to the gradient, or to the parameters after the step.

`Pass.before` and `Pass.after` are tuples of links, applied in order. A mask is the last of `after`,
so that neither momentum nor weight decay nor noise moves a frozen weight.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.training.passes import Link


def only_marked(where: Callable, mask: Any, new: Any, old: Any) -> Any:
    """Parameters: new where the mask marks them, old elsewhere.

    Entries at the top that the mask lacks, such as a head's that a method has added, are new.
    """
    if not isinstance(mask, dict):
        return jax.tree.map(where, mask, new, old)
    marked = {name: jax.tree.map(where, mask[name], new[name], old[name]) for name in mask}
    return {**new, **marked}


def _keep(value: Any, params: Any, mask: Any, key: jax.Array) -> Any:
    return only_marked(jnp.where, mask, value, params)


def _only(gradient: Any, params: Any, mask: Any, key: jax.Array) -> Any:
    return only_marked(jnp.where, mask, gradient, jax.tree.map(jnp.zeros_like, gradient))


def keep(mask: Any, gradient: bool = False) -> Link:
    """Only what the mask marks may change: a link after the update.

    Args:
      mask: booleans shaped like the parameters; True = may change.
      gradient: True: a link before the optimizer that zeroes the gradient elsewhere, so that weight
        decay and momentum still move the weights there.
    """
    return Link(_only if gradient else _keep, mask)


def clipped(value: Any, most: float | jax.Array) -> Any:
    """The pytree of arrays, scaled down to a 2-norm, over all of them, of at most `most`."""
    # Π_c(v) = v · min(1, c / ‖v‖₂)
    factor = jnp.minimum(1.0, most / jnp.maximum(optax.tree.norm(value), 1e-30))
    return jax.tree.map(lambda v: v * factor, value)


def _clip_norm(value: Any, params: Any, most: jax.Array, key: jax.Array) -> Any:
    return clipped(value, most)


def clip_norm(most: float) -> Link:
    """Scales the gradient, or the parameters, down to a global 2-norm of at most `most`."""
    return Link(_clip_norm, np.float32(most))


def _add_decay(gradient: Any, params: Any, rate: jax.Array, key: jax.Array) -> Any:
    return optax.tree.add_scale(gradient, rate, params)


def add_decay(rate: float) -> Link:
    """Adds `rate` · parameters to the gradient: weight decay, here after a clip, say."""
    return Link(_add_decay, np.float32(rate))


def _add_noise(value: Any, params: Any, sigma: jax.Array, key: jax.Array) -> Any:
    return optax.tree.add_scale(value, sigma, optax.tree.random_like(key, value, jax.random.normal))


def add_noise(sigma: float) -> Link:
    """Adds Gaussian noise of standard deviation `sigma` to every entry."""
    return Link(_add_noise, np.float32(sigma))


def _add_noise_of(value: Any, params: Any, data: Any, key: jax.Array) -> Any:
    sigma, stream = data
    return _add_noise(value, params, sigma, jax.random.fold_in(key, stream))


def add_noise_of(stream: int, sigma: float) -> Link:
    """As `add_noise`, and under one key other noise for every stream, 0 to below 2**32."""
    return Link(_add_noise_of, (np.float32(sigma), np.uint32(stream)))
