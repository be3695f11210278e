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

SCHEDULES: dict[str, Callable[[Any, float], float]] = {
    "constant": lambda config, share: 1.0,
    "cosine": lambda config, share: 0.5 * (1 + math.cos(math.pi * share)),
    "milestones": lambda config, share: 0.1 ** sum(share >= at for at in config.milestones),
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
        factor = SCHEDULES[config.schedule](config, epoch / config.epochs)
        yield Pass(
            cross_entropy, task.split.retain, task.labels, config.lr * factor, of=config.epochs
        )
