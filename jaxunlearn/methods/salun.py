"""SalUn: random relabelling that may change only the weights salient to the forget set.

Fan et al. 2024, https://arxiv.org/abs/2310.12508. The published code masks the gradient before the
optimizer, so that weight decay and momentum still move the frozen weights; here the update is
masked, and a frozen weight stays as it is to the bit. `mask.compat` gives the published behaviour.
"""

from collections.abc import Iterator
from typing import Any

from jaxunlearn import saliency
from jaxunlearn.methods import random_label
from jaxunlearn.methods.task import Task
from jaxunlearn.training import Pass

DEFAULTS = {**random_label.DEFAULTS, "mask": saliency.DEFAULTS}
RULES = {**random_label.RULES, **saliency.RULES}


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """`random_label` under a saliency mask."""
    if config.epochs:
        mask = saliency.saliency_mask(task, config.mask)
        yield from random_label.passes(task, config, mask=mask)
