"""The words that methods speak in: passes over examples, and what may stand between them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.models.model import Model

Variables = dict[str, Any]  # {"params": pytree, and any other collection, such as "batch_stats"}


def _absent(*args: Any) -> jax.Array:
    raise TypeError("this batch was made without a model")


class Batch(NamedTuple):
    """A batch as an objective, or a sweep's function, sees it.

    Attributes:
      images: normalised, float32 `[B, H, W, C]`.
      targets: what each example is trained towards, float32 `[B, num_classes]`, rows sum to 1.
      weight: 1 for an example, 0 for padding, float32 `[B]`.
      examples: the pass's own per-example arrays, `[B, ...]` each.
      part: which of the pass's streams each row belongs to, int `[B]`.
      key: a random key of this batch, for objectives that draw.
      logits_of: (variables, images=batch.images) -> logits float32 `[B, num_classes]` in evaluation
        mode, of a teacher on the very same augmented images, say.
      forward: (params, images) -> logits of the model being trained, in the mode of the pass; batch
        statistics that it would update are left as they are.
    """

    images: jax.Array
    targets: jax.Array
    weight: jax.Array
    examples: Mapping[str, jax.Array]
    part: np.ndarray | None = None
    key: Any = None
    logits_of: Callable[..., jax.Array] = _absent
    forward: Callable[[Any, jax.Array], jax.Array] = _absent

    def mean(self, values: jax.Array, part: int | None = None) -> jax.Array:
        """Mean of per-example values `[B]` over the examples that are not padding.

        Args:
          values: one for each row.
          part: the stream to average over; None: all of them.
        """
        weight = self.weight if part is None else jnp.where(self.part == part, self.weight, 0)
        return jnp.sum(values * weight) / jnp.sum(weight)


# (params, logits float32 [B, num_classes], batch, the pass's context) -> scalar loss.
# A module-level function: its identity is what the compiled step is kept under.
Objective = Callable[[Any, jax.Array, Batch, Any], jax.Array]


def cross_entropy(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """The mean cross-entropy to the batch's targets."""
    del params, context
    return batch.mean(optax.softmax_cross_entropy(logits, batch.targets))


class Link(NamedTuple):
    """One link in the chain from gradient to new parameters; see `jaxunlearn.training.links`.

    Attributes:
      apply: (value, params, data, key) -> value. Before the optimizer the value is the gradient;
        after the update it is the new parameters, and `params` are those before the step. A
        module-level function, as an objective.
      data: a pytree of arrays that it needs.
    """

    apply: Callable[[Any, Any, Any, jax.Array], Any]
    data: Any = ()


@dataclasses.dataclass(frozen=True)
class Pass:
    """Run `objective` over the examples `indices` for one epoch.

    Attributes:
      objective: see `Objective`.
      indices: which examples, int `[M]`, shuffled for each pass; or a tuple of several such
        streams, from each of which a step takes a batch. The first stream sets the number of steps,
        the others go round. Streams pass through the model one after the other, so that each has
        its own batch statistics, as in the published code of two-stream methods.
      labels: what each training example is trained towards: labels int32 `[N]`, or soft targets
        float32 `[N, num_classes]`.
      lr: the learning rate of this pass.
      total_passes: how many passes the method makes in all, for the progress bar.
      before: links on the gradient, before the optimizer.
      after: links on the new parameters, after the update.
      train: False: the model stays in evaluation mode, its batch statistics used and left alone.
      plain: True: the update is −lr · what the links before it give; the run's optimizer, with its
        momentum and weight decay, stands aside, and its state is left alone.
      examples: more arrays `[N, ...]` that the objective wants of each example, by name.
      context: any pytree of arrays that the objective wants whole, such as a teacher's variables.
      images: images of the method's own, float32 `[K, H, W, C]` in levels of 0 to 255. They follow
        those of train, so that index N is the first of them (and `labels` and `examples` are
        `[N + K, ...]`), and are not augmented.
      model: the model of this pass, where it is not the run's, for variables of another shape.
    """

    objective: Objective
    indices: np.ndarray | tuple[np.ndarray, ...]
    labels: np.ndarray
    lr: float
    total_passes: int = 1
    before: tuple[Link, ...] = ()
    after: tuple[Link, ...] = ()
    train: bool = True
    plain: bool = False
    examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    context: Any = ()
    images: np.ndarray | None = None
    model: Model | None = None

    @property
    def streams(self) -> tuple[np.ndarray, ...]:
        """The examples of each stream."""
        return self.indices if isinstance(self.indices, tuple) else (self.indices,)


@dataclasses.dataclass(frozen=True)
class Replace:
    """Replace the model's variables; the optimizer's state is reset.

    Attributes:
      variables: by these; or by what this function makes of the present ones, numpy arrays.
    """

    variables: Variables | Callable[[Variables], Variables]


FRESH_OPTIMIZER = Replace(lambda variables: variables)


@dataclasses.dataclass(frozen=True)
class Ask:
    """Ask for a number that the present variables give, such as the accuracy on validation.

    `answer = yield Ask(question)`. A resumed run gives the answers that were given before.
    """

    question: Callable[[Variables], float]


@dataclasses.dataclass(frozen=True)
class Watch:
    """Ask for what those who watch want to know: off the clock, and any JSON but null.

    What a method itself wants to know is an `Ask`, whose time is the method's.
    """

    question: Callable[[Variables], Any]


@dataclasses.dataclass(frozen=True)
class Save:
    """Keep a copy of the present variables under a name, in place of an earlier one."""

    name: str


@dataclasses.dataclass(frozen=True)
class Restore:
    """Replace the model's variables by those saved under a name; the optimizer's state is reset."""

    name: str


Action = Pass | Replace | Ask | Watch | Save | Restore


class Conversation:
    """A method's actions in turn; `reply` is what it hears of the last one, `claims` its return."""

    def __init__(self, actions: Iterable[Action]):
        self._actions = iter(actions)
        self.reply: Any = None
        self.claims: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Action]:
        while True:
            reply, self.reply = self.reply, None
            try:
                if reply is None:
                    action = next(self._actions)
                else:
                    action = self._actions.send(reply)  # type: ignore[attr-defined]
            except StopIteration as stop:
                self.claims = stop.value or {}
                return
            yield action
