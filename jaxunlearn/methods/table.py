"""The table of methods, and how an entry of a config becomes actions."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.methods import (
    amnesiac,
    amun,
    bad_teacher,
    boundary_expand,
    boundary_shrink,
    brought,
    cf_k,
    delete,
    eu_k,
    finetune,
    gradient_ascent,
    l1_sparse,
    lotus,
    mu_mis,
    munba,
    neggrad_plus,
    random_label,
    retrain,
    saliency,
    salun,
    salun_cra,
    salun_soft,
    scrub,
    sfron,
    ssd,
    unsir,
)
from jaxunlearn.methods.task import Task
from jaxunlearn.names import is_path, resolve
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
    )


METHODS: dict[str, Method] = {
    "amnesiac": from_module(amnesiac),
    "amun": from_module(amun),
    "bad_teacher": from_module(bad_teacher),
    "boundary_expand": from_module(boundary_expand),
    "boundary_shrink": from_module(boundary_shrink),
    "cf_k": from_module(cf_k),
    "delete": from_module(delete),
    "eu_k": from_module(eu_k),
    "finetune": from_module(finetune),
    "gradient_ascent": from_module(gradient_ascent),
    "l1_sparse": from_module(l1_sparse),
    "lotus": from_module(lotus),
    "mu_mis": from_module(mu_mis),
    "munba": from_module(munba),
    "neggrad_plus": from_module(neggrad_plus),
    "random_label": from_module(random_label),
    "retrain": from_module(retrain),
    "salun": from_module(salun),
    "salun_cra": from_module(salun_cra),
    "salun_soft": from_module(salun_soft),
    "scrub": from_module(scrub),
    "sfron": from_module(sfron),
    "ssd": from_module(ssd),
    "unsir": from_module(unsir),
}
# What an entry can name besides, which unlearns nothing.
OTHERS = {"brought": from_module(brought)}


def find(name: str) -> Method:
    """The method of a name in `METHODS` or `OTHERS`, or of a path such as "mymethods:passes".

    Raises:
      UserError: there is none.
    """
    found = resolve("method", name, METHODS | OTHERS)
    if not is_path(name):
        return found
    module, _, passes = name.partition(":")
    return from_module(sys.modules[module], passes)


def modules(settings: Any) -> tuple[str, ...]:
    """The modules that make what an entry's settings ask for."""
    masking = (saliency.__name__,) if _is_masked(settings) else ()
    return (*find(settings.method).modules, *masking)


def _is_masked(settings: Any) -> bool:
    return "mask" in settings and settings.mask.ratio < 1


def actions(task: Task, settings: Any) -> Iterator[Action]:
    """The actions of a config's entry: its method, under a mask where it has one."""
    made = find(settings.method).passes(task, settings)
    if not _is_masked(settings):
        return made
    mask = settings.mask
    return saliency.masked(made, task, lambda: saliency.saliency_mask(task, mask), mask.compat)
