"""A method as the table has it: what its module defines."""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.methods import saliency
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Rule, Unread
from jaxunlearn.training.passes import Action

# The images of each set, and the true labels of those that it reads.
NEEDS = ("forget", "retain", "val", "labels")
# Examples of classes that go on to exist, or all examples of a class.
REQUESTS = ("random", "class")


class Method(NamedTuple):
    """A method, as its module defines it.

    Attributes:
      passes: the method itself: a generator of actions, whose return value is what it claims.
      defaults: its settings, with those of a mask.
      rules: what these must keep, by dotted name.
      reads: which of the settings count only where others ask for it, by dotted name.
      check: raises `UserError` where the method does not support a data set or the policies of an
        augmentation; called before anything is trained.
      modules: the names of the modules that make it.
      files: settings that are paths of models, whose content counts in place of the path.
      needs: what it reads besides the original's variables: see `NEEDS`.
      requests: what it can forget: see `REQUESTS`.
      cost: how much it computes, in passes over all of train, as retraining's epochs are counted: E
        are its epochs, f the share of train that is to be forgotten.
      first: whether it can only be the first of several stages, since it starts from, or goes back
        to, values of its own or the original's; or with which settings.
      tune: the settings that tuning chooses besides `epochs`, by dotted name, with the values that
        it tries; None: of a rate, half decades around the entry's. Empty: it is not tuned.
    """

    passes: Callable[[Task, Any], Iterator[Action]]
    defaults: dict[str, Any]
    rules: Mapping[str, Rule]
    reads: Mapping[str, Unread]
    check: Callable[[Any, Dataset, Collection[str]], None]
    modules: tuple[str, ...]
    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = NEEDS
    requests: tuple[str, ...] = REQUESTS
    cost: str = ""
    first: bool | Callable[[Any], bool] = False
    tune: Mapping[str, tuple | None] = {}


def _supports(settings: Any, dataset: Dataset, policies: Collection[str]) -> None:
    """For methods that support everything."""


def from_module(module: ModuleType, passes: str = "passes") -> Method:
    """A method from its module's `passes` and what else of a `Method` it defines, in capitals."""
    defaults = getattr(module, "DEFAULTS", {})
    mask = {**saliency.DEFAULTS, **defaults.get("mask", {})}
    return Method(
        getattr(module, passes),
        {**defaults, "mask": mask},
        {**getattr(module, "RULES", {}), **saliency.RULES},
        {**getattr(module, "READS", {}), **saliency.READS},
        getattr(module, "check", _supports),
        (module.__name__,),
        getattr(module, "FILES", ()),
        getattr(module, "NEEDS", NEEDS),
        getattr(module, "REQUESTS", REQUESTS),
        getattr(module, "COST", ""),
        getattr(module, "FIRST", "optimizer" in getattr(module, "READS", {})),
        getattr(module, "TUNE", {"lr": None} if "lr" in defaults else {}),
    )
