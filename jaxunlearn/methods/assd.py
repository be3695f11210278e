"""Adaptive SSD (ASSD): SSD whose threshold follows from the size of the request.

Schoepf et al. 2024, https://arxiv.org/abs/2402.10098, as in
https://github.com/if-loops/adaptive-selective-synaptic-dampening. α is the percentile
q = 100 − ln(1 + 100·n_f/n) of I_f/I_D over all parameters, so that ln(1 + 100·n_f/n) percent of
them are dampened: 0.7% where 1% of the training set is forgotten, 2.4% at 10%. Published for
networks of dense layers on tables only. Importances as in `ssd`, "batch" being the published ones.
Weights that tie with the percentile are dampened too: those that only the forget set uses all have
the largest ratio there is, and the published comparison, which is strict, can leave out every one.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxunlearn.methods import ssd
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Replace

NEEDS = ssd.NEEDS
COST = ssd.COST
DEFAULTS = {name: value for name, value in ssd.DEFAULTS.items() if name != "alpha"}
TUNE = {"dampening": (0.1, 0.3, 1.0)}
READS = ssd.READS
RULES = {name: rule for name, rule in ssd.RULES.items() if name != "alpha"}


def threshold(forget: Any, whole: Any, share: float) -> float:
    """SSD's α of importances to the forget set and to all, where a share of all is forgotten."""
    pairs = zip(jax.tree.leaves(forget), jax.tree.leaves(whole), strict=True)
    i_f, i_d = np.concatenate([np.stack([np.ravel(f), np.ravel(d)], 1) for f, d in pairs]).T
    used = i_d > 0
    if not used.any():
        return 1.0  # nothing passes, whatever it is
    # q = 100 − ln(1 + 100·n_f/n), in percent; a hair below, for the ties
    q = 100 - math.log1p(100 * share)
    return float(np.percentile(i_f[used] / i_d[used], q)) * (1 - 1e-6)


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's parameters."""
    forget, whole = ssd.importances(task, config.importance)
    share = len(task.forget) / (len(task.forget) + len(task.retain))
    alpha = threshold(forget, whole, share)
    params = ssd.dampen(task.original["params"], forget, whole, alpha, config.dampening)
    yield Replace({**task.original, "params": params})
