"""The parts of a network in the order of its forward computation: layers, head, stem.

A parameter's name says nothing of where it is used, so its program is read: a parameter is used
where it, or what is made of parameters alone, first meets the images or what is made of them. Where
that is a convolution or a product, it is the kernel of a layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxunlearn.errors import UserError
from jaxunlearn.jaxprs import inner
from jaxunlearn.methods.task import Task
from jaxunlearn.models.model import Model
from jaxunlearn.training.passes import Variables

KERNELS = ("conv_general_dilated", "dot_general")


class Layer(NamedTuple):
    """A convolution, or a product with a matrix, and what is used between it and the next one.

    Paths are such as "params/Conv_0/kernel".

    Attributes:
      kernel: its path.
      shape: of the kernel.
      is_conv: whether it is a convolution.
      inputs: the axes of the kernel that run over input features.
      outputs: those over output features.
      spatial: those over positions, of a convolution.
      params: the paths of the kernel, of its bias, and of the norm's parameters behind it, in order
        of use. What is used before the first layer belongs to the first.
      state: the paths of what it uses of other collections, such as batch statistics.
    """

    kernel: str
    shape: tuple[int, ...]
    is_conv: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    spatial: tuple[int, ...]
    params: tuple[str, ...]
    state: tuple[str, ...]

    @property
    def fan_in(self) -> int:
        """How many inputs an output has."""
        return math.prod(self.shape[i] for i in self.inputs + self.spatial)

    @property
    def fan_out(self) -> int:
        """How many outputs an input has."""
        return math.prod(self.shape[i] for i in self.outputs + self.spatial)


def weight_layers(
    model: Model, variables: Variables, image_shape: tuple[int, ...]
) -> tuple[Layer, ...]:
    """The layers of a model in evaluation mode, in the order in which they are computed.

    A kernel that several layers share is listed where it is used first.

    Args:
      model: the model.
      variables: its variables, or their shapes.
      image_shape: of an image, (H, W, C).

    Raises:
      UserError: it has no such layer, or one whose kernel enters in another shape than it is kept.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    closed = jax.make_jaxpr(lambda v, x: model.apply(v, x, False, None)[0])(variables, image)
    leaves = jax.tree.flatten_with_path(variables)[0]
    paths = [_path(path) for path, _ in leaves]
    shapes = dict(zip(paths, (jnp.shape(leaf) for _, leaf in leaves), strict=True))
    origins = [_Origin(False, {path: tuple(range(len(shapes[path])))}) for path in paths]
    uses: list[_Use] = []
    _walk(closed.jaxpr, [*origins, _Origin(True, {})], uses)
    return tuple(_layers(uses, shapes))


def layers_of(task: Task) -> tuple[Layer, ...]:
    """Those of a task's model."""
    return weight_layers(task.bench.setup.model, task.original, task.bench.images.shape[1:])


def by_path(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """`jax.tree.map` over parameters, of a function that is given each one's path first."""
    return jax.tree.map_with_path(
        lambda path, *leaves: function(f"params/{_path(path)}", *leaves), params, *others
    )


def marked(params: Any, paths: Sequence[str]) -> Any:
    """A mask, booleans shaped like the parameters: True for those of the given paths."""
    chosen = set(paths)
    return by_path(lambda path, leaf: np.full(np.shape(leaf), path in chosen), params)


def last(params: Any, layers: Sequence[Layer], k: int) -> Any:
    """A mask that lets the last k layers change, and all that is used between and after them."""
    return marked(params, [path for layer in layers[-k:] for path in layer.params] if k else [])


def redraw(params: Any, owners: Mapping[str, Layer], rng: np.random.Generator) -> Any:
    """Parameters of which some are drawn as PyTorch initialises its layers: U(±1/√fan-in).

    Args:
      params: the parameters.
      owners: which, by path, and the layer of each.
      rng: what draws.
    """

    def one(path: str, leaf: np.ndarray) -> np.ndarray:
        if path not in owners:
            return leaf
        bound = 1 / math.sqrt(owners[path].fan_in)
        return rng.uniform(-bound, bound, np.shape(leaf)).astype(leaf.dtype)

    return by_path(one, params)


class _Origin(NamedTuple):
    """What a value is made of.

    Attributes:
      images: whether it is made of images; what it is made of besides no longer counts then.
      leaves: the leaves of the variables, by path, and which axis of each leaf the value's are.
    """

    images: bool
    leaves: dict[str, tuple[int, ...]]


NOTHING = _Origin(False, {})


class _Use(NamedTuple):
    """Where leaves meet what is made of images.

    Attributes:
      leaves: as of an `_Origin`.
      equation: what they meet in.
      operand: the position of the leaves' value, where they are all of it.
    """

    leaves: dict[str, tuple[int, ...]]
    equation: Any
    operand: int


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _walk(jaxpr: Any, origins: list[_Origin], uses: list[_Use]) -> list[_Origin]:
    """Adds the uses within a jaxpr; returns the origins of what it gives."""
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def origin(variable: Any) -> _Origin:
        return NOTHING if isinstance(variable, Literal) else known.get(variable, NOTHING)

    for equation in jaxpr.eqns:
        given = [origin(variable) for variable in equation.invars]
        # What a scatter or a reduction holds computes with two scalars.
        holds = not equation.primitive.name.startswith(("scatter", "reduce"))
        programs = list(inner(equation)) if holds else []
        for program in programs:  # of a loop or a branch, the last operands are its own
            results = _walk(program, given[len(given) - len(program.invars) :], uses)
        if not programs:
            results = [_result(equation, given, uses)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=False))
    return [origin(variable) for variable in jaxpr.outvars]


def _result(equation: Any, given: list[_Origin], uses: list[_Use]) -> _Origin:
    """The origin of what an equation gives; adds the use, if it is one."""
    leaves = {path: axes for each in given if not each.images for path, axes in each.leaves.items()}
    if any(each.images for each in given):
        if leaves:
            operand = next(i for i, each in enumerate(given) if not each.images and each.leaves)
            uses.append(_Use(leaves, equation, operand))
        return _Origin(True, {})
    if equation.primitive.name == "transpose":
        order = equation.params["permutation"]
        leaves = {path: tuple(axes[i] for i in order) for path, axes in leaves.items()}
    return _Origin(False, leaves)


def _layers(uses: list[_Use], shapes: dict[str, tuple[int, ...]]) -> list[Layer]:
    """The layers, each with what is used up to the next."""
    layers: list[Layer] = []
    before: list[str] = []
    seen: set[str] = set()
    for use in uses:
        new = [path for path in use.leaves if path not in seen]
        seen.update(new)
        layer = _layer(use, new, shapes)
        if layer is not None:
            layers.append(layer)
            new, before = before + new, []
        if not layers:
            before += new
            continue
        params, state = (
            tuple(path for path in new if path.startswith("params/") is kind)
            for kind in (True, False)
        )
        owner = layers[-1]
        layers[-1] = owner._replace(params=owner.params + params, state=owner.state + state)
    if not layers:
        raise UserError("the model has no convolution and no matrix product with a parameter")
    return layers


def _layer(use: _Use, new: list[str], shapes: dict[str, tuple[int, ...]]) -> Layer | None:
    """The layer of which this use is the kernel's first, with no parameters yet."""
    if use.equation.primitive.name not in KERNELS:
        return None
    kernel = max(use.leaves, key=lambda path: math.prod(shapes[path]))
    if kernel not in new:
        return None
    axes, operand = use.leaves[kernel], use.equation.invars[use.operand].aval
    if tuple(shapes[kernel][i] for i in axes) != operand.shape:
        raise UserError(
            f"the model uses {kernel} of shape {shapes[kernel]} as {operand.shape}; keep it in "
            "the shape that its convolution or product takes"
        )
    numbers = use.equation.params["dimension_numbers"]
    is_conv = use.equation.primitive.name == "conv_general_dilated"
    kinds: list[tuple[int, ...]]  # axes of inputs, outputs, positions
    if is_conv:
        output, features, *positions = numbers.rhs_spec
        kinds = [(features,), (output,), tuple(positions)]
    else:
        inputs, batched = (tuple(which[use.operand]) for which in numbers)
        outputs = [i for i in range(len(axes)) if i not in inputs + batched]
        kinds = [inputs, tuple(outputs), ()]
    ins, outs, spatial = (tuple(axes[i] for i in kind) for kind in kinds)
    return Layer(kernel, shapes[kernel], is_conv, ins, outs, spatial, (), ())
