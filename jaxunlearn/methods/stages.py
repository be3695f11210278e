"""Methods in stages: one after the other, each from where the one before stopped.

`{"method": ("ssd", "finetune"), "finetune": {"epochs": 2}}` is an entry of a config; its settings
are a section for each stage, and the optimizer and the mask that they share. The section of a
method of one's own is called so that a command line can name it, `mymethods_passes` of
"mymethods:passes".
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.methods import saliency
from jaxunlearn.methods.method import NEEDS, REQUESTS, Method
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Unread
from jaxunlearn.training.passes import FRESH_OPTIMIZER, Action, Conversation, Pass, Replace
from jaxunlearn.training.step import OPTIMIZER, OPTIMIZER_RULES

SHARED = (*OPTIMIZER, "mask")


def in_stages(names: tuple[str, ...], methods: Sequence[Method]) -> Method:
    """The method that runs several in turn.

    They share the optimizer, which starts anew with each, and the mask; the defaults of both are
    those of the last. To each of them the original is that of the run: SCRUB's teacher, say. What
    is claimed is what the last claims. They are tuned if each of them is, without their epochs.

    Args:
      names: what they are called.
      methods: they.

    Raises:
      UserError: there are fewer than two, one of them twice, one that can only be the first is
        not, or one reads a file.
    """
    sections = [re.sub(r"\W", "_", name) for name in names]
    if len(names) < 2 or len(set(sections)) < len(names):
        raise UserError(f"method must be one name, or two or more different ones, got {names}")
    stages = dict(zip(sections, methods, strict=True))
    for number, (name, stage) in enumerate(stages.items()):
        if stage.files:
            raise UserError(f"method={names}: {name} unlearns nothing; leave it out")
        if number and stage.first is True:
            raise UserError(_first(names, name))

    def passes(task: Task, settings: Any) -> Generator[Action, Any, Any]:
        done, claims = 0, None
        for number, (name, stage) in enumerate(stages.items()):
            if number:
                yield FRESH_OPTIMIZER
            made, actions = 0, Conversation(stage.passes(task, _of_stage(settings, name)))
            for action in actions:
                if isinstance(action, Pass):
                    made += 1
                    total = done + action.total_passes
                    action = dataclasses.replace(action, total_passes=total)
                elif number and isinstance(action, Replace) and not callable(action.variables):
                    raise UserError(_first(names, name))
                actions.reply = yield action
            done, claims = done + made, actions.claims
        return claims

    def check(settings: Any, dataset: Dataset, policies: Collection[str]) -> None:
        for number, (name, stage) in enumerate(stages.items()):
            own = _of_stage(settings, name)
            if number and callable(stage.first) and stage.first(own):
                raise UserError(_first(names, name))
            stage.check(own, dataset, policies)

    shared = {name: value for name, value in methods[-1].defaults.items() if name in SHARED}
    settings_of = {
        name: {field: value for field, value in stage.defaults.items() if field not in SHARED}
        for name, stage in stages.items()
    }
    rules = {
        f"{name}.{path}": rule
        for name, stage in stages.items()
        for path, rule in {**OPTIMIZER_RULES, **stage.rules}.items()
        if path.partition(".")[0] not in SHARED
    }
    reads = {
        f"{name}.{path}": Unread(_within(name, unread.reads), unread.advice)
        for name, stage in stages.items()
        for path, unread in stage.reads.items()
        if path.partition(".")[0] not in SHARED
    }
    return Method(
        passes,
        {**shared, **settings_of},
        {**rules, **saliency.RULES},
        {**reads, **saliency.READS},
        check,
        (__name__, *(module for stage in methods for module in stage.modules)),
        needs=tuple(need for need in NEEDS if any(need in stage.needs for stage in methods)),
        requests=tuple(
            kind for kind in REQUESTS if all(kind in stage.requests for stage in methods)
        ),
        cost=" + ".join(stage.cost for stage in methods),
        tune={
            path if path.partition(".")[0] in SHARED else f"{name}.{path}": values
            for name, stage in stages.items()
            for path, values in stage.tune.items()
            if all(each.tune for each in methods)
        },
    )


def _within(name: str, reads: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A stage's condition on its settings as one on those of the whole."""
    return lambda settings: reads(_of_stage(settings, name))


def _first(names: tuple[str, ...], name: str) -> str:
    """The message for a stage that must be the first."""
    return (
        f"method={names}: {name} starts from the original or from other values, and would drop "
        f"what {names[0]} did; put it first"
    )


def _of_stage(settings: Any, name: str) -> ConfigDict:
    """A stage's settings, with those that all share."""
    return ConfigDict({**{field: settings[field] for field in SHARED}, **settings[name]})
