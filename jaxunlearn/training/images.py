"""Training images as they lie on the devices."""

import dataclasses
import math
from typing import Any, Self

import jax
import numpy as np
from jax import Array

LONGEST = 2**14  # values of a row; of longer ones a TPU is slow to make images again
LANES = 128  # of which a TPU's rows are made


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Images uint8 `[N, H, W, C]`, as a matrix of one row each; of large ones, of their own rows.

    A TPU lays such a matrix out by rows, if these fill its lanes, and of `[N, H, W, C]` the same
    pixel of all images side by side: to take images from that it first copies the whole set, to as
    much as four times its size.

    Attributes:
      rows: uint8 `[N, H · W · C]` or `[N · H, W · C]`, and zeros where aligned.
      size: (H, W, C).
    """

    rows: Any
    size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: Any, aligned: bool = False) -> Self:
        """Those of an array, or of what has an array's shape; rows of whole lanes if aligned."""
        size = tuple(images.shape[1:])
        pieces, values = _rows(size)
        shape, more = (images.shape[0] * pieces, values), -values % LANES if aligned else 0
        if isinstance(images, jax.ShapeDtypeStruct):
            return cls(jax.ShapeDtypeStruct((shape[0], values + more), images.dtype), size)
        rows = images.reshape(shape)  # without a copy, where nothing is added
        return cls(np.pad(rows, ((0, 0), (0, more))) if more else rows, size)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.rows.shape[0] // _rows(self.size)[0], *self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Array) -> Array:
        """Those at positions `[...]`, `[..., H, W, C]`."""
        pieces, values = _rows(self.size)
        piece = np.arange(pieces, dtype=np.int32).reshape(*[1] * index.ndim, -1)
        found = self.rows[index[..., None] * pieces + piece][..., :values]
        return found.reshape(*index.shape, *self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = _rows(self.size)[1]
        return np.array(np.asarray(self.rows)[:, :values].reshape(self.shape), dtype)


def _rows(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows of an image of (H, W, C), and the values of each that are not there to fill it."""
    pieces = 1 if math.prod(size) <= LONGEST else size[0]
    return pieces, math.prod(size) // pieces
