"""CF-k: fine-tune the last k layers on the retain set, all others frozen.

Catastrophic forgetting of the last k layers, Goel et al. 2022, https://arxiv.org/abs/2201.06640 and
https://github.com/shash42/Evaluating-Inexact-Unlearning. Layers are counted from the head, in the
order of the forward computation; the norms between and behind them change with them. The running
statistics of the frozen layers end as they were, which in the code published with SCRUB drift; that
code also thaws `layer4` alone, so that its head stays frozen; its rate and epochs, without momentum
there, are the defaults. The paper's k is 10 or 50 of a ResNet-110, for 30 epochs.

Stopped by `config.watch` on its way, it keeps the statistics that it then has.

Features keep the forget set: a new head on those of the frozen layers finds it again. In training
the frozen layers' norms use the batch's statistics, and afterwards the original's: the last layers
are fitted to other features than those that they then see.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import rules
from jaxunlearn.methods.parts import last, layers_of
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import keep, only_marked
from jaxunlearn.training.passes import Action, Link, Pass, Replace, Variables, cross_entropy

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
FIRST = True
DEFAULTS = {"epochs": 10, "lr": 0.01, "k": 3}
TUNE = {"lr": None, "k": (1, 2, 3, 5)}
RULES = {"k": rules.whole(0)}


class Thawed(NamedTuple):
    """The last k layers of a task's model.

    Attributes:
      mask: booleans shaped like the parameters, True for theirs.
      state: the paths of what they use of other collections, such as batch statistics.
      whole: whether they are all layers.
    """

    mask: Any
    state: frozenset[str]
    whole: bool

    @classmethod
    def of(cls, task: Task, k: int) -> "Thawed":
        """Counted from the head."""
        layers = layers_of(task)
        state = frozenset(path for layer in layers[-k:] for path in layer.state)
        mask = jax.device_put(last(task.original["params"], layers, k))
        return cls(mask, state, k >= len(layers))

    @property
    def links(self) -> tuple[Link, ...]:
        """What keeps the other layers' parameters as they are."""
        return () if self.whole else (keep(self.mask),)

    def choose(self, theirs: Variables, others: Variables) -> Variables:
        """Variables, these layers' from one and the others' from another."""
        params = only_marked(np.where, self.mask, theirs["params"], others["params"])

        def one(path: Any, new: Any, old: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return new if self.whole or name in self.state else old

        return {**jax.tree.map_with_path(one, theirs, others), "params": params}


def passes(task: Task, config: Any) -> Iterator[Action]:
    """Cross-entropy on the retain set for the last k layers."""
    if not config.epochs or not config.k:
        return
    thawed = Thawed.of(task, config.k)
    for _ in range(config.epochs):
        yield Pass(
            cross_entropy,
            task.retain,
            task.labels,
            config.lr,
            config.epochs,
            after=thawed.links,
        )
    if not thawed.whole:
        yield Replace(lambda variables: thawed.choose(variables, task.original))
