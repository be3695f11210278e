"""EU-k: retrain the last k layers on the retain set from fresh values, all others frozen.

Exact unlearning of the last k layers, Goel et al. 2022, https://arxiv.org/abs/2201.06640 and
https://github.com/shash42/Evaluating-Inexact-Unlearning: as CF-k (see `jaxunlearn.methods.cf_k`),
from the values that a fresh model has. There the norms of these layers stay; here they start anew
with them, so that k = all layers is retraining. The paper trains them as it trained the original,
from a rate of 0.1 for 62 epochs: set the original's rate and epochs to do so. The defaults are of
the code published with SCRUB (without momentum there), which leaves the head as it was; fresh
layers may want a higher rate. The fresh values are those
that an original trained here under the same seed started from; the release draws others.

Only the last k layers have not seen the forget set: the features below them have. They are fitted
to features by the batch's statistics, and then see those by the original's, as in CF-k.
"""

from collections.abc import Iterator
from typing import Any

from jaxunlearn import rules
from jaxunlearn.methods import cf_k, retrain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Action, Pass, Replace, cross_entropy

NEEDS = ("retain", "labels")
COST = cf_k.COST
FIRST = True
DEFAULTS = {
    "epochs": 10,
    "lr": 0.01,
    "schedule": "milestones",
    "milestones": (0.5, 0.75),
    "k": 3,
}
TUNE = cf_k.TUNE
RULES = {"k": rules.whole(0), **{name: retrain.RULES[name] for name in ("schedule", "milestones")}}
READS = retrain.READS


def passes(task: Task, config: Any) -> Iterator[Action]:
    """Cross-entropy on the retain set for the last k layers, from fresh values."""
    if not config.epochs or not config.k:
        return
    thawed = cf_k.Thawed.of(task, config.k)
    yield Replace(thawed.choose(task.fresh(), task.original))
    for epoch in range(config.epochs):
        yield Pass(
            cross_entropy,
            task.retain,
            task.labels,
            config.lr * retrain.SCHEDULES[config.schedule](config, epoch),
            config.epochs,
            after=thawed.links,
        )
    if not thawed.whole:
        yield Replace(lambda variables: thawed.choose(variables, task.original))
