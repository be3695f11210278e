"""Sweeps: a function of the variables and a batch, over a set in evaluation mode."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import devices
from jaxunlearn.models.model import Model
from jaxunlearn.training.passes import Batch, Variables
from jaxunlearn.training.step import Bench, batches, normalise, num_logits

# (variables, batch, context) -> a pytree: one value for the batch, or for "stack" rows [B, ...].
# A module-level function, as an objective.
Swept = Callable[[Variables, Batch, Any], Any]


@functools.cache
def make_batch(
    model: Model, mean: tuple[float, ...], std: tuple[float, ...], augment: Callable | None
) -> Callable:
    """Returns `(variables, images, labels, index [B], weight [B], key) -> Batch`."""

    def make(variables, images, labels, index, weight, key):
        seen = images[index]
        sample = jnp.zeros((1, *images.shape[1:]), jnp.float32)
        targets = jax.nn.one_hot(labels[index], num_logits(model, variables, sample))
        if augment is not None:
            seen, targets = augment(seen, targets, key)
        seen = normalise(seen, mean, std)

        def logits_of(variables, x=seen):
            return model.apply(variables, x, False, None)[0]

        return Batch(seen, targets, weight, {}, key=key, logits_of=logits_of)

    return make


@functools.cache
def make_sum(function: Swept, make: Callable) -> Callable:
    """Returns a program that adds one batch's value to a total."""

    def add(total, variables, images, labels, order, weight, context, key, position):
        batch_key = jax.random.fold_in(key, position)
        batch = make(variables, images, labels, order[position], weight[position], batch_key)
        return jax.tree.map(jnp.add, total, function(variables, batch, context))

    return add


@functools.cache
def make_stack(function: Swept, make: Callable, scan: bool) -> Callable:
    """Returns a program of one batch's rows; `scan`: of every batch's."""

    def rows(variables, images, labels, order, weight, context, key, position):
        def one(i):
            batch_key = jax.random.fold_in(key, i)
            batch = make(variables, images, labels, order[i], weight[i], batch_key)
            return function(variables, batch, context)

        return jax.lax.map(one, jnp.arange(len(order))) if scan else one(position)

    return rows


def sweep(
    function: Swept,
    variables: Variables,
    bench: Bench,
    indices: np.ndarray,
    labels: np.ndarray,
    *,
    reduce: Literal["sum", "stack"] = "sum",
    context: Any = (),
    key: jax.Array | None = None,
) -> Any:
    """Computes a function of every batch of a set, the model in evaluation mode.

    Args:
      function: see `Swept`.
      variables: what it is a function of.
      bench: the images, in batches of its size, and the rest.
      indices: which images, int `[M]`, in this order.
      labels: int32 `[N]`, of all images.
      reduce: "sum": the sum over batches; "stack": the rows of every example, `[M, ...]`.
      context: a pytree of arrays that the function needs whole.
      key: where given, images are augmented as in training, by this key.

    Returns:
      A pytree of numpy arrays.
    """
    setup, programs = bench.setup, bench.programs
    mesh = programs.mesh
    order, weight = batches(indices, setup.batch_size)
    make = make_batch(setup.model, setup.mean, setup.std, None if key is None else setup.augment)
    variables, labels, context, key, positions = devices.replicate(
        (
            variables,
            labels,
            context,
            jax.random.key(0) if key is None else key,
            list(np.arange(len(order), dtype=np.int32)),
        ),
        mesh,
    )
    rows = (devices.shard_batches(order, mesh), devices.shard_batches(weight, mesh))
    fixed = (variables, bench.images, labels, *rows, context, key)
    if reduce == "stack":
        scan = not devices.on_cpu(mesh)
        program = programs(make_stack(function, make, scan), *fixed, positions[0])
        if scan:
            parts = jax.device_get(program(*fixed, positions[0]))
        else:
            each = [jax.device_get(program(*fixed, position)) for position in positions]
            parts = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(indices)], parts)
    shapes = jax.eval_shape(
        lambda *args: function(args[0], make(*args[:3], args[3][0], args[4][0], args[6]), args[5]),
        *fixed,
    )
    total = devices.replicate(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), mesh)
    program = programs(make_sum(function, make), total, *fixed, positions[0], donate=(0,))
    for position in positions:
        total = program(total, *fixed, position)
    return jax.device_get(total)


def logits(variables: Variables, batch: Batch, context: Any) -> jax.Array:
    """The logits of every example, as a sweep stacks them."""
    return batch.logits_of(variables)


@functools.cache
def make_logits(model: Model, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """Returns `(variables, images [B, H, W, C]) -> logits [B, num_classes]`."""
    return lambda variables, images: model.apply(
        variables, normalise(images, mean, std), False, None
    )[0]


def predict(
    variables: Variables, images: np.ndarray | jax.Array, bench: Bench, batch_size: int
) -> np.ndarray:
    """Returns logits float32 `[N, num_classes]` of images uint8 `[N, H, W, C]`, not in training.

    Batch after batch is sent, so that one program serves sets of any size.
    """
    setup, programs = bench.setup, bench.programs
    mesh, images = programs.mesh, np.asarray(images)
    order, _ = batches(np.arange(len(images)), devices.divisible(batch_size, mesh))
    variables = devices.replicate(variables, mesh)
    parts: list[Any] = []
    for rows in order:
        args = (variables, devices.shard_batches(images[rows], mesh, axis=0))
        parts.append(programs(make_logits(setup.model, setup.mean, setup.std), *args)(*args))
        # While this one is computed; not all at once, as a whole set may be too large.
        parts[-2:-1] = jax.device_get(parts[-2:-1])
    return np.concatenate(jax.device_get(parts))[: len(images)]
