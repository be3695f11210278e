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
        count, *size = images.shape
        made = cls(images, tuple(size))
        shape = (count * made._pieces, made._values)
        more = -shape[1] % LANES if aligned else 0
        if isinstance(images, jax.ShapeDtypeStruct):
            rows: Any = jax.ShapeDtypeStruct((shape[0], shape[1] + more), images.dtype)
        else:  # without a copy, where nothing is added
            rows = images.reshape(shape)
            rows = np.pad(rows, ((0, 0), (0, more))) if more else rows
        return dataclasses.replace(made, rows=rows)

    @property
    def _pieces(self) -> int:
        """Rows of an image."""
        return 1 if math.prod(self.size) <= LONGEST else self.size[0]

    @property
    def _values(self) -> int:
        """Values of a row that are not there to fill it."""
        return math.prod(self.size) // self._pieces

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.rows.shape[0] // self._pieces, *self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Array) -> Array:
        """Those at positions `[...]`, `[..., H, W, C]`."""
        piece = np.arange(self._pieces, dtype=np.int32).reshape(*[1] * index.ndim, -1)
        found = self.rows[index[..., None] * self._pieces + piece][..., : self._values]
        return found.reshape(*index.shape, *self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.asarray(self.rows)[:, : self._values].reshape(self.shape), dtype)
