"""What making a model takes, before it is made: arithmetic, passes and memory, by counting.

A method is run on shapes alone: its passes are counted, and what it would compute of a set (a mask,
importances, an accuracy) is answered by zeros. The arithmetic of a step is XLA's own count for the
program before it is optimised. Augmentations are left out: on an accelerator they are small.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.augment.build import build_chain
from jaxunlearn.data.dataset import SETS
from jaxunlearn.errors import UserError
from jaxunlearn.methods.table import actions
from jaxunlearn.methods.task import Task
from jaxunlearn.trained import Recipe
from jaxunlearn.training.images import Images
from jaxunlearn.training.passes import Ask, Conversation, Pass, Replace, Restore, Save, Variables
from jaxunlearn.training.step import (
    Bench,
    Epoch,
    Kind,
    Setup,
    TrainState,
    make_step,
    optimizer,
)
from jaxunlearn.training.sweep import Swept, logits, make_batch

# Counted as accelerators compute it; the layers' forms for a CPU take about as much.
PLATFORM = "cuda"


class Cost(NamedTuple):
    """What making one model takes.

    Attributes:
      flops: floating-point operations, a multiply-add as two.
      images: how many are put through the model, forward or in a training step.
      device_bytes: the largest step's memory on the devices together: the training images, the
        state, and what the forward pass keeps for the backward one.
    """

    flops: float
    images: int
    device_bytes: float


class _Counted:
    """The sums while a method runs on shapes."""

    def __init__(self) -> None:
        self.flops, self.images, self.largest = 0.0, 0, 0.0

    def add(self, cost: tuple[float, float], batches: int, batch_size: int) -> None:
        """Counts a step of a cost (operations, bytes) for every batch."""
        needed, size = cost
        self.flops += needed * batches
        self.images += batches * batch_size
        self.largest = max(self.largest, size)


@dataclasses.dataclass(frozen=True)
class _OnShapes(Task):
    """A task whose verbs count what they would compute, and answer with zeros."""

    counted: _Counted

    def fresh(self) -> Variables:
        return _zeros(_initial(self.bench.setup, self.bench.images.shape[1:]))

    def sweep(
        self,
        function: Swept,
        indices: np.ndarray,
        *,
        variables: Variables | None = None,
        reduce: Literal["sum", "stack"] = "sum",
        context: Any = (),
        augmented: str = "",
    ) -> Any:
        setup = self.bench.setup
        steps = -(-len(indices) // setup.batch_size)
        of = _shapes(self.original if variables is None else variables)
        value, cost = _swept(function, setup, _Frozen(of), self.bench.images, _Frozen(context))
        self.counted.add(cost, steps, setup.batch_size)
        if reduce == "sum":
            return _zeros(value)
        return jax.tree.map(lambda s: np.zeros((len(indices), *s.shape[1:]), s.dtype), value)

    def val_logits(self, variables: Variables | None = None) -> np.ndarray:
        return self.sweep(logits, np.arange(len(self.val)), variables=variables, reduce="stack")


def cost(recipe: Recipe) -> Cost:
    """What making a recipe's model takes, its parent's model apart.

    Raises:
      Exception: whatever a method raises that cannot be run on zeros.
    """
    setup = dataclasses.replace(recipe.setup, augment=build_chain(()))
    dataset, counted = recipe.dataset, _Counted()
    images = Images.of(jax.ShapeDtypeStruct(dataset.train.images.shape, jnp.uint8))
    start = _zeros(_initial(setup, images.shape[1:]))
    task = _OnShapes(
        **recipe.inputs,
        original=start,
        bench=Bench(setup, images, None),  # type: ignore[arg-type]
        counted=counted,
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a ratio of zeros
        _follow(task, recipe.settings, start)
    for which in SETS:
        task.sweep(logits, np.arange(len(getattr(dataset, which))), reduce="stack")
    # Images; parameters, gradient, moments, update, copy.
    stays = dataset.train.images.size + 5 * _bytes(start)
    return Cost(counted.flops, counted.images, stays + counted.largest)


def cost_or(recipe: Recipe, other: Recipe) -> Cost:
    """`cost`, or of a method that cannot be run on zeros that of another recipe.

    Raises:
      UserError: as the run itself would, such as of a model that has no features.
    """
    try:
        return cost(recipe)
    except UserError:
        raise
    except Exception:  # of the user's own code too
        return cost(other)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _follow(task: _OnShapes, settings: Any, variables: Variables) -> None:
    """Carries out a method's actions on shapes, as `training.loop.run` would."""
    method, saved = Conversation(actions(task, settings)), {}
    for action in method:
        if isinstance(action, Pass):
            size, streams = task.bench.setup.batch_size, action.streams
            steps = -(-len(streams[0]) // size)
            task.counted.add(_pass_cost(task, action, variables), steps, size * len(streams))
        elif isinstance(action, Replace):
            new = action.variables
            variables = new(variables) if callable(new) else new
        elif isinstance(action, Save):
            saved[action.name] = variables
        elif isinstance(action, Restore):
            variables = saved[action.name]
        elif isinstance(action, Ask):
            method.reply = float(action.question(variables))


def _pass_cost(task: _OnShapes, action: Pass, variables: Variables) -> tuple[float, float]:
    """What a step of the pass takes."""
    setup, images = task.bench.setup, task.bench.images
    streams = len(action.streams)
    struct: Any = jax.ShapeDtypeStruct
    epoch = Epoch(
        order=struct((1, streams, setup.batch_size), jnp.int32),
        weight=struct((1, streams, setup.batch_size), jnp.float32),
        steps=struct((), jnp.int32),
        labels=struct(action.labels.shape, jnp.int32 if action.labels.ndim == 1 else jnp.float32),
        lr=struct((), jnp.float32),
        key=_key(),
        examples=_shapes(dict(action.examples)),
        context=_shapes(action.context),
        own=None if action.images is None else struct(action.images.shape, jnp.float32),
        before=_shapes(tuple(link.data for link in action.before)),
        after=_shapes(tuple(link.data for link in action.after)),
    )
    return _step_cost(setup, Kind.of(action), _Frozen(_shapes(variables)), images, _Frozen(epoch))


class _Frozen:
    """A pytree of shapes that can be a key."""

    def __init__(self, tree: Any):
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self._key = (structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._key == other._key


@functools.lru_cache(maxsize=256)
def _step_cost(
    setup: Setup, kind: Kind, variables: _Frozen, images: Any, epoch: _Frozen
) -> tuple[float, float]:
    """Operations of a training step, and the bytes that its forward pass keeps."""

    def start(variables: Variables) -> TrainState:
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        moments = optimizer(setup).init(variables["params"])
        return TrainState(variables["params"], rest, moments, jnp.int32(0))

    state = jax.eval_shape(start, variables.tree)
    needed = flops(make_step(setup, kind), state, images, epoch.tree)
    streams = epoch.tree.order.shape[1]
    return needed, streams * _kept(setup, kind, variables.tree, images.shape[1:])


def _kept(setup: Setup, kind: Kind, variables: Variables, shape: tuple[int, ...]) -> float:
    """Bytes that a forward pass over one batch keeps for the backward one."""
    model = kind.model or setup.model
    seen = jax.ShapeDtypeStruct((setup.batch_size, *shape), jnp.float32)

    def backward(variables, seen, key):
        def forward(params):
            return model.apply({**variables, "params": params}, seen, kind.train, key)[0]

        return jax.vjp(forward, variables["params"])[1]

    return _bytes(jax.eval_shape(backward, variables, seen, _key()))


@functools.lru_cache(maxsize=256)
def _swept(
    function: Swept, setup: Setup, variables: _Frozen, images: Any, context: _Frozen
) -> tuple[Any, tuple[float, float]]:
    """The shapes of a sweep's value of one batch, and what that takes."""
    make = make_batch(setup.model, setup.mean, setup.std, None)

    def one(variables, images, labels, index, weight, context, key):
        return function(variables, make(variables, images, labels, index, weight, key), context)

    struct, size = jax.ShapeDtypeStruct, setup.batch_size
    args = (
        variables.tree,
        images,
        struct(images.shape[:1], jnp.int32),
        struct((size,), jnp.int32),
        struct((size,), jnp.float32),
        _shapes(context.tree),
        _key(),
    )
    return jax.eval_shape(one, *args), (flops(one, *args), 0.0)


def flops(function: Callable, *shapes: Any) -> float:
    """XLA's count of a program's operations."""
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(PLATFORM,))
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


@functools.lru_cache(maxsize=64)
def _initial(setup: Setup, shape: tuple[int, ...]) -> Any:
    """The shapes of a model's variables."""
    seen = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(setup.model.init, _key(), seen)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)


def _bytes(tree: Any) -> float:
    """Of a tree's arrays, or of what has such shapes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return float(sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves))
