"""Fine-tuning (FT): go on training on the retain set and let the rest fade.

Golatkar et al. 2020, https://arxiv.org/abs/1911.04933; Warnecke et al. 2023,
https://arxiv.org/abs/2108.11577.
"""

from collections.abc import Iterator
from typing import Any

from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Pass, cross_entropy

NEEDS = ("retain", "labels")
COST = "E · (1 − f)"
DEFAULTS = {"epochs": 10, "lr": 0.01}


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Cross-entropy on the retain set; the forget set is never read."""
    for _ in range(config.epochs):
        yield Pass(cross_entropy, task.retain, task.labels, config.lr, config.epochs)
