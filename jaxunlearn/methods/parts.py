"""The parts of a network in the order of its forward computation: layers, head, stem.

A parameter's name says nothing of where it is used, so its program is read: a parameter is used
where it, or what is made of parameters alone, first meets the images or what is made of them. Where
that is a convolution or a product, it is the kernel of a layer.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxunlearn.errors import UserError
from jaxunlearn.jaxprs import inner
from jaxunlearn.methods.task import Task
from jaxunlearn.models.model import Model
from jaxunlearn.training.passes import Variables

KERNELS = ("conv_general_dilated", "dot_general")
# What does no more than run the program that it holds, on the operands that it is given.
CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


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
      bias: the path of its bias, "" where it has none.
    """

    kernel: str
    shape: tuple[int, ...]
    is_conv: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    spatial: tuple[int, ...]
    params: tuple[str, ...]
    state: tuple[str, ...]
    bias: str = ""

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
    found = _found(lambda v, x: model.apply(v, x, False, None)[0], variables, image, False)
    return tuple(layer for layer, _ in found)


def layer_inputs(
    function: Callable[[Variables, jax.Array], jax.Array], variables: Variables, images: jax.Array
) -> list[tuple[Layer, jax.Array]]:
    """What each layer of a model sees, computed along with its logits.

    Convolutions in groups are left out, and layers within a loop or a branch.

    Args:
      function: (variables, images) -> logits, such as `Batch.logits_of`.
      variables: the model's variables.
      images: float32 `[B, H, W, C]`.

    Returns:
      Layers and rows `[B · positions, fan-in]`, those of the first image first: what an output is a
      product of with the kernel, whose axes are inputs and positions in the layer's order.
    """
    rows = [(layer, _rows(use)) for layer, use in _found(function, variables, images, True)]
    return [(layer, seen) for layer, seen in rows if seen is not None]


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


def noised(params: Any, paths: Collection[str], sigma: float, rng: np.random.Generator) -> Any:
    """Parameters with noise N(0, sigma²) on those of the given paths."""

    def one(path: str, leaf: np.ndarray) -> np.ndarray:
        if path not in paths:
            return leaf
        return (leaf + sigma * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return by_path(one, params)


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
      value: the value, where values are computed.
    """

    images: bool
    leaves: dict[str, tuple[int, ...]]
    value: Any = None


NOTHING = _Origin(False, {})


class _Use(NamedTuple):
    """Where leaves meet what is made of images.

    Attributes:
      leaves: as of an `_Origin`.
      equation: what they meet in.
      operand: the position of the leaves' value, where they are all of it.
      values: of the operands, where values are computed.
    """

    leaves: dict[str, tuple[int, ...]]
    equation: Any
    operand: int
    values: tuple[Any, ...]


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _found(
    function: Callable, variables: Variables, images: Any, compute: bool
) -> list[tuple[Layer, _Use]]:
    """The layers of a function of variables and images, and the uses of their kernels."""
    closed = jax.make_jaxpr(function)(variables, images)
    leaves = jax.tree.flatten_with_path(variables)[0]
    paths = [_path(path) for path, _ in leaves]
    shapes = dict(zip(paths, (jnp.shape(leaf) for _, leaf in leaves), strict=True))
    origins = [
        _Origin(False, {path: tuple(range(len(shapes[path])))}, leaf if compute else None)
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    uses: list[_Use] = []
    _walk(closed, [*origins, _Origin(True, {}, images if compute else None)], uses, compute)
    return _layers(uses, shapes)


def _walk(program: Any, origins: list[_Origin], uses: list[_Use], compute: bool) -> list[_Origin]:
    """Adds the uses within a program; returns the origins of what it gives."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    known = dict(zip(jaxpr.invars, origins, strict=True))
    known.update(
        (var, _Origin(False, {}, c)) for var, c in zip(jaxpr.constvars, consts, strict=True)
    )

    def origin(variable: Any) -> _Origin:
        if isinstance(variable, Literal):
            return _Origin(False, {}, variable.val)
        return known.get(variable, NOTHING)

    for equation in jaxpr.eqns:
        given = [origin(variable) for variable in equation.invars]
        name = equation.primitive.name
        # What a scatter or a reduction holds computes with two scalars.
        programs = [] if name.startswith(("scatter", "reduce")) else list(inner(equation))
        within = compute and name in CALLS
        # The operands of a loop's body are others.
        theirs = given if within else [each._replace(value=None) for each in given]
        results: list[_Origin] = []
        for program in programs:  # of a loop or a branch, the last operands are its own
            count = len(getattr(program, "jaxpr", program).invars)
            results = _walk(program, theirs[len(given) - count :], uses, within)
        if len(results) != len(equation.outvars):
            results = [_Origin(any(each.images for each in given), {})] * len(equation.outvars)
        if not programs:
            results = [_result(equation, given, uses)] * len(equation.outvars)
        if compute and not (programs and within):
            values = _computed(jaxpr, equation, [each.value for each in given])
            results = [
                each._replace(value=value) for each, value in zip(results, values, strict=True)
            ]
        known.update(zip(equation.outvars, results, strict=False))
    return [origin(variable) for variable in jaxpr.outvars]


def _computed(jaxpr: Any, equation: Any, values: list[Any]) -> list[Any]:
    """What an equation of a jaxpr gives of these operands."""
    pairs = zip(equation.invars, values, strict=True)
    given = {variable: value for variable, value in pairs if not isinstance(variable, Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(given), outvars=list(equation.outvars), eqns=[equation]
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*given.values())


def _result(equation: Any, given: list[_Origin], uses: list[_Use]) -> _Origin:
    """The origin of what an equation gives; adds the use, if it is one."""
    leaves = {path: axes for each in given if not each.images for path, axes in each.leaves.items()}
    if any(each.images for each in given):
        if leaves:
            operand = next(i for i, each in enumerate(given) if not each.images and each.leaves)
            uses.append(_Use(leaves, equation, operand, tuple(each.value for each in given)))
        return _Origin(True, {})
    if equation.primitive.name == "transpose":
        order = equation.params["permutation"]
        leaves = {path: tuple(axes[i] for i in order) for path, axes in leaves.items()}
    return _Origin(False, leaves)


def _rows(use: _Use) -> jax.Array | None:
    """What a layer sees, `[rows, fan-in]`; None where it is not known."""
    seen, params = use.values[1 - use.operand], use.equation.params
    if seen is None:
        return None
    if use.equation.primitive.name == "dot_general":
        contracted, batched = params["dimension_numbers"]
        if batched[use.operand]:
            return None
        features = math.prod(seen.shape[i] for i in contracted[1 - use.operand])
        moved = jnp.moveaxis(seen, contracted[1 - use.operand], range(-len(contracted[0]), 0))
        return moved.reshape(-1, features)
    numbers = params["dimension_numbers"]
    if (params["feature_group_count"], params["batch_group_count"]) != (1, 1):
        return None
    kernel = use.values[use.operand].shape
    patches = jax.lax.conv_general_dilated_patches(
        seen,
        [kernel[i] for i in numbers.rhs_spec[2:]],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        numbers,
    )
    moved = jnp.moveaxis(patches, numbers.out_spec[:2], (0, -1))
    return moved.reshape(-1, moved.shape[-1])


def _layers(uses: list[_Use], shapes: dict[str, tuple[int, ...]]) -> list[tuple[Layer, _Use]]:
    """The layers, each with what is used up to the next, and the uses of their kernels."""
    layers: list[tuple[Layer, _Use]] = []
    before: list[str] = []
    seen: set[str] = set()
    for use in uses:
        new = [path for path in use.leaves if path not in seen]
        seen.update(new)
        layer = _layer(use, new, shapes)
        if layer is not None:
            layers.append((layer, use))
            new, before = before + new, []
        if not layers:
            before += new
            continue
        params, state = (
            tuple(path for path in new if path.startswith("params/") is kind)
            for kind in (True, False)
        )
        owner, first = layers[-1]
        # A bias is added before anything else is done, a norm's after its statistics or scale.
        is_next = owner.params == (owner.kernel,) and not owner.state
        if is_next and use.equation.primitive.name == "add" and (len(params), len(state)) == (1, 0):
            owner = owner._replace(bias=params[0])
        owner = owner._replace(params=owner.params + params, state=owner.state + state)
        layers[-1] = (owner, first)
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
