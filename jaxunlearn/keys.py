"""Random streams by name: no two draws share one by accident, and each can be made again alone."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # metrics and reports draw on the host and start without JAX
    import jax


def stage_key(stage: str, seed: int, epoch: int) -> jax.Array:
    """The key of one epoch of a stage: any step can be recomputed alone, so resuming is exact."""
    import jax

    key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(stage.encode())))
    return jax.random.fold_in(key, np.uint32(epoch))


def stage_rng(stage: str, seed: int, epoch: int = 0) -> np.random.Generator:
    """The same for draws made on the host."""
    return np.random.default_rng([zlib.crc32(stage.encode()), seed, epoch])
