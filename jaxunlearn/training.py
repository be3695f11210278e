"""The train state, the compiled step, and the one loop that all training and unlearning uses.

A method (see `jaxunlearn.methods`) is a generator of `Pass` and `Replace`; `run` carries them out.
The step is pure and compiled once for each objective and shape. Everything that a step reads (the
order of the examples, labels, learning rate, key) is on the device before its epoch starts, so the
hot loop moves nothing.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import devices
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_key, stage_rng
from jaxunlearn.models import Model

Variables = dict[str, Any]  # {"params": pytree, and any other collection, such as "batch_stats"}


class Batch(NamedTuple):
    """What an objective sees of a batch.

    Attributes:
      images: normalised, float32 `[B, H, W, C]`.
      targets: what each example is trained towards, float32 `[B, num_classes]`, rows sum to 1.
      weight: 1 for an example, 0 for padding, float32 `[B]`.
      examples: the pass's own per-example arrays, `[B, ...]` each.
    """

    images: jax.Array
    targets: jax.Array
    weight: jax.Array
    examples: dict[str, jax.Array]

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean of per-example values `[B]` over the examples that are not padding."""
        return jnp.sum(values * self.weight) / jnp.sum(self.weight)


# (params, logits float32 [B, num_classes], batch, the pass's context) -> scalar loss.
# A module-level function: its identity is what the compiled step is kept under.
Objective = Callable[[Any, jax.Array, Batch, Any], jax.Array]


def cross_entropy(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """The mean cross-entropy to the batch's targets."""
    del params, context
    return batch.mean(optax.softmax_cross_entropy(logits, batch.targets))


@dataclasses.dataclass(frozen=True)
class Pass:
    """Run `objective` over the examples `indices` for one epoch.

    Attributes:
      objective: see `Objective`.
      indices: which training examples, int `[M]`; shuffled anew for each pass.
      labels: the label that each training example is trained towards, int32 `[N]`.
      lr: the learning rate of this pass.
      of: how many passes the method makes in all, for the progress bar.
      mask: saliency mask shaped like the parameters; True = may change. None: everything may.
      mask_gradient: mask the gradient before the optimizer (as the published SalUn code does)
        rather than the update after it; weight decay and momentum then still move masked-out
        weights.
      examples: more arrays `[N, ...]` that the objective wants of each example, by name.
      context: any pytree of arrays that the objective wants whole.
    """

    objective: Objective
    indices: np.ndarray
    labels: np.ndarray
    lr: float
    of: int = 1
    mask: Any = None
    mask_gradient: bool = False
    examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    context: Any = ()


@dataclasses.dataclass(frozen=True)
class Replace:
    """Replace the model's variables by these; the optimizer starts anew."""

    variables: Variables


@dataclasses.dataclass(frozen=True)
class Ask:
    """Ask for a number that the present variables give, such as the accuracy on validation.

    `answer = yield Ask(question)`. A resumed run gives the answers that were given before.
    """

    question: Callable[[Variables], float]


@dataclasses.dataclass(frozen=True)
class Save:
    """Keep a copy of the present variables under a name, in place of an earlier one."""

    name: str


@dataclasses.dataclass(frozen=True)
class Restore:
    """Replace the model's variables by those saved under a name; the optimizer starts anew."""

    name: str


Action = Pass | Replace | Ask | Save | Restore


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is the same for every step of a run; the compiled step is kept under it."""

    model: Model
    num_classes: int
    augment: Callable
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0


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

    order: jax.Array  # int32 [rows, batch]
    weight: jax.Array  # float32 [rows, batch]
    steps: jax.Array  # int32
    labels: jax.Array  # int32 [N]
    lr: jax.Array
    key: jax.Array
    examples: dict[str, jax.Array]
    context: Any


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      variables: the trained variables.
      seconds: the method's own run-time, compile time and checkpoints apart (RTE).
      compile_seconds: time spent tracing and compiling.
      history: loss and accuracy (fraction) of every pass.
    """

    variables: Variables
    seconds: float
    compile_seconds: float
    history: list[dict[str, float]]


class Point(NamedTuple):
    """Where a run stands after a pass: all that it takes to go on from there.

    Attributes:
      done: actions carried out.
      state: the train state's leaves.
      history: as `Result.history`.
      seconds: as `Result.seconds`.
      answers: to the method's questions (`Ask`), in order.
      saved: variables by name (`Save`).
    """

    done: int
    state: list[Any]
    history: list[dict[str, float]]
    seconds: float
    answers: list[float]
    saved: dict[str, Variables]


class DivergedError(UserError):
    """The loss became NaN or infinite; `variables` are the last good ones."""

    def __init__(self, message: str, variables: Variables):
        super().__init__(message)
        self.variables = variables


class Programs:
    """Compiled programs by function and argument shapes, and the seconds that compiling took."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.seconds = 0.0
        self._compiled: dict[Any, Callable] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def __call__(self, function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Callable:
        """Returns `function` compiled for such arguments; outputs lie whole on every device."""
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        kept_under = (function, donate, structure, shapes)
        if kept_under not in self._compiled:
            start = time.perf_counter()
            whole = NamedSharding(self.mesh, PartitionSpec())
            jitted = jax.jit(function, donate_argnums=donate, out_shardings=whole)
            self._compiled[kept_under] = jitted.lower(*args).compile()
            self.seconds += time.perf_counter() - start
        return self._compiled[kept_under]


def fresh(setup: Setup, images: jax.Array, seed: int, programs: Programs) -> Variables:
    """Returns freshly initialised variables for images like `[N, H, W, C]`."""
    blank = np.zeros((1, *images.shape[1:]), np.float32)
    args = devices.replicate((stage_key("init", seed, 0), blank), programs.mesh)
    return programs(setup.model.init, *args)(*args)


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
    """Images uint8 `[B, H, W, C]` to float32, (x/255 − mean)/std per channel."""
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


def optimizer(setup: Setup) -> optax.GradientTransformation:
    """The direction of the update, before the learning rate."""
    return OPTIMIZERS[setup.optimizer](setup.momentum, setup.weight_decay)


@functools.cache
def make_step(setup: Setup, objective: Objective, mask_gradient: bool) -> Callable:
    """Returns the pure `step(state, images [N, H, W, C], epoch, mask) -> (state, metrics)`."""
    tx = optimizer(setup)

    def step(state: TrainState, images: jax.Array, epoch: Epoch, mask: Any):
        index, weight = epoch.order[state.position], epoch.weight[state.position]
        labels = epoch.labels[index]
        drawn, targets = setup.augment(
            images[index],
            jax.nn.one_hot(labels, setup.num_classes),
            jax.random.fold_in(epoch.key, state.position),
        )
        examples = {name: array[index] for name, array in epoch.examples.items()}
        batch = Batch(normalise(drawn, setup.mean, setup.std), targets, weight, examples)

        def loss_fn(params):
            variables = {"params": params, **state.model_state}
            logits, model_state = setup.model.apply(variables, batch.images, True)
            return objective(params, logits, batch, epoch.context), (logits, model_state)

        (loss, (logits, model_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        gradient_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        if mask_gradient:
            gradient = jax.tree.map(lambda g, m: jnp.where(m, g, 0), gradient, mask)
        direction, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - epoch.lr * d, state.params, direction)
        if mask is not None and not mask_gradient:
            # Last, so that neither weight decay nor momentum can move a frozen weight.
            params = jax.tree.map(jnp.where, mask, params, state.params)
        new = (params, model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        # A step that is not finite changes nothing: the last good parameters survive it.
        params, model_state, opt_state = jax.tree.map(
            functools.partial(jnp.where, finite), new, old
        )
        correct = jnp.sum(weight * (jnp.argmax(logits, -1) == labels))
        metrics = {
            "loss": loss * jnp.sum(weight),
            "correct": correct,
            "count": jnp.sum(weight),
            "finite": finite,
            "gradient_norm": gradient_norm,
        }
        return TrainState(params, model_state, opt_state, state.position + 1), metrics

    return step


@functools.cache
def make_whole_epoch(setup: Setup, objective: Objective, mask_gradient: bool) -> Callable:
    """The whole epoch as one program, for accelerators; metrics by step, `[rows]` each."""
    step = make_step(setup, objective, mask_gradient)

    def whole_epoch(state: TrainState, images: jax.Array, epoch: Epoch, mask: Any):
        def body(i, carry):
            state, rows = carry
            state, metrics = step(state, images, epoch, mask)
            return state, jax.tree.map(lambda row, value: row.at[i].set(value), rows, metrics)

        shapes = jax.eval_shape(step, state, images, epoch, mask)[1]
        rows = jax.tree.map(lambda s: jnp.zeros((len(epoch.order), *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, epoch.steps, body, (state, rows))

    return whole_epoch


def on_cpu(mesh: Mesh) -> bool:
    """Whether to call steps one by one: a convolution in a loop is ~20 times slower on a CPU."""
    return mesh.devices.flat[0].platform == "cpu"


def start_state(variables: Variables, setup: Setup, mesh: Mesh) -> TrainState:
    """A state with copies of the variables (the step donates its state) and a fresh optimizer."""
    copy = jax.tree.map(lambda leaf: np.array(leaf), variables)
    opt_state = optimizer(setup).init(copy["params"])
    model_state = {name: tree for name, tree in copy.items() if name != "params"}
    state = TrainState(copy["params"], model_state, opt_state, jnp.int32(0))
    return devices.replicate(state, mesh)


# (share of the work done, images since the last call, loss, accuracy)
Progress = Callable[[float, int, float, float], None]


def run(
    actions: Iterable[Action],
    variables: Variables,
    images: jax.Array,
    setup: Setup,
    *,
    stage: str,
    seed: int,
    programs: Programs,
    progress: Progress = lambda *_: None,
    resume: Point | None = None,
    checkpoint: Callable[[Point], None] | None = None,
) -> Result:
    """Carries out what a method yields.

    Args:
      actions: what to do, in order; a generator where it asks (`Ask`).
      variables: where to start; left as they are.
      images: training images uint8 `[N, H, W, C]`, on the mesh.
      setup: what is the same for every step.
      stage: names the randomness; with `seed` it fixes every draw.
      seed: the run's seed.
      programs: compiled programs, kept from run to run.
      progress: called as the work goes on.
      resume: where an earlier, interrupted run stood.
      checkpoint: called after every pass.

    Raises:
      DivergedError: the loss or the gradient became NaN or infinite.
    """
    mesh = programs.mesh
    state = start_state(variables, setup, mesh)
    point = resume or Point(0, [], [], 0.0, [], {})
    history, answers, saved = list(point.history), list(point.answers), dict(point.saved)
    if resume is not None:
        structure = jax.tree.structure(state)
        state = devices.replicate(jax.tree.unflatten(structure, resume.state), mesh)
    seconds, old = point.seconds, iter(point.answers)
    clock, compiled = time.perf_counter(), programs.seconds
    compile_start = programs.seconds
    for number, (action, answer) in enumerate(_conversation(actions)):
        if number < point.done:  # already in the state that we resumed from, and in its seconds
            if isinstance(action, Ask):
                answer(next(old))
            clock, compiled = time.perf_counter(), programs.seconds
            continue
        if isinstance(action, Ask):
            answers.append(float(action.question(state.variables)))
            answer(answers[-1])
        elif isinstance(action, Save):
            saved[action.name] = jax.tree.map(np.array, jax.device_get(state.variables))
        elif isinstance(action, Pass):
            state, metrics = _run_pass(
                action, len(history), state, images, setup, stage, seed, programs, progress
            )
            history.append(metrics)
        else:
            new = saved[action.name] if isinstance(action, Restore) else action.variables
            state = start_state(new, setup, mesh)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - clock - (programs.seconds - compiled)
        if checkpoint is not None and isinstance(action, Pass):
            leaves = jax.tree.leaves(state)
            checkpoint(
                Point(number + 1, leaves, list(history), seconds, list(answers), dict(saved))
            )
        clock, compiled = time.perf_counter(), programs.seconds
    seconds += time.perf_counter() - clock - (programs.seconds - compiled)
    return Result(state.variables, seconds, programs.seconds - compile_start, history)


def _conversation(actions: Iterable[Action]) -> Iterator[tuple[Action, Callable[[float], None]]]:
    """The actions, each with a function that gives a generator the answer to it."""
    replies: list[float | None] = []
    iterator = iter(actions)
    while True:
        reply = replies.pop() if replies else None
        try:
            action = next(iterator) if reply is None else iterator.send(reply)  # type: ignore[attr-defined]
        except StopIteration:
            return
        yield action, replies.append


def _run_pass(
    action: Pass,
    epoch_number: int,
    state: TrainState,
    images: jax.Array,
    setup: Setup,
    stage: str,
    seed: int,
    programs: Programs,
    progress: Progress,
) -> tuple[TrainState, dict[str, float]]:
    """One epoch over the pass's examples, in an order drawn for this pass."""
    mesh = programs.mesh
    indices = stage_rng(stage, seed, epoch_number).permutation(action.indices)
    order, weight = batches(indices, setup.batch_size)
    steps, size = order.shape
    spare = ((0, max(0, -(-len(images) // size) - steps)), (0, 0))
    epoch = Epoch(
        devices.shard_batches(np.pad(order, spare), mesh),
        devices.shard_batches(np.pad(weight, spare), mesh),
        *devices.replicate(
            (
                np.int32(steps),
                action.labels.astype(np.int32),
                np.float32(action.lr),
                stage_key(stage, seed, epoch_number),
                dict(action.examples),
                action.context,
            ),
            mesh,
        ),
    )
    state = dataclasses.replace(state, position=devices.replicate(np.int32(0), mesh))
    args = (state, images, epoch, action.mask)
    reported = 0
    if on_cpu(mesh):
        step = programs(
            make_step(setup, action.objective, action.mask_gradient), *args, donate=(0,)
        )
        rows: list[dict[str, Any]] = []
        for position in range(steps):
            with jax.transfer_guard("disallow"):  # all that a step reads is on the device already
                state, metrics = step(state, images, epoch, action.mask)
            rows.append(metrics)
            if position:  # one step behind: the bar tells the truth and the device never waits
                row = rows[position - 1] = jax.device_get(rows[position - 1])
                progress(
                    (epoch_number + position / steps) / action.of,
                    int(row["count"]),
                    float(row["loss"] / row["count"]),
                    float(row["correct"] / row["count"]),
                )
                reported += int(row["count"])
        values = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))
    else:
        whole_epoch = programs(
            make_whole_epoch(setup, action.objective, action.mask_gradient), *args, donate=(0,)
        )
        state, metrics = whole_epoch(*args)
        values = jax.tree.map(lambda rows: rows[:steps], jax.device_get(metrics))
    if not values["finite"].all():
        step_number = int(np.argmin(values["finite"]))
        raise DivergedError(
            f"the loss became {values['loss'][step_number]} and its gradient "
            f"{values['gradient_norm'][step_number]} in epoch {epoch_number + 1}, step "
            f"{step_number + 1} of {steps} (learning rate {action.lr:g}); a lower learning "
            "rate is the usual mend",
            jax.device_get(state.variables),
        )
    count = values["count"].sum()
    summary = {
        "loss": float(values["loss"].sum() / count),
        "accuracy": float(values["correct"].sum() / count),
    }
    progress(
        (epoch_number + 1) / action.of,
        len(indices) - reported,
        summary["loss"],
        summary["accuracy"],
    )
    return state, summary


@functools.cache
def make_forward(
    model: Model, mean: tuple[float, ...], std: tuple[float, ...], scan: bool
) -> Callable:
    """Returns `forward(variables, images, order, position) -> logits`; `scan`: of every batch."""

    def forward(variables: Variables, images: jax.Array, order: jax.Array, position: jax.Array):
        def one(index):
            return model.apply(variables, normalise(images[index], mean, std), False)[0]

        return jax.lax.map(one, order) if scan else one(order[position])

    return forward


def predict(
    variables: Variables,
    images: np.ndarray | jax.Array,
    setup: Setup,
    programs: Programs,
    batch_size: int,
) -> np.ndarray:
    """Returns logits float32 `[N, num_classes]` of images uint8 `[N, H, W, C]`, not in training."""
    mesh = programs.mesh
    count = len(images)
    # No larger than need be, and one that the devices can split.
    batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
    order, _ = batches(np.arange(count), batch_size)
    variables, images, positions = devices.replicate(
        (variables, images, list(np.arange(len(order), dtype=np.int32))), mesh
    )
    rows = devices.shard_batches(order, mesh)
    scan = not on_cpu(mesh)
    forward = programs(
        make_forward(setup.model, setup.mean, setup.std, scan),
        *(variables, images, rows, positions[0]),
    )
    if scan:
        logits = np.asarray(forward(variables, images, rows, positions[0]))
    else:
        logits = np.stack([np.asarray(forward(variables, images, rows, p)) for p in positions])
    return logits.reshape(-1, logits.shape[-1])[:count].astype(np.float32)
