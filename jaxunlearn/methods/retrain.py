"""Retrain: the original's recipe on the retain set; what unlearning is measured against."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from jaxunlearn.methods.task import Task
from jaxunlearn.training import Pass, Replace, cross_entropy, fresh

DEFAULTS = {
    "epochs": 182,
    "lr": 0.1,
    "schedule": "milestones",  # or constant, cosine; the rate changes between epochs
    "milestones": (0.5, 0.75),  # shares of the epochs after which the rate is divided by 10
}

# The factor on the learning rate in an epoch.
SCHEDULES: dict[str, Callable[[Any, int], float]] = {
    "constant": lambda config, epoch: 1.0,
    "cosine": lambda config, epoch: 0.5 * (1 + math.cos(math.pi * epoch / config.epochs)),
    # Rounded down: of 182 epochs at 91 and 136, as in the papers.
    "milestones": lambda config, epoch: (
        0.1 ** sum(epoch >= int(at * config.epochs) for at in config.milestones)
    ),
}
RULES = {
    "schedule": (lambda value: value in SCHEDULES, ", ".join(SCHEDULES)),
    "milestones": (lambda value: all(0 <= at <= 1 for at in value), "shares of the epochs, 0 to 1"),
}


def passes(task: Task, config: Any) -> Iterator[Pass | Replace]:
    """Cross-entropy on the retain set from fresh parameters, by the schedule."""
    if config.epochs:
        yield Replace(fresh(task.setup, task.images, task.seed, task.programs))
    for epoch in range(config.epochs):
        factor = SCHEDULES[config.schedule](config, epoch)
        yield Pass(
            cross_entropy, task.split.retain, task.labels, config.lr * factor, of=config.epochs
        )
