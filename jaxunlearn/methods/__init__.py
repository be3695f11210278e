"""Unlearning methods: one file each, and their table.

A method is a generator: `passes(task, config)` yields `Pass` ("run this objective over these
examples for one epoch"), `Replace` ("replace the variables by these") and the like, and the one
loop in `jaxunlearn.training` carries them out. So every method has progress bars, masks, sharding,
checkpoints and the check for NaN without a line of its own.
"""

import sys
from types import ModuleType
from typing import Any

from jaxunlearn.methods.table import METHODS, Method, actions, find
from jaxunlearn.methods.task import Task

__all__ = ["METHODS", "Method", "Task", "actions", "find"]


class _Callable(ModuleType):
    def __call__(self, **entries: Any) -> Any:
        from jaxunlearn import config

        return config.methods(**entries)


# `from jaxunlearn import methods` is this package wherever it was imported before, so it answers to
# a call as `jaxunlearn.config.methods` does.
sys.modules[__name__].__class__ = _Callable
