"""Unlearning methods: one file each, and their table.

A method is a generator: `passes(task, config)` yields `Pass` ("run this objective over these
  examples for one epoch") and `Replace` ("replace the variables by these"), and the one loop in
  `jaxunlearn.training` carries them out. So every method has progress bars, masks, sharding,
  checkpoints and the check for NaN without a line of its own. To add one: write `methods/NAME.py`
  with `DEFAULTS`, `passes` and, where a setting can be wrong, `RULES`; and add it to `METHODS`.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxunlearn.methods import finetune, random_label, retrain, salun, salun_cra
from jaxunlearn.methods.task import Task
from jaxunlearn.training import Pass, Replace

# Whether a setting's value fits, and in words what is allowed.
Rule = tuple[Callable[[Any], bool], str]


class Method(NamedTuple):
    """A method's passes, its settings' defaults, and the rules they must keep, by dotted name."""

    passes: Callable[[Task, Any], Iterator[Pass | Replace]]
    defaults: dict[str, Any]
    rules: Mapping[str, Rule] = MappingProxyType({})


METHODS: dict[str, Method] = {
    "finetune": Method(finetune.passes, finetune.DEFAULTS),
    "random_label": Method(random_label.passes, random_label.DEFAULTS, random_label.RULES),
    "retrain": Method(retrain.passes, retrain.DEFAULTS, retrain.RULES),
    "salun": Method(salun.passes, salun.DEFAULTS, salun.RULES),
    "salun_cra": Method(salun_cra.passes, salun_cra.DEFAULTS, salun_cra.RULES),
}
