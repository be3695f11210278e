"""Training images as they lie on the devices."""

import dataclasses
import math
from typing import Any, Self

import jax
import numpy as np
from jax import Array

# Values of a piece: of longer rows a TPU copies a whole array of them before it takes some.
PIECE = 2**14


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Images uint8 `[N, H, W, C]`, each in one row of a matrix, or in a few of up to `PIECE`.

    A TPU lays a matrix out by rows, and of `[N, H, W, C]` the same pixel of all images side by
    side: to take images from that it first copies the whole set, to as much as four times its size.

    Attributes:
      rows: uint8 `[N · pieces, H · W · C / pieces]`.
      size: (H, W, C).
    """

    rows: Any
    size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: Any) -> Self:
        """Those of an array, or of what has an array's shape."""
        values = math.prod(images.shape[1:])
        pieces = next(n for n in range(1, values + 1) if values % n == 0 and values // n <= PIECE)
        shape = (images.shape[0] * pieces, values // pieces)
        if isinstance(images, jax.ShapeDtypeStruct):
            return cls(jax.ShapeDtypeStruct(shape, images.dtype), tuple(images.shape[1:]))
        return cls(images.reshape(shape), tuple(images.shape[1:]))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return math.prod(self.rows.shape) // math.prod(self.size), *self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Array) -> Array:
        """Those at positions `[...]`, `[..., H, W, C]`."""
        pieces = self.rows.shape[0] // len(self)
        piece = np.arange(pieces, dtype=np.int32).reshape(*[1] * index.ndim, -1)
        found = self.rows[index[..., None] * pieces + piece]
        return found.reshape(*index.shape, *self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.rows).reshape(self.shape)
