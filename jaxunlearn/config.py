"""Every setting of an experiment. A config is a few lines over `default()`.

Each section's fields, with their meaning and their rules, stand as `DEFAULTS` and `RULES` beside
the code that reads them:

  data            jaxunlearn/data/load.py
  forget          jaxunlearn/data/forget.py
  model           jaxunlearn/models/build.py
  augment_params  jaxunlearn/augment/policies.py, the parameters of each policy
  train           jaxunlearn/methods/retrain.py, and jaxunlearn/training/step.py for the optimizer
  methods.NAME    jaxunlearn/methods/NAME.py, and the same for the optimizer
  eval, budget,
  watch, tune     below
"""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, FieldReference

from jaxunlearn import rules
from jaxunlearn.augment.build import Chain, build_chain, chain, defaults
from jaxunlearn.convolution import paths
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.forget import DEFAULTS as FORGET
from jaxunlearn.data.forget import READS as FORGET_READS
from jaxunlearn.data.forget import RULES as FORGET_RULES
from jaxunlearn.data.forget import reads as forget_reads
from jaxunlearn.data.load import DEFAULTS as DATA
from jaxunlearn.data.load import READS as LOAD_READS
from jaxunlearn.data.load import RULES as DATA_RULES
from jaxunlearn.errors import UserError, shown, unknown
from jaxunlearn.methods import retrain
from jaxunlearn.methods.table import find
from jaxunlearn.models.build import DEFAULTS as MODEL
from jaxunlearn.models.build import MODELS
from jaxunlearn.models.build import RULES as MODEL_RULES
from jaxunlearn.names import resolve
from jaxunlearn.rules import Rule, Unread
from jaxunlearn.training.step import OPTIMIZER, OPTIMIZER_RULES

DEFAULTS = {
    "name": "default",  # names the results
    "seeds": (0,),  # one whole experiment each: original, retrained, every method
    # A grid: pairs of a field and its values, (("augment", ("none", "crop_flip")), …); the
    # first value of the first axis is what the others are compared with.
    "axes": (),
    # A sequence: changes of `forget`, ({"groups": (12,)}, {"groups": (40, 41)}), each unlearned
    # from what the one before left; empty: `forget` is the only request.
    "requests": (),
    "store": "",  # folder of trained models; empty: `store` beside the working directory
    "devices": 0,  # how many to split a batch over; 0: all there are
    # Of a CPU: onednn, xla, or auto: oneDNN where it is installed and there is one device.
    "convolution": "auto",
    "retrained": True,  # False: without the gold standard; gaps to it are then absent
    # A path of its variables, where it is at hand; empty: it is trained by `train`.
    "retrained_path": "",
    "checkpoint_every": 10,  # epochs between two points to resume from
}
EVAL = {
    "attack": "threshold",  # MIA: threshold, or svc as in the published code
    # What it learns from: all of retain, weighted, or as published its first examples.
    "members": "all",
    "scenarios": ((1.0, 1.0), (20.0, 1.0)),  # costs (C_FN, C_FP) of the global risk
    "malignant_rule": "argmax",  # of several classes: argmax, or sum of probabilities
    "batch_size": 128,
}
# What a sequence of requests may lose against the original before a method's verdict is "retrain",
# in the units of the tables; 0: no budget. See jaxunlearn/metrics/verdicts.py.
BUDGET = {
    "TA_lost": 1.0,  # percentage points of test accuracy
    "fnr_rise": 2.0,  # percentage points of the malignant test images
    "risk_rise": 10.0,  # % of the original's risk, in any of `eval.scenarios`
    "moved": 0.0,  # % of the norm of the original's parameters
}
# Looks at a method as it goes; see jaxunlearn/watch.py.
WATCH = {
    "every": 0,  # passes between two looks; 0: none
    "images": 500,  # of each of forget, retain and val at most so many, drawn once for a seed
    "stop": False,  # True: a method that loses more accuracy on validation than this is stopped
    "tolerance": 2.0,  # percentage points, against what it started from
}
# Methods are tuned before they are run, see jaxunlearn/tune.py.
TUNE = {
    "trials": 0,  # candidates for each, at its fewest epochs; 0: they run as they are given
    "chosen": "",  # the tuning.json of an earlier run: they run with what it chose
}

RULES: dict[str, Rule] = {
    "name": rules.WORD,
    "seeds": Rule(
        lambda value: len(value) == len(set(value)) > 0 and all(map(rules.SEED.fits, value)),
        "different whole numbers from 0 to below 2**32, at least one",
    ),
    "requests": Rule(
        lambda value: len(value) <= 100 and all(isinstance(one, Mapping) for one in value),
        "up to 100 changes of config.forget, such as ({'groups': (12,)}, {'groups': (40, 41)})",
    ),
    "devices": rules.whole(0),
    "convolution": paths.SETTING,
    "checkpoint_every": rules.whole(1),
}
BUDGET_RULES = dict.fromkeys(BUDGET, rules.at_least(0))
WATCH_RULES = {
    "every": rules.whole(0),
    "images": rules.whole(1),
    "tolerance": rules.between(0, 100),
}
_LOOKS = Unread(lambda settings: settings.every > 0, "set config.watch.every to 1 or more")
WATCH_READS = {
    "images": _LOOKS,
    "stop": _LOOKS,
    "tolerance": Unread(
        lambda settings: settings.every > 0 and settings.stop,
        "set config.watch.every and config.watch.stop=True",
    ),
}
TUNE_RULES = {"trials": rules.whole(0, 1000)}
TRAIN = {**OPTIMIZER, **retrain.DEFAULTS}  # the original's and the retrained's recipe
TRAIN_RULES = {**OPTIMIZER_RULES, **retrain.RULES}


def _eval_rules() -> dict[str, Rule]:
    """The rules of `eval`. In a function: its tables load SciPy, which a config file can spare."""
    from jaxunlearn.metrics import clinical, privacy

    return {
        "attack": rules.one_of(privacy.ATTACKS),
        "members": rules.one_of(privacy.MEMBERS),
        "scenarios": Rule(
            lambda value: (
                all(len(c) == 2 and all(0 < cost <= 1e100 for cost in c) for c in value)
                and len({clinical.scenario_name(*c) for c in value}) == len(value) > 0
            ),
            "pairs (C_FN, C_FP) of numbers above 0 to 1e100, none twice, at least one",
        ),
        "malignant_rule": rules.one_of(clinical.MALIGNANT_RULES),
        "batch_size": rules.whole(1),
    }


def default() -> ConfigDict:
    """Returns the library's defaults: the papers' settings on the embedded synthetic data."""
    config = ConfigDict(
        {
            **DEFAULTS,
            "data": DATA,
            "forget": FORGET,
            "model": MODEL,
            # A scenario's name, or policies: a tuple of names, or names with commas between.
            "augment": FieldReference("none", field_type=object),
            "augment_params": defaults(),  # by policy, such as augment_params.mixup.alpha
            # The original as it is: a path of its variables; empty: it is trained by `train`.
            "original": {"path": ""},
            "train": TRAIN,
            "methods": {},  # see `methods`
            "eval": EVAL,
            "budget": BUDGET,
            "watch": WATCH,
            "tune": TUNE,
        }
    )
    return config.lock()  # a misspelt field in a config file is an error too


def methods(**entries: Mapping[str, Any]) -> ConfigDict:
    """Returns `config.methods`: entries by name, each with all of its settings.

    Args:
      **entries: overrides of the method's defaults, by the name that results show. `method` names
        the method where the entry's own name does not: `methods(salun={}, salun_flip={"method":
        "salun", "relabel": {"exclude_true": True}})`. It is a key of `METHODS`, or MODULE:NAME of
        your own, such as "mymethods:passes".

    Raises:
      UserError: an unknown method or setting.
    """
    filled = {}
    for name, changes in entries.items():
        method = changes.get("method", name)
        settings = {"method": method, **OPTIMIZER, **copy.deepcopy(find(method).defaults)}
        filled[name] = ConfigDict(settings)
        change(filled[name], changes, f"config.methods.{name}")
    return ConfigDict(filled, sort_keys=False)  # results show them in this order


def by_labels(*names: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """Entries of `methods` that compare the ways to draw random labels, for relabelling methods.

    Args:
      *names: the methods; each gets the entries NAME (over all classes again in every epoch, as
        published), NAME_once (over all classes, one draw for the request) and NAME_flip (in every
        epoch, never the true label).
      **settings: shared by all of them.
    """
    relabels = {"": {}, "_once": {"every_epoch": False}, "_flip": {"exclude_true": True}}
    shared = settings.get("relabel", {})
    return {
        name + suffix: {"method": name, **settings, "relabel": {**shared, **relabel}}
        for name in names
        for suffix, relabel in relabels.items()
    }


# Parameters of policies in the published code, set at once for all scenarios.
PUBLISHED = {
    "crop_flip.pixels": 4,  # at any size
    "random_erasing.fill": (0,),  # black, since it erases before normalising
}


def as_published(config: ConfigDict) -> None:
    """Sets the papers' values where the library's defaults differ; see docs/fidelity.md."""
    config.train.keep = "best_val"
    for name, value in PUBLISHED.items():
        policy, param = name.split(".")
        config.augment_params[policy][param] = value
    config.eval.attack = "svc"
    config.eval.members = "first"


def change(settings: ConfigDict, changes: Any, where: str) -> None:
    """Makes changes to a section of a config.

    Args:
      settings: the section.
      changes: values by field, in dicts within dicts as the section has them.
      where: what the user calls the section.

    Raises:
      UserError: there is no such field, or a value is of another type than the field's.
    """
    if not isinstance(changes, Mapping):
        raise UserError(f"{where} must be a dict of settings, got {shown(changes)}")
    for field, value in changes.items():
        if field not in settings:
            raise unknown(f"field of {where}", field, settings)
        if isinstance(settings[field], ConfigDict):
            change(settings[field], value, f"{where}.{field}")
            continue
        try:
            settings[field] = value
        except TypeError as error:
            kind = type(settings[field]).__name__
            raise UserError(
                f"{where}.{field} must be of type {kind}, got {shown(value)}"
            ) from error


def plain(config: ConfigDict) -> ConfigDict:
    """A copy of the config with NumPy's numbers and arrays as Python's, methods in their order."""
    made = copy.deepcopy(config)
    if isinstance(config.get("methods"), ConfigDict):
        entries = copy.deepcopy(dict(config.methods))
        with made.unlocked(), made.ignore_type():
            made.methods = ConfigDict(entries, sort_keys=False)
    _make_plain(made)
    return made


def _make_plain(config: ConfigDict) -> None:
    with config.ignore_type():
        for field, value in config.items():
            if isinstance(value, ConfigDict):
                _make_plain(value)
            else:
                config[field] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):  # of `requests`
        return {field: _plain(each) for field, each in value.items()}
    return value


def check(config: ConfigDict) -> None:
    """Raises `UserError` at the first setting that is missing, of another type or out of range."""
    _check_sections(config, default(), "config")
    rules.check(config, RULES, "config")
    for section, section_rules in (
        ("data", DATA_RULES),
        ("forget", FORGET_RULES),
        ("model", MODEL_RULES),
        ("train", TRAIN_RULES),
        ("eval", _eval_rules()),
        ("budget", BUDGET_RULES),
        ("watch", WATCH_RULES),
        ("tune", TUNE_RULES),
    ):
        rules.check(config[section], section_rules, f"config.{section}")
    for name, settings in config.methods.items():
        check_method(name, settings)
    for field, value in flatten_dict(config.to_dict(), sep=".").items():
        try:
            json.dumps(value, allow_nan=False)  # as results and keys have it
        except (TypeError, ValueError) as error:
            raise UserError(
                f"config.{field} is {shown(value)}; allowed: finite numbers, texts, True and "
                "False, and tuples of these"
            ) from error
    build_chain(augment_chain(config))
    resolve("model", config.model.name, MODELS)  # it is built for the data's classes: see the plan


def check_method(name: str, settings: Any) -> None:
    """Raises unless an entry of `methods` is one, under a name that can be used."""
    where = f"config.methods.{name}"
    if not isinstance(settings, ConfigDict) or not isinstance(settings.get("method"), str | tuple):
        raise UserError(f"{where} is not a method entry; build it with config.methods(…)")
    if name in ("original", "retrained"):
        raise UserError(f"{where}: {name!r} is reserved; choose another name")
    if not rules.WORD.fits(name):
        raise rules.broken(rules.WORD, "the name of an entry of config.methods", name)
    method = find(settings.method)
    # Of the method's settings; and of every one that the entry has.
    _check_sections(settings, ConfigDict({**OPTIMIZER, **method.defaults}), where)
    rules.check(settings, {**OPTIMIZER_RULES, **method.rules}, where)


def unread(config: ConfigDict, dataset: Dataset) -> dict[str, str]:
    """Messages on settings changed from their default that nothing reads, by path."""
    kinds = {
        "data": ("name", LOAD_READS, LOAD_READS[config.data.name]),
        "forget": ("kind", FORGET_READS, forget_reads(config.forget)),
    }
    found: dict[str, str] = {}
    for section, (choice, table, read) in kinds.items():
        conditions = {}
        for field in sorted(set().union(*table.values()) - set(read)):
            readers = sorted((kind for kind in table if field in table[kind]), key=_by_reads(table))
            advice = f"set {section}.{choice} to {' or '.join(map(repr, readers[:2]))}"
            conditions[field] = Unread(lambda settings: False, advice)
        defaults = {"data": DATA, "forget": FORGET}[section]
        found |= rules.unread(config[section], defaults, conditions, f"config.{section}")
    clinical = Unread(
        lambda settings: bool(dataset.malignant), "set data.malignant to the malignant labels"
    )
    found |= rules.unread(
        config.eval, EVAL, dict.fromkeys(("scenarios", "malignant_rule"), clinical), "config.eval"
    )
    sequence = Unread(lambda settings: bool(config.requests), "set config.requests")
    budgets = dict.fromkeys(BUDGET, sequence)
    if config.requests:
        budgets = dict.fromkeys(("fnr_rise", "risk_rise"), clinical)
    found |= rules.unread(config.budget, BUDGET, budgets, "config.budget")
    found |= rules.unread(config.watch, WATCH, WATCH_READS, "config.watch")
    some = Unread(lambda settings: len(config.methods) > 0, "name some in config.methods")
    found |= rules.unread(config.watch, WATCH, {"every": some}, "config.watch")
    tuned = Unread(
        lambda settings: any(find(entry.method).tune for entry in config.methods.values()),
        "name methods that can be tuned in config.methods",
    )
    found |= rules.unread(config.tune, TUNE, {"trials": tuned}, "config.tune")
    column = Unread(lambda settings: bool(settings.groups), "set data.groups to a CSV")
    root = Unread(lambda settings: not settings.path, "leave data.path empty")
    reads_data = {"groups_column": column, "root": root}
    found |= rules.unread(config.data, DATA, reads_data, "config.data")
    retrained = Unread(lambda settings: settings.retrained, "set config.retrained=True")
    found |= rules.unread(config, DEFAULTS, {"retrained_path": retrained}, "config")
    trains = Unread(
        lambda settings: is_train_read(config),
        "set config.retrained=True without config.retrained_path, or leave config.original.path "
        "empty",
    )
    reads = dict.fromkeys(TRAIN, trains) if config.original.path else {}
    found |= rules.unread(config.train, TRAIN, {**retrain.READS, **reads}, "config.train")
    for name, settings in config.methods.items():
        method = find(settings.method)
        defaults = {**OPTIMIZER, **method.defaults}
        found |= rules.unread(settings, defaults, method.reads, f"config.methods.{name}")
    return found | _unread_policies(config)


def is_train_read(config: ConfigDict) -> bool:
    """Whether a model is made by `config.train`, and not brought."""
    return not config.original.path or (config.retrained and not config.retrained_path)


def _by_reads(table: Mapping[str, tuple[str, ...]]) -> Callable[[str], int]:
    """Sorts kinds: those that read little are meant by it."""
    return lambda kind: len(table[kind])


def _unread_policies(config: ConfigDict) -> dict[str, str]:
    """The same of the parameters of policies that the augmentation does not have."""
    used = {policy for policy, _ in augment_chain(config)}
    conditions = {
        f"{policy}.{param}": Unread(lambda settings: False, f"add {policy} to config.augment")
        for policy, params in config.augment_params.items()
        for param, value in params.items()
        if policy not in used and value != PUBLISHED.get(f"{policy}.{param}")
    }
    by_share = Unread(lambda params: not params.crop_flip.pixels, "set crop_flip.pixels=0")
    conditions = {"crop_flip.padding": by_share, **conditions}
    return rules.unread(config.augment_params, defaults(), conditions, "config.augment_params")


def augment_chain(config: ConfigDict) -> Chain:
    """The augmentation that the config names."""
    return chain(config.augment, **config.augment_params.to_dict())


def _check_sections(config: Any, defaults: ConfigDict, where: str) -> None:
    """Raises unless the config has what the defaults have, of their types; `methods` are free."""
    for field, value in defaults.items():
        if field not in config:
            raise UserError(f"{where}.{field} is missing; build the config on config.default()")
        if isinstance(value, ConfigDict):
            if not isinstance(config[field], ConfigDict):
                raise UserError(
                    f"{where}.{field} must be a section, set by field, got {shown(config[field])}"
                )
            _check_sections(config[field], value, f"{where}.{field}")
        elif f"{where}.{field}" != "config.augment" and not rules.is_like(config[field], value):
            kind = rules.KINDS[type(value)]
            raise UserError(f"{where}.{field} must be {kind}, got {shown(config[field])}")
