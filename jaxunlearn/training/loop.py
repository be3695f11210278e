"""The one loop that all training and unlearning uses: it carries out what a method yields."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import devices
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_key, stage_rng
from jaxunlearn.training.passes import (
    Action,
    Ask,
    Conversation,
    Pass,
    Replace,
    Restore,
    Save,
    Variables,
    Watch,
)
from jaxunlearn.training.programs import Stopwatch
from jaxunlearn.training.step import (
    Bench,
    Epoch,
    Kind,
    TrainState,
    batches,
    make_step,
    make_whole_epoch,
    start_state,
)


class Result(NamedTuple):
    """The outcome of a run.

    Attributes:
      variables: the trained variables.
      seconds: the method's own run-time, excluding compilation, checkpoints and watching (RTE).
      compile_seconds: time spent tracing and compiling, excluding what watching took of it.
      history: loss and accuracy (fraction) of every pass.
      claims: what the method claims of its result, such as {"epsilon": 1.0, "delta": 1e-5}.
    """

    variables: Variables
    seconds: float
    compile_seconds: float
    history: list[dict[str, float]]
    claims: dict[str, Any]


class Point(NamedTuple):
    """Where a run stands after a pass: all that it takes to go on from there.

    Attributes:
      done: actions carried out.
      state: the train state's leaves.
      history: as `Result.history`.
      seconds: as `Result.seconds`.
      answers: to questions (`Ask`, `Watch`), in order.
      saved: variables by name (`Save`).
    """

    done: int
    state: list[Any]
    history: list[dict[str, float]]
    seconds: float
    answers: list[Any]
    saved: dict[str, Variables]


class DivergedError(UserError):
    """The loss became NaN or infinite; `variables` are the last good ones."""

    def __init__(self, message: str, variables: Variables):
        super().__init__(message)
        self.variables = variables


# (share of the work done, images since the last call, loss, accuracy)
Progress = Callable[[float, int, float, float], None]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from pass to pass."""

    bench: Bench
    stage: str
    seed: int
    progress: Progress


def run(
    actions: Iterable[Action],
    variables: Variables,
    bench: Bench,
    *,
    stage: str,
    seed: int,
    progress: Progress = lambda *_: None,
    resume: Point | None = None,
    checkpoint: Callable[[Point], None] | None = None,
) -> Result:
    """Carries out what a method yields.

    Args:
      actions: what to do, in order; a generator where it asks (`Ask`) or claims.
      variables: where to start; left as they are.
      bench: what to compute with.
      stage: names the randomness; with `seed` it fixes every draw.
      seed: the run's seed.
      progress: called as the work goes on.
      resume: where an earlier, interrupted run stood.
      checkpoint: called after every pass.

    Raises:
      DivergedError: the loss or the gradient became NaN or infinite.
    """
    the_run, state = _Run(bench, stage, seed, progress), _started(variables, bench)
    point = resume or Point(0, [], [], 0.0, [], {})
    history, answers, saved = list(point.history), list(point.answers), dict(point.saved)
    old, compile_start = iter(point.answers), bench.programs.seconds
    conversation, clock = Conversation(actions), Stopwatch(bench.programs, point.seconds)
    for number, action in enumerate(conversation):
        if number < point.done:  # already in the state that we resume from, and in its seconds
            if isinstance(action, Ask | Watch):
                conversation.reply = next(old)
            if isinstance(action, Replace | Restore):  # of the structure that the state then has
                state = _replaced(action, state, saved, bench)
            if number + 1 == point.done:
                leaves = devices.replicate(point.state, bench.programs.mesh)
                state = jax.tree.unflatten(jax.tree.structure(state), leaves)
                if isinstance(action, Pass):
                    share = len(history) / action.total_passes
                    progress(share, 0, history[-1]["loss"], history[-1]["accuracy"])
            clock.start()
            continue
        if isinstance(action, Pass):
            state, summary = _run_pass(the_run, action, len(history), state)
            history.append(summary)
        elif isinstance(action, Ask):
            conversation.reply = float(action.question(state.variables))
            answers.append(conversation.reply)
        elif isinstance(action, Watch):
            clock.stop()
            compiled = bench.programs.seconds
            conversation.reply = action.question(state.variables)
            answers.append(conversation.reply)
            compile_start += bench.programs.seconds - compiled
            clock.start()
        elif isinstance(action, Save):
            saved[action.name] = jax.tree.map(np.array, jax.device_get(state.variables))
        else:
            state = _replaced(action, state, saved, bench)
        jax.block_until_ready(state)
        seconds = clock.stop()
        if checkpoint is not None and isinstance(action, Pass):
            kept = (list(history), seconds, list(answers), dict(saved))
            checkpoint(Point(number + 1, jax.tree.leaves(state), *kept))
        clock.start()
    compiling = bench.programs.seconds - compile_start
    return Result(state.variables, clock.stop(), compiling, history, conversation.claims)


def _replaced(
    action: Replace | Restore, state: TrainState, saved: dict[str, Variables], bench: Bench
) -> TrainState:
    """The state after a replacement."""
    if isinstance(action, Restore):
        return _started(saved[action.name], bench)
    new = action.variables
    return _started(new(jax.device_get(state.variables)) if callable(new) else new, bench)


def _started(variables: Variables, bench: Bench) -> TrainState:
    return start_state(variables, bench.setup, bench.programs.mesh)


def make_epoch(bench: Bench, action: Pass, *, stage: str, seed: int, number: int) -> Epoch:
    """What the steps of the pass read, put on the devices; the order is drawn for this pass."""
    setup, images, programs = bench
    mesh, size = programs.mesh, setup.batch_size
    if not all(len(indices) for indices in action.streams):
        raise UserError(
            f"pass {number + 1} is over no example: its method has none to compute on here; choose "
            "another method, or another request"
        )
    rng = stage_rng(stage, seed, number)
    parts = [batches(rng.permutation(indices), size) for indices in action.streams]
    steps = len(parts[0][0])
    turns = np.arange(steps)
    order, weight = (
        np.stack([part[i][turns % len(part[i])] for part in parts], axis=1) for i in (0, 1)
    )
    padding = ((0, max(0, -(-len(images) // size) - steps)), (0, 0), (0, 0))
    return Epoch(
        devices.shard_batches(np.pad(order, padding), mesh),
        devices.shard_batches(np.pad(weight, padding), mesh),
        *devices.replicate(
            (
                np.int32(steps),
                action.labels.astype(np.int32 if action.labels.ndim == 1 else np.float32),
                np.float32(action.lr),
                stage_key(stage, seed, number),
                dict(action.examples),
                action.context,
                None if action.images is None else np.asarray(action.images, np.float32),
                tuple(link.data for link in action.before),
                tuple(link.data for link in action.after),
            ),
            mesh,
        ),
    )


def _run_pass(
    the_run: _Run, action: Pass, number: int, state: TrainState
) -> tuple[TrainState, dict[str, float]]:
    """One epoch over the pass's examples."""
    setup, images, programs = the_run.bench
    epoch = make_epoch(the_run.bench, action, stage=the_run.stage, seed=the_run.seed, number=number)
    state = dataclasses.replace(state, position=devices.replicate(np.int32(0), programs.mesh))
    args = (state, images, epoch)
    reported = 0
    if devices.on_cpu(programs.mesh):
        step = programs(make_step(setup, Kind.of(action)), *args, donate=(0,))
        state, values, reported = _step_by_step(the_run, step, args, action.total_passes, number)
    else:
        whole = programs(make_whole_epoch(setup, Kind.of(action)), *args, donate=(0,))
        state, metrics = whole(*args)
        values = jax.tree.map(lambda rows: rows[: int(epoch.steps)], jax.device_get(metrics))
    _check_finite(values, number, action.lr, state)
    count = values["count"].sum()
    loss, accuracy = (float(values[name].sum() / count) for name in ("loss", "correct"))
    the_run.progress((number + 1) / action.total_passes, int(count) - reported, loss, accuracy)
    return state, {"loss": loss, "accuracy": accuracy}


def _step_by_step(
    the_run: _Run, step: Callable, args: tuple, total_passes: int, number: int
) -> tuple[TrainState, dict[str, np.ndarray], int]:
    """Calls the step for each batch: the last state, metrics by step, and images reported."""
    state, images, epoch = args
    steps, reported = int(epoch.steps), 0
    rows: list[dict[str, Any]] = []
    for position in range(steps):
        with jax.transfer_guard("disallow"):  # all that a step reads is on the device already
            state, metrics = step(state, images, epoch)
        rows.append(metrics)
        if position:  # one step behind: the bar tells the truth and the device never waits
            row = rows[position - 1] = jax.device_get(rows[position - 1])
            the_run.progress(
                (number + position / steps) / total_passes,
                int(row["count"]),
                float(row["loss"] / row["count"]),
                float(row["correct"] / row["count"]),
            )
            reported += int(row["count"])
    values = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))
    return state, values, reported


def _check_finite(values: dict[str, np.ndarray], number: int, lr: float, state: TrainState) -> None:
    """Raises where a step of the pass was not finite."""
    if values["finite"].all():
        return
    step = int(np.argmin(values["finite"]))
    loss = float(values["loss"][step] / values["count"][step])  # which is summed over the batch
    norm = float(values["gradient_norm"][step])
    problem, advice = f"the loss became {loss} and its gradient {norm}", "try a lower learning rate"
    if np.isfinite([loss, norm]).all():
        problem = "an update or a batch-norm moment became infinite"
    elif number == step == 0:  # no rate has had a say yet
        advice = "before any update: the initial values, the images or the objective give it"
    raise DivergedError(
        f"{problem} in epoch {number + 1}, step {step + 1} of "
        f"{len(values['finite'])} (learning rate {lr:g}); {advice}",
        jax.device_get(state.variables),
    )
