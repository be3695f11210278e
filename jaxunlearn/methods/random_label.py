"""Random relabelling (RL): the forget set towards random labels, the retain set towards its own.

Golatkar et al. 2020, https://arxiv.org/abs/1911.04933; as in the code of Fan et al. 2024,
https://arxiv.org/abs/2310.12508, which draws the labels again in every epoch. Labels drawn once
are learned; labels drawn every epoch leave the model unsure.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import cra
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Pass

NEEDS = ("forget", "retain", "labels")
COST = "E"
DEFAULTS = {
    "epochs": 10,
    "lr": 0.013,
    "relabel": {
        # False: over all classes, so that the true one can come up, as in the published code.
        "exclude_true": False,
        "every_epoch": True,  # as in the published code; False: drawn once for the request
        # One shuffled stream, as published for CIFAR-100 and MedMNIST; or "forget_first" and then
        # the retain set, as published for CIFAR-10.
        "order": "mixed",
    },
    "cra": cra.DEFAULTS,
}
ORDERS = ("mixed", "forget_first")
RULES = {
    "relabel.order": rules.one_of(ORDERS),
    **cra.RULES,
}
READS = cra.READS


check = cra.check


def relabel(task: Task, exclude_true: bool, draw: int = 0) -> np.ndarray:
    """Returns labels int32 `[N]`: random ones on the forget set, the true ones elsewhere.

    They are drawn among the classes of forget and retain, not those that an earlier request took.
    """
    rng = stage_rng("relabel", task.seed, draw)
    labels, forget = task.labels.copy(), task.forget
    classes = np.unique(labels[np.concatenate([forget, task.retain])])
    if len(classes) == 1:  # there is no other one left to draw
        classes = np.arange(task.num_classes)
    places, count = np.searchsorted(classes, labels[forget]), len(classes)
    if exclude_true:
        # A shift of 1 … C − 1 reaches each of the other classes alike.
        places = (places + rng.integers(1, count, len(forget))) % count
    else:
        places = rng.integers(0, count, len(forget))
    labels[forget] = classes[places]
    return labels


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Cross-entropy on the retain and the relabelled forget set, or CRA's objective on both."""
    settings, objective = config.relabel, cra.objective(task, config.cra)
    both = np.concatenate([task.forget, task.retain])
    sets = [both] if settings.order == "mixed" else [task.forget, task.retain]
    total = config.epochs * len(sets)
    for epoch in range(config.epochs):
        labels = relabel(task, settings.exclude_true, epoch if settings.every_epoch else 0)
        for indices in sets:
            yield Pass(
                indices=indices, labels=labels, lr=config.lr, total_passes=total, **objective
            )
