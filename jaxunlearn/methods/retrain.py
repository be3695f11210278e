"""Retrain: the original's recipe on the retain set; what unlearning is measured against.

The published code (Fan et al. 2024, https://github.com/OPTML-Group/Unlearn-Saliency) keeps of an
original the epoch that is best on validation: `keep = "best_val"`, here on images that are not
augmented. With that alone it reads validation, images and labels, besides what the table of methods
has. A fork of it chooses by the accuracy on test, which this library does not offer.
"""

import math
from collections.abc import Callable, Generator
from typing import Any

from jaxunlearn import rules
from jaxunlearn.errors import UserError
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Unread
from jaxunlearn.training.passes import (
    Action,
    Ask,
    Pass,
    Replace,
    Restore,
    Save,
    cross_entropy,
)

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
FIRST = True
DEFAULTS = {
    "epochs": 182,
    "lr": 0.1,
    "schedule": "milestones",  # or constant, cosine; the rate changes between epochs
    "milestones": (0.5, 0.75),  # shares of the epochs after which the rate is divided by 10
    "keep": "last",  # the last epoch, or "best_val": the first one most accurate on validation
}


def _milestone(at: float, epochs: int) -> int:
    """The first epoch at the lower rate.

    Rounded down, of 182 epochs at 91 and 136, as in the papers; but 0.7 of 180 is 126 though it
    is a little less in floating point, and the first epoch of a short run keeps the rate.
    """
    return int(at * epochs + 1e-9) or min(math.ceil(at), 1)


# The factor on the learning rate in an epoch.
SCHEDULES: dict[str, Callable[[Any, int], float]] = {
    "constant": lambda config, epoch: 1.0,
    "cosine": lambda config, epoch: 0.5 * (1 + math.cos(math.pi * epoch / config.epochs)),
    "milestones": lambda config, epoch: (
        0.1 ** sum(epoch >= _milestone(at, config.epochs) for at in config.milestones)
    ),
}
READS = {
    "milestones": Unread(
        lambda settings: settings.schedule == "milestones", "set schedule='milestones'"
    ),
}
KEPT = ("last", "best_val")
RULES = {
    "keep": rules.one_of(KEPT),
    "schedule": rules.one_of(SCHEDULES),
    "milestones": rules.numbers(lambda at: 0 <= at <= 1, "shares of the epochs, 0 to 1"),
}


def check(settings: Any, dataset: Any, policies: Any) -> None:
    """Raises where a mask would keep what retraining is to be rid of."""
    if settings.mask.ratio < 1:
        raise UserError(
            f"retrain cannot be masked, got mask.ratio={settings.mask.ratio}: what a mask freezes "
            "stays the original's; set mask.ratio=1"
        )


def passes(task: Task, config: Any) -> Generator[Action, float, None]:
    """Cross-entropy on the retain set from fresh parameters, by the schedule."""
    if not config.epochs:
        return
    yield Replace(task.fresh())
    best = -1.0
    for epoch in range(config.epochs):
        factor = SCHEDULES[config.schedule](config, epoch)
        yield Pass(cross_entropy, task.retain, task.labels, config.lr * factor, config.epochs)
        if config.keep == "best_val":
            accuracy = yield Ask(task.val_accuracy)
            if accuracy > best:
                best = accuracy
                yield Save("best")
    if config.keep == "best_val":
        yield Restore("best")
