"""Between images as a model sees them and their levels, for methods that make images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.methods.task import Task


def scale(task: Task) -> dict[str, Any]:
    """The mean and standard deviation of each channel, float32 `[1, 1, 1, C]`, by name."""
    channels, setup = task.bench.images.shape[-1], task.bench.setup
    return {
        name: np.broadcast_to(np.asarray(values, np.float32), (1, 1, 1, channels))
        for name, values in (("mean", setup.mean), ("std", setup.std))
    }


def to_levels(seen: Any, scale: dict[str, Any]) -> Any:
    """Levels of 0 to 1 of normalised images `[N, H, W, C]`."""
    return seen * scale["std"] + scale["mean"]


def to_seen(levels: Any, scale: dict[str, Any]) -> Any:
    """Normalised images of levels of 0 to 1 `[N, H, W, C]`."""
    return (levels - scale["mean"]) / scale["std"]


def margin(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """What is to rise for another answer: log Σ_{j≠y} exp f_j − f_y of each example, `[B]`.

    Cross-entropy's gradient is 1 − p_y times this one's: 0 in float32, where p_y rounds to 1.

    Args:
      logits: `[B, num_classes]`.
      targets: one-hot, as logits.
    """
    others = jnp.where(targets > 0, -jnp.inf, logits)
    return jax.nn.logsumexp(others, -1) - jnp.sum(targets * logits, -1)
