"""Unlearning methods: one file each, and their table.

A method is a generator: `passes(task, config)` yields `Pass` ("run this objective over these
examples for one epoch") and `Replace` ("replace the variables by these"), and the one loop in
`jaxunlearn.training` carries them out. So every method has progress bars, masks, sharding,
checkpoints and the check for NaN without a line of its own. To add one: write `methods/NAME.py`
with `DEFAULTS`, `passes` and, where a setting or the data can be wrong, `RULES` and `check`; and
add it to `METHODS`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.methods import finetune, random_label, retrain, salun, salun_cra
from jaxunlearn.methods.task import Task
from jaxunlearn.training import Action

# Whether a setting's value fits, and in words what is allowed.
Rule = tuple[Callable[[Any], bool], str]


class Method(NamedTuple):
    """What a method's file gives.

    Attributes:
      passes: the method itself.
      defaults: its settings.
      rules: what these must keep, by dotted name.
      check: raises `UserError` where the method cannot do with a data set or with the policies of
        an augmentation; called before anything is trained.
    """

    passes: Callable[[Task, Any], Iterator[Action]]
    defaults: dict[str, Any]
    rules: Mapping[str, Rule] = MappingProxyType({})
    check: Callable[[Dataset, Collection[str]], None] = lambda dataset, policies: None


METHODS: dict[str, Method] = {
    "finetune": Method(finetune.passes, finetune.DEFAULTS),
    "random_label": Method(random_label.passes, random_label.DEFAULTS, random_label.RULES),
    "retrain": Method(retrain.passes, retrain.DEFAULTS, retrain.RULES),
    "salun": Method(salun.passes, salun.DEFAULTS, salun.RULES),
    "salun_cra": Method(salun_cra.passes, salun_cra.DEFAULTS, salun_cra.RULES, salun_cra.check),
}
