"""Epochs of methods that fine-tune: their rates, and what happens once within one of them."""

import math
from collections.abc import Iterator

import numpy as np

from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Restore, Save


def cosine(lr: float, epoch: int, epochs: int, least: float = 0.0) -> float:
    """The learning rate in an epoch, counted from 0, of a cosine from `lr` down to `least`."""
    return least + 0.5 * (lr - least) * (1 + math.cos(math.pi * epoch / epochs))


def one_batch(task: Task, stage: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The retain set as one batch, drawn, and the rest, which may be empty.

    Two passes over them make an epoch, of which a link of the first one's does once what it does.
    """
    order = stage_rng(stage, task.seed, epoch).permutation(task.retain)
    size = task.bench.setup.batch_size
    return order[:size], order[size:]


def fresh_optimizer() -> Iterator[Save | Restore]:
    """The present variables again, with an optimizer that has no state."""
    yield Save("present")
    yield Restore("present")
