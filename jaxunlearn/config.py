"""Every setting: its default, meaning and check. A config is a few lines over `default()`."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxunlearn import augment, metrics, models
from jaxunlearn.errors import UserError, unknown
from jaxunlearn.methods import METHODS, Rule, retrain
from jaxunlearn.training import OPTIMIZERS

OPTIMIZER = {
    "optimizer": "sgd",  # sgd, adam or adamw
    "momentum": 0.9,  # of sgd; the first moment's decay of adam and adamw
    "weight_decay": 5e-4,
    "batch_size": 256,
}


def default() -> ConfigDict:
    """Returns the library's defaults: the papers' settings on the embedded synthetic data."""
    config = ConfigDict(
        {
            "name": "default",  # names the results
            "seeds": (0,),  # one whole experiment each: original, retrained, every method
            # A grid: pairs of a field and its values, (("augment", ("none", "crop_flip")), …); the
            # first value of the first axis is what the others are compared with.
            "axes": (),
            "store": "",  # folder of trained models; empty: `store` beside the working directory
            "devices": 0,  # how many to split a batch over; 0: all there are
            "checkpoint_every": 10,  # epochs between two points to resume from
            "data": {
                "name": "lesions",  # lesions, a MedMNIST name, cifar10, cifar100, npz, tfds
                "path": "",  # a file to read in place of the published download
                "root": "",  # folder of downloads; empty: where each data set usually lies
                "size": 28,  # image size in pixels, where the source has several
                "malignant": (),  # malignant labels; (): what the data set is known by
                "binary": False,  # True: two classes, benign 0 and malignant 1
                "seed": 0,  # of generated images and of drawn validation sets
                "count": 2000,  # training images to generate
                "tfds_name": "",
                "mean": (0.5,),  # subtracted from images in [0, 1], per channel; constants, so that
                "std": (0.5,),  # nothing of the forgotten images lives on in them
            },
            "forget": {
                "kind": "fraction",  # fraction, per_class, class, groups, indices
                "fraction": 0.2,
                "balanced": True,  # the fraction of every class, rather than over all
                "fractions": (),  # kind per_class: one fraction a class, by label
                "classes": (),  # kind class: labels to forget whole
                "groups": (),  # kind groups: which; (): whole random ones up to the fraction
                "path": "",  # kind indices: a file of training indices
                "seed": 0,  # the request is one and the same for every seed of the run
            },
            "model": {"name": "resnet18", "width": 64, "dtype": "float32"},
            # A scenario's name, or policies: a tuple of names, or names with commas between.
            "augment": FieldReference("none", field_type=object),
            "augment_params": augment.defaults(),  # by policy, such as augment_params.mixup.alpha
            "train": {**OPTIMIZER, **retrain.DEFAULTS},  # the original's and the retrained's recipe
            "methods": {},  # see `methods`
            "eval": {
                "attack": "threshold",  # MIA: threshold, or svc as in the published code
                # What it learns from: all of retain, weighed, or as published its first examples.
                "members": "all",
                "scenarios": ((1.0, 1.0), (20.0, 1.0)),  # costs (C_FN, C_FP) of the global risk
                "malignant_rule": "argmax",  # of several classes: argmax, or sum of probabilities
                "batch_size": 512,
            },
        }
    )
    return config.lock()  # a misspelt field in a config file is an error too


def methods(**entries: Mapping[str, Any]) -> ConfigDict:
    """Returns `config.methods`: entries by name, each with all of its settings.

    Args:
      **entries: what departs from the method's defaults, by the name that results show. `method`
        names the method where the entry's own name does not: `methods(salun={}, salun_flip={
        "method": "salun", "relabel": {"exclude_true": True}})`.

    Raises:
      UserError: an unknown method or setting.
    """
    filled = {}
    for name, changes in entries.items():
        method = changes.get("method", name)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        settings = {"method": method, **OPTIMIZER, **copy.deepcopy(METHODS[method].defaults)}
        filled[name] = ConfigDict(settings)
        _change(filled[name], changes, f"methods.{name}")
    return ConfigDict(filled, sort_keys=False)  # results show them in this order


def by_labels(*names: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """Entries of `methods` that compare the ways to draw random labels, for relabelling methods.

    Args:
      *names: the methods; each gets the entries NAME (over all classes again in every epoch, as
        published), NAME_once (over all classes, one draw for the request) and NAME_flip (in every
        epoch, never the true label).
      **settings: what all of them have in common.
    """
    relabels = {"": {}, "_once": {"every_epoch": False}, "_flip": {"exclude_true": True}}
    return {
        name + suffix: {"method": name, **settings, "relabel": relabel}
        for name in names
        for suffix, relabel in relabels.items()
    }


def as_published(config: ConfigDict) -> None:
    """Sets what the papers' code has and the library's defaults have not; see docs/fidelity.md."""
    config.train.keep = "best_val"
    config.augment_params.crop_flip.pixels = 4  # at any size
    config.augment_params.random_erasing.fill = (0,)  # black, since it erases before normalising
    config.eval.attack = "svc"
    config.eval.members = "first"


def _change(settings: ConfigDict, changes: Any, where: str) -> None:
    """Makes the changes, each of which must have a default of its type."""
    if not isinstance(changes, Mapping):
        raise UserError(f"{where} is {changes!r}; allowed: a dict of settings")
    for field, value in changes.items():
        if field not in settings:
            raise unknown(f"field of {where}", field, settings)
        if isinstance(settings[field], ConfigDict):
            _change(settings[field], value, f"{where}.{field}")
            continue
        try:
            settings[field] = value
        except TypeError as error:
            kind = type(settings[field]).__name__
            raise UserError(f"{where}.{field} is {value!r}; allowed: {kind}") from error


def _numbers(kind: type | tuple[type, ...], low: float = -math.inf) -> Callable[[Any], bool]:
    """Whether a value is a tuple of numbers of that kind, none below `low`."""
    return lambda value: (
        all(isinstance(each, kind) for each in value) and min(value, default=0) >= low
    )


_POSITIVE: Rule = (lambda value: value > 0, "more than 0")
_COUNT: Rule = (lambda value: value >= 1, "1 or more")
_FROM_0: Rule = (lambda value: value >= 0, "0 or more")

OPTIMIZER_RULES: dict[str, Rule] = {
    "optimizer": (lambda value: value in OPTIMIZERS, ", ".join(OPTIMIZERS)),
    "momentum": (lambda value: 0 <= value < 1, "0 to below 1"),
    "weight_decay": _FROM_0,
    "batch_size": _COUNT,
    "epochs": _FROM_0,
    "lr": _POSITIVE,
}

RULES: dict[str, Rule] = {
    "name": (lambda value: bool(value) and "/" not in value, "a word without /"),
    "seeds": (
        lambda value: (
            len(value) == len(set(value)) > 0 and _numbers(int, 0)(value) and max(value) < 2**32
        ),  # JAX's keys take no more
        "different whole numbers, 0 or more, at least one",
    ),
    "devices": _FROM_0,
    "checkpoint_every": _COUNT,
    "data.count": (lambda value: value >= 10, "10 or more"),
    "data.std": (
        lambda value: len(value) in (1, 3) and _numbers((int, float))(value) and min(value) > 0,
        "1 or 3 numbers above 0",
    ),
    "data.mean": (
        lambda value: len(value) in (1, 3) and _numbers((int, float))(value),
        "1 or 3 numbers",
    ),
    "data.malignant": (_numbers(int, 0), "labels, whole numbers from 0"),
    "data.seed": _FROM_0,
    "forget.seed": _FROM_0,
    "forget.fractions": (_numbers((int, float), 0), "numbers from 0 to below 1, one a class"),
    "forget.classes": (_numbers(int, 0), "labels, whole numbers from 0"),
    "forget.groups": (_numbers(int), "whole numbers"),
    "eval.batch_size": _COUNT,
    "eval.scenarios": (
        lambda value: len(value) > 0 and all(len(pair) == 2 and min(pair) > 0 for pair in value),
        "pairs (C_FN, C_FP) of numbers above 0, at least one",
    ),
}


def check(config: ConfigDict) -> None:
    """Raises `UserError` at the first setting that is missing or out of range."""
    _check_sections(config, default(), "config")
    _check_rules(config, RULES, "config")
    _check_rules(config.train, {**OPTIMIZER_RULES, **retrain.RULES}, "config.train")
    for name, settings in config.methods.items():
        if not isinstance(settings, ConfigDict) or "method" not in settings:
            raise UserError(f"config.methods.{name} is no method; make it by config.methods(…)")
        if settings.method not in METHODS:
            raise unknown("method", settings.method, METHODS)
        if name in ("original", "retrained") or "/" in name:
            raise UserError(f"a method is named {name!r}, which results use already; name it else")
        rules = {**OPTIMIZER_RULES, **METHODS[settings.method].rules}
        _check_rules(settings, rules, f"config.methods.{name}")
    augment.build_chain(augment_chain(config))
    models.build(num_classes=2, **config.model)
    for field, table in (
        ("attack", metrics.privacy.ATTACKS),
        ("members", metrics.privacy.MEMBERS),
        ("malignant_rule", metrics.clinical.MALIGNANT_RULES),
    ):
        if config.eval[field] not in table:
            raise unknown(f"config.eval.{field}", config.eval[field], table)


def augment_chain(config: ConfigDict) -> augment.Chain:
    """The augmentation that the config names."""
    names = config.augment
    if isinstance(names, str) and "," in names:
        names = tuple(name for name in names.replace(" ", "").split(",") if name)
    if not isinstance(names, str | tuple | list):
        raise UserError(f"config.augment is {names!r}; allowed: a name, or a tuple of names")
    names = names if isinstance(names, str) else tuple(names)
    return augment.chain(names, **config.augment_params.to_dict())


def _check_sections(config: Any, defaults: ConfigDict, where: str) -> None:
    """Raises unless the config has all that the defaults have; what `methods` holds is its own."""
    for field, value in defaults.items():
        if field not in config:
            raise UserError(f"{where}.{field} is missing; build the config on config.default()")
        if isinstance(value, ConfigDict):
            if not isinstance(config[field], ConfigDict):
                raise UserError(
                    f"{where}.{field} is {config[field]!r}; allowed: a section, set by field"
                )
            _check_sections(config[field], value, f"{where}.{field}")


def _check_rules(config: ConfigDict, rules: dict[str, Rule], where: str) -> None:
    """Holds each rule against its field, where the config has one."""
    for path, (fits, allowed) in rules.items():
        *sections, field = path.split(".")
        section: Any = config
        for part in sections:
            section = section.get(part, {})
        if field not in section:
            continue
        value = section[field]
        try:
            good = fits(value)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise UserError(f"{where}.{path} is {value!r}; allowed: {allowed}")
