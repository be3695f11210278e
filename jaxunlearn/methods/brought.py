"""A model that was made elsewhere: its variables are read from a file, and nothing is trained.

As the original (`config.original.path`) it is what is unlearned from; as a method it is judged
beside the others, whoever unlearned it.
"""

from collections.abc import Iterator
from typing import Any

from jaxunlearn.methods.task import Task
from jaxunlearn.models import brought
from jaxunlearn.rules import Rule, Unread
from jaxunlearn.training.passes import Replace

DEFAULTS = {"path": ""}
FILES = ("path",)
RULES = {"path": Rule(bool, "a path of a model's variables")}
READS = dict.fromkeys(
    ("optimizer", "momentum", "weight_decay", "batch_size", "mask.ratio"),
    Unread(lambda settings: False, "nothing is trained: choose another method"),
)


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement, by the variables of the file."""
    yield Replace(brought.read(config.path, "path", task.original))
