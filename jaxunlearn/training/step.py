"""The train state and the compiled step: pure functions of arrays."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxunlearn import devices, rules
from jaxunlearn.keys import stage_key
from jaxunlearn.models.model import Model
from jaxunlearn.training.images import Images
from jaxunlearn.training.passes import Batch, Objective, Pass, Variables
from jaxunlearn.training.programs import Programs


@dataclasses.dataclass(frozen=True)
class Setup:
    """Settings shared by every step of a run; the compiled step is kept under them."""

    model: Model
    augment: Callable
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0


class Bench(NamedTuple):
    """All that a run computes with.

    Attributes:
      setup: settings shared by every step.
      images: training images, on the devices.
      programs: compiled programs, kept from run to run.
    """

    setup: Setup
    images: Images
    programs: Programs


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, other collections, the optimizer's state, and the step within the epoch."""

    params: Any
    model_state: dict[str, Any]
    opt_state: Any
    position: jax.Array

    @property
    def variables(self) -> Variables:
        """The model's variables."""
        return {"params": self.params, **self.model_state}


jax.tree_util.register_dataclass(
    TrainState,
    data_fields=["params", "model_state", "opt_state", "position"],
    meta_fields=[],
)


class Epoch(NamedTuple):
    """All that the steps of one pass read, on the device: see `Pass`.

    `order` and `weight` have as many rows as a pass over all of train needs, whatever the pass, so
    that passes over different sets share one compiled program; only the first `steps` are run.
    """

    order: jax.Array  # int32 [rows, streams, batch]
    weight: jax.Array  # float32 [rows, streams, batch]
    steps: jax.Array  # int32
    labels: jax.Array  # int32 [N], or float32 [N, num_classes]
    lr: jax.Array
    key: jax.Array
    examples: dict[str, jax.Array]
    context: Any
    own: jax.Array | None  # float32 [K, H, W, C]
    before: tuple[Any, ...]  # the data of the links
    after: tuple[Any, ...]


class Kind(NamedTuple):
    """What of a pass is part of the program: passes of one kind share a compiled step."""

    objective: Objective
    train: bool
    plain: bool
    before: tuple[Callable, ...]
    after: tuple[Callable, ...]
    model: Model | None

    @classmethod
    def of(cls, action: Pass) -> "Kind":
        """The kind of a pass."""
        before, after = (
            tuple(link.apply for link in links) for links in (action.before, action.after)
        )
        return cls(action.objective, action.train, action.plain, before, after, action.model)


def fresh(bench: Bench, seed: int) -> Variables:
    """Returns freshly initialised variables."""
    blank = np.zeros((1, *bench.images.shape[1:]), np.float32)
    args = devices.replicate((stage_key("init", seed, 0), blank), bench.programs.mesh)
    return bench.programs(bench.setup.model.init, *args)(*args)


def batches(indices: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts indices `[M]` into batches: (int32 `[steps, batch]`, float32 weight `[steps, batch]`).

    The last batch is filled up with the examples again, from the first on, at weight 0: real
    images, so that batch norm's moments stay those of the set, but none of them counts in a loss or
    a metric.
    """
    steps = -(-len(indices) // batch_size)
    weight = np.arange(steps * batch_size) < len(indices)
    order = np.resize(indices, steps * batch_size)
    return (
        order.reshape(steps, batch_size).astype(np.int32),
        weight.reshape(steps, batch_size).astype(np.float32),
    )


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images `[B, H, W, C]` in levels of 0 to 255 to float32, (x/255 − mean)/std per channel."""
    channels = images.shape[-1]
    shift = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (channels,))
    scale = jnp.broadcast_to(jnp.asarray(std, jnp.float32), (channels,))
    return (images.astype(jnp.float32) / 255.0 - shift[None, None, None]) / scale[None, None, None]


OPTIMIZERS: dict[str, Callable[[float, float], optax.GradientTransformation]] = {
    # As PyTorch's SGD, which the papers use: m ← momentum·m + (g + weight_decay·θ); θ ← θ − lr·m.
    "sgd": lambda momentum, decay: optax.chain(
        optax.add_decayed_weights(decay), optax.trace(momentum)
    ),
    "adam": lambda momentum, decay: optax.chain(
        optax.add_decayed_weights(decay), optax.scale_by_adam(b1=momentum)
    ),
    "adamw": lambda momentum, decay: optax.chain(
        optax.scale_by_adam(b1=momentum), optax.add_decayed_weights(decay)
    ),
}


OPTIMIZER = {
    "optimizer": "sgd",  # sgd, adam or adamw
    "momentum": 0.9,  # of sgd; the first moment's decay of adam and adamw
    "weight_decay": 5e-4,
    "batch_size": 256,
}
# Of the optimizer, and of what every method and the original's recipe have besides.
OPTIMIZER_RULES = {
    "optimizer": rules.one_of(OPTIMIZERS),
    "momentum": rules.below(0, 1),
    "weight_decay": rules.at_least(0),
    "batch_size": rules.whole(1),
    "epochs": rules.whole(0),
    "lr": rules.above(0),
}


def optimizer(setup: Setup) -> optax.GradientTransformation:
    """The direction of the update, before the learning rate."""
    return OPTIMIZERS[setup.optimizer](setup.momentum, setup.weight_decay)


def start_state(variables: Variables, setup: Setup, mesh: Mesh) -> TrainState:
    """A state with copies of the variables (the step donates its state) and a fresh optimizer."""
    copy = jax.tree.map(lambda leaf: np.array(leaf), variables)
    shapes = jax.eval_shape(optimizer(setup).init, copy["params"])
    # All zeros in `OPTIMIZERS`. Made one by one, each shape would be a program to compile.
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    model_state = {name: tree for name, tree in copy.items() if name != "params"}
    state = TrainState(copy["params"], model_state, opt_state, jnp.int32(0))
    return devices.replicate(state, mesh)


def num_logits(model: Model, variables: Variables, images: Any) -> int:
    """How many logits the model gives, without computing them."""
    return jax.eval_shape(_evaluated(model), variables, images).shape[-1]


@functools.cache
def _evaluated(model: Model) -> Callable:
    """Its logits; one function for each model, as JAX traces the same function once."""
    return lambda variables, images: model.apply(variables, images, False, None)[0]


def part_key(key: jax.Array, name: str) -> jax.Array:
    """A stream of a step's own key, by name."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def _look(
    setup: Setup, images: Images, epoch: Epoch, index: jax.Array, targets: jax.Array, key: Any
) -> tuple[jax.Array, jax.Array]:
    """A stream's images as the model sees them, and their targets; its own are not augmented."""
    drawn, mixed = setup.augment(images[index], targets, key)
    seen = normalise(drawn, setup.mean, setup.std)
    if epoch.own is None:
        return seen, mixed
    own = normalise(epoch.own[jnp.maximum(index - len(images), 0)], setup.mean, setup.std)
    is_own = index >= len(images)
    return jnp.where(is_own[:, None, None, None], own, seen), jnp.where(
        is_own[:, None], targets, mixed
    )


def _chain(applies: tuple[Callable, ...], data: tuple, value: Any, params: Any, key: Any) -> Any:
    """The value after every link."""
    for i, (apply, needed) in enumerate(zip(applies, data, strict=True)):
        value = apply(value, params, needed, jax.random.fold_in(key, i))
    return value


def _make_batch(setup: Setup, kind: Kind, state: TrainState, images: Images, epoch: Epoch):
    """The batch of the state's position, and a forward pass over its streams.

    Returns:
      The batch; its labels int32 `[B]`; and `forward(params, seen) -> (logits, model_state)`.
    """
    model = kind.model or setup.model
    index, weight = epoch.order[state.position], epoch.weight[state.position]
    key = jax.random.fold_in(epoch.key, state.position)
    streams, size = index.shape
    sample = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    rows = epoch.labels[index.reshape(-1)]
    targets = (
        jax.nn.one_hot(rows, num_logits(model, state.variables, sample)) if rows.ndim == 1 else rows
    )
    looks = [
        _look(
            setup,
            images,
            epoch,
            index[s],
            targets[s * size : (s + 1) * size],
            part_key(key, f"stream {s}") if s else key,
        )
        for s in range(streams)
    ]
    seen, targets = (
        pair[0] if streams == 1 else jnp.concatenate(pair) for pair in zip(*looks, strict=True)
    )

    def forward(params, seen):
        model_state, logits = state.model_state, []
        for s in range(streams):
            chunk = seen if streams == 1 else seen[s * size : (s + 1) * size]
            variables = {"params": params, **model_state}
            stream_key = part_key(key, f"model {s}")
            out, model_state = model.apply(variables, chunk, kind.train, stream_key)
            logits.append(out)
        return logits[0] if streams == 1 else jnp.concatenate(logits), model_state

    batch = Batch(
        seen,
        targets,
        weight.reshape(-1),
        {name: array[index.reshape(-1)] for name, array in epoch.examples.items()},
        part=np.repeat(np.arange(streams), size),
        key=part_key(key, "objective"),
        logits_of=lambda variables, x=seen: setup.model.apply(variables, x, False, None)[0],
        forward=lambda params, x: model.apply(
            {"params": params, **state.model_state}, x, kind.train, part_key(key, "again")
        )[0],
    )
    return batch, rows if rows.ndim == 1 else jnp.argmax(rows, -1), forward


@functools.cache
def make_step(setup: Setup, kind: Kind) -> Callable:
    """Returns the pure `step(state, images [N, H, W, C], epoch) -> (state, metrics)`."""
    tx = optimizer(setup)

    def step(state: TrainState, images: Images, epoch: Epoch):
        batch, labels, forward = _make_batch(setup, kind, state, images, epoch)
        key = part_key(jax.random.fold_in(epoch.key, state.position), "links")

        def loss_fn(params):
            logits, model_state = forward(params, batch.images)
            return kind.objective(params, logits, batch, epoch.context), (logits, model_state)

        (loss, (logits, model_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        gradient_norm = optax.tree.norm(gradient)
        gradient = _chain(kind.before, epoch.before, gradient, state.params, part_key(key, "g"))
        if kind.plain:
            direction, opt_state = gradient, state.opt_state
        else:
            direction, opt_state = tx.update(gradient, state.opt_state, state.params)
        # Parameters and moments can overflow where the loss has not yet.
        moments = [x for x in jax.tree.leaves(model_state) if jnp.issubdtype(x.dtype, jnp.floating)]
        norms = (loss, gradient_norm, epoch.lr * optax.tree.norm(direction), *map(jnp.sum, moments))
        finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, norms))
        params = jax.tree.map(lambda p, d: p - epoch.lr * d, state.params, direction)
        params = _chain(kind.after, epoch.after, params, state.params, part_key(key, "p"))
        new = (params, model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        # A step that is not finite changes nothing: the last good parameters survive it.
        params, model_state, opt_state = jax.tree.map(
            functools.partial(jnp.where, finite), new, old
        )
        count = jnp.sum(batch.weight)
        metrics = {
            "loss": loss * count,
            "correct": jnp.sum(jnp.where(jnp.argmax(logits, -1) == labels, batch.weight, 0)),
            "count": count,
            "finite": finite,
            "gradient_norm": gradient_norm,
        }
        return TrainState(params, model_state, opt_state, state.position + 1), metrics

    return step


@functools.cache
def make_whole_epoch(setup: Setup, kind: Kind) -> Callable:
    """The whole epoch as one program, for accelerators; metrics by step, `[rows]` each."""
    step = make_step(setup, kind)

    def whole_epoch(state: TrainState, images: Images, epoch: Epoch):
        def body(i, carry):
            state, rows = carry
            state, metrics = step(state, images, epoch)
            return state, jax.tree.map(lambda row, value: row.at[i].set(value), rows, metrics)

        shapes = jax.eval_shape(step, state, images, epoch)[1]
        rows = jax.tree.map(lambda s: jnp.zeros((len(epoch.order), *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, epoch.steps, body, (state, rows))

    return whole_epoch
