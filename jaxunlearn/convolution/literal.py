"""A convolution as a traced program has it, whichever gradient of whichever layer it is."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Convolution(NamedTuple):
    """out[n, o, t] = Σ_i,k lhs[n, i, t · stride + k · rhs_dilation − low] rhs[o, i, k].

    Here t and k have two components, as has all that is an attribute of the two axes of images.
    Sizes are in the order that the formula has: [N, I, H, W], [O, I, kh, kw] and [N, O, oh, ow].

    Attributes:
      lhs: its size.
      rhs: the same.
      out: the same.
      lhs_order: which axis of the formula each axis of the array is.
      rhs_order: the same.
      out_order: the same.
      stride: of the windows.
      low: the padding before the first pixels.
      high: the padding after the last ones.
      lhs_dilation: how far the pixels of lhs are pulled apart; zeros fill the gaps.
      rhs_dilation: the same of rhs.
      dtype: of lhs and rhs, "" where they differ.
      out_dtype: of out.
      flipped: whether rhs comes straight out of a reversal, as for the gradient of an input.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    lhs_order: tuple[int, ...]
    rhs_order: tuple[int, ...]
    out_order: tuple[int, ...]
    stride: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dtype: str
    out_dtype: str
    flipped: bool

    @property
    def is_weight_gradient(self) -> bool:
        """Whether its kernel is an image, as in the gradient of a layer's kernel."""
        return bool(np.prod(self.rhs[2:]) > np.prod(self.out[2:]))


def find(equation: Any, flipped: bool) -> Convolution | None:
    """That of an equation `conv_general_dilated`; None: it is not 2-D, in groups, or empty."""
    avals = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    params = equation.params
    groups = (params["feature_group_count"], params["batch_group_count"])
    if groups != (1, 1) or any(aval.ndim != 4 or not aval.size for aval in avals):
        return None
    numbers = params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    lhs, rhs, out = (
        tuple(aval.shape[axis] for axis in spec) for aval, spec in zip(avals, specs, strict=True)
    )
    lhs_order, rhs_order, out_order = (
        tuple(spec.index(axis) for axis in range(4)) for spec in specs
    )
    low, high = (_whole(each) for each in zip(*params["padding"], strict=True))
    return Convolution(
        lhs,
        rhs,
        out,
        lhs_order,
        rhs_order,
        out_order,
        stride=_whole(params["window_strides"]),
        low=low,
        high=high,
        lhs_dilation=_whole(params["lhs_dilation"]),
        rhs_dilation=_whole(params["rhs_dilation"]),
        dtype=avals[0].dtype.name if avals[0].dtype == avals[1].dtype else "",
        out_dtype=avals[2].dtype.name,
        flipped=flipped,
    )


def _whole(numbers: Iterable[Any]) -> tuple[int, ...]:
    """Numbers, which may be NumPy's, as Python's."""
    return tuple(map(int, numbers))
