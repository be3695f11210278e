"""The plan: from a config to experiments, with all that can be wrong found before any training."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxunlearn import closure
from jaxunlearn import config as config_lib
from jaxunlearn.augment.build import build_chain
from jaxunlearn.augment.ops import GREY_STAIN
from jaxunlearn.data import forget
from jaxunlearn.data.dataset import SETS, Dataset, Examples
from jaxunlearn.data.load import load
from jaxunlearn.errors import UserError, unknown
from jaxunlearn.grid import Cell, cells
from jaxunlearn.methods.table import find, modules
from jaxunlearn.metrics import evaluate, proxy
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.metrics.unlearning import forgotten_classes
from jaxunlearn.models import brought
from jaxunlearn.models.architecture import Architecture, given, named
from jaxunlearn.trained import WATCHING, Recipe, source_of
from jaxunlearn.training.step import Setup, num_logits

# What is to be believed of models that were made elsewhere, by the setting that names them.
BROUGHT = {
    "config.original.path": "original was made elsewhere: that it was trained on these images, "
    "those to forget among them, is what its owner says.",
    "config.retrained_path": "retrained was made elsewhere: that it has not seen the images to "
    "forget, and was made as original was in all else, is what its owner says.",
}
RETRAINED_BY = (
    "retrained was made by config.train, which need not be how original was made: a part of the "
    "differences between them may come from that."
)
ONE_RETRAINED = (
    "All seeds are compared with one retrained model: intervals over seeds leave out how much "
    "another training of it would differ."
)
CHOSEN = (
    "Methods run with the settings that {} has for them, others as given (config.tune.chosen). "
    "Another run chose these, and what that took is not counted here."
)
BACKBONE = "backbone_never_saw_forget"  # a setting that says so of the original
IN_FLOAT32 = (
    "Computed in float32 in place of bfloat16, which is not faster here: the processor has no "
    "arithmetic for it, or no oneDNN that makes use of it."
)


class Experiment(NamedTuple):
    """One experiment: settings that were checked, data, and the split that they ask for.

    Attributes:
      cell: its point in the grid, and its config.
      dataset: the data.
      split: what is forgotten, of a sequence by all requests so far, and what to retain.
      asked: the same of this request alone.
      earlier: of a sequence, the experiment whose results the methods start from; None: they start
        from the original.
      notes: what a reader of the results must know of the split.
      source_of: `trained.source_of`, which reads the same sources once for a whole plan.
      architecture: of every model.
    """

    cell: Cell
    dataset: Dataset
    split: forget.Split
    asked: forget.Split
    earlier: "Experiment | None"
    notes: list[str]
    source_of: Callable[[tuple[str, ...]], str]
    architecture: Architecture

    @property
    def request(self) -> int:
        """The number of its request in a sequence, from 1; 0 where there is none."""
        return len(self.cell.config.requests)

    @property
    def forgotten_classes(self) -> tuple[int, ...]:
        """Labels of the classes that are forgotten whole."""
        labels = self.dataset.train.labels
        return forgotten_classes(labels[self.split.forget], labels[self.split.retain])

    def may_lack(self, name: str) -> bool:
        """Whether results do without a model that diverges.

        They do without a method; but a grid's cells and a sequence's requests need each of theirs.
        """
        return name in self.cell.config.methods and not self.cell.point

    def predictions(self, logits: dict[str, np.ndarray]) -> dict[str, Predictions]:
        """A model's predictions on forget, retain, val and test, by its logits on each set."""
        rows: dict[str, tuple[str, Any]] = {
            "forget": ("train", self.split.forget),
            "retain": ("train", self.split.retain),
            "val": ("val", slice(None)),
            "test": ("test", slice(None)),
        }
        predictions = {}
        for which, (source, index) in rows.items():
            examples: Examples = getattr(self.dataset, source)
            groups = None if examples.groups is None else examples.groups[index]
            predictions[which] = Predictions(logits[source][index], examples.labels[index], groups)
        return predictions

    def evaluate(
        self, predictions: dict[str, Predictions], seed: int, clinical: bool = True
    ) -> dict[str, Any]:
        """`metrics.evaluate` as the config asks for it; without the clinical values if not so."""
        settings = self.cell.config.eval
        return evaluate(
            predictions,
            malignant=self.dataset.malignant if clinical else (),
            scenarios=settings.scenarios,
            attack=settings.attack,
            members=settings.members,
            malignant_rule=settings.malignant_rule,
            seed=seed,
        )

    def recipes(self, seed: int) -> dict[str, Recipe]:
        """The recipes of a seed's models by name: original, retrained, and one for each method."""
        config = self.cell.config
        everything = np.arange(len(self.dataset.train))
        train = ConfigDict({"method": "retrain", **config.train.to_dict()})
        whole = forget.Split(everything[:0], everything)
        first = _read(config.original.path) if config.original.path else train
        original = self._recipe("original", seed, first, whole, None)
        recipes = {"original": original}
        if config.retrained:
            gold = _read(config.retrained_path) if config.retrained_path else train
            recipes["retrained"] = self._recipe("retrained", seed, gold, self.split, None)
        before = self.earlier.recipes(seed) if self.earlier else {}
        for name, settings in config.methods.items():
            parent = before.get(name, original)
            # What was made elsewhere cannot be watched.
            watched = config.watch.every > 0 and not find(settings.method).files
            recipes[name] = self._recipe(name, seed, settings, self.asked, parent, watched)
        return recipes

    def _recipe(
        self,
        name: str,
        seed: int,
        settings: ConfigDict,
        split: forget.Split,
        parent: Recipe | None,
        watched: bool = False,
    ) -> Recipe:
        config = self.cell.config
        chain = config_lib.augment_chain(config)
        return Recipe(
            name=name,
            seed=seed,
            settings=settings,
            dataset=self.dataset,
            split=split,
            parent=parent,
            setup=Setup(
                model=self.architecture.model,
                augment=build_chain(chain),
                mean=tuple(config.data.mean),
                std=tuple(config.data.std),
                batch_size=settings.batch_size,
                optimizer=settings.optimizer,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            ),
            model=self.architecture.fields,
            chain=chain,
            code=self.source_of(
                (*modules(settings), *self.architecture.sources, *(WATCHING if watched else ()))
            ),
            watch=config.watch.to_dict() if watched else None,
        )


def _read(path: str) -> ConfigDict:
    """The settings of a model that was made elsewhere."""
    return config_lib.methods(brought={"path": path})["brought"]


def make(
    config: ConfigDict, num_devices: int, bfloat16: bool = True, model: Any = None
) -> list[Experiment]:
    """The experiments that a config asks for.

    Args:
      config: see `jaxunlearn.config.default`.
      num_devices: how many a batch is split over.
      bfloat16: False: what is to be computed in bfloat16 is computed in float32.
      model: in place of the one that `config.model` names: a `Model`, or what such a name may stand
        for (see `jaxunlearn.models.build`).

    Raises:
      UserError: a setting, the data or the forget request is invalid, or they do not fit together.
    """
    config_lib.check(config)
    datasets: dict[str, Dataset] = {}
    experiments: list[Experiment] = []
    read_once = functools.cache(source_of)
    made = cells(config)
    check_tuning(config, any(cell.config.tune.trials for cell in made))
    for cell in made:
        with _naming(cell):
            config_lib.check(cell.config)
        source = cell.config.data.to_json()
        if source not in datasets:
            datasets[source] = load(cell.config.data)
        dataset = datasets[source]
        shape, classes = dataset.train.images.shape[1:], dataset.num_classes
        wider = bool(cell.config.original.path)
        if model is None:
            architecture = named(cell.config.model.to_dict(), classes, bfloat16)
        else:
            architecture = given(model, shape, classes, wider)
        architecture = architecture.check(shape, classes, wider)
        check_fit(cell.config, dataset, num_devices)
        earlier = experiments[-1] if config.requests and experiments else None
        gone = earlier.split.forget if earlier else np.array([], np.int64)
        with _naming(cell):
            asked, found = forget.resolve(cell.config.forget, dataset, gone)
            if config.requests:
                found = [f"Request {cell.point['request']}: {note}" for note in found]
            if earlier and len(asked.forget) == 0:
                earlier.notes.extend(found)  # nothing changes: its results stand
                continue
            split = forget.Split(np.union1d(gone, asked.forget), asked.retain)
            notes = [*dataset.notes, *found, *_brought(cell.config, architecture, dataset)]
            if cell.config.tune.chosen:
                notes.append(CHOSEN.format(cell.config.tune.chosen))
            if cell.config.model.dtype == "bfloat16" and not bfloat16:
                notes.append(IN_FLOAT32)
            one = Experiment(cell, dataset, split, asked, earlier, notes, read_once, architecture)
            check_requests(one)
            check_judged(one)
            check_watched(one)
            check_tuned(one)
            experiments.append(one)
    check_read(experiments)
    check_brought(experiments)
    return experiments


def check_brought(experiments: list[Experiment]) -> None:
    """Raises where a model that was made elsewhere stands for several: one has one forget set."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for one in experiments:
        for what, path in _paths(one.cell.config).items():
            made_of = (one.dataset.fingerprint, one.split.fingerprint)
            if what != "config.original.path" and seen.setdefault((what, path), made_of) != made_of:
                raise UserError(
                    f"{what}={path} is one model, and the grid's cells differ in what it is to "
                    "have forgotten; give each cell its own by an axis, or leave it out"
                )


def check_tuning(config: ConfigDict, tuned: bool) -> None:
    """Raises where tuning, in any cell, would change what is asked for."""
    if tuned and config.requests:
        raise UserError(
            "config.tune and config.requests exclude each other: a sequence is run with settings "
            "that are known; tune its first request as config.forget, and set tune.trials=0"
        )
    for name, settings in config.methods.items() if tuned else ():
        fields = flatten_dict(settings.to_dict(), sep=".")
        for field in find(settings.method).tune:
            if field not in fields:
                raise unknown(f"setting in TUNE, of config.methods.{name},", field, fields)
    for field, _ in config.axes if tuned or config.tune.chosen else ():
        if field.startswith("methods."):
            raise UserError(
                f"config.axes varies {field!r}, and config.tune chooses such settings by itself; "
                "take that axis out, or leave tune.trials and tune.chosen at 0 and ''"
            )


@contextlib.contextmanager
def _naming(cell: Cell) -> Iterator[None]:
    """Of a sequence, an error names the request that it is of."""
    try:
        yield
    except UserError as error:
        if not cell.config.requests:
            raise
        raise UserError(f"request {cell.point['request']}: {error}") from error


def _paths(config: ConfigDict) -> dict[str, str]:
    """The files of models that were made elsewhere, by what names them."""
    paths = {
        "config.original.path": config.original.path,
        "config.retrained_path": config.retrained_path if config.retrained else "",
    }
    for name, settings in config.methods.items():
        for field in find(settings.method).files:
            paths[f"config.methods.{name}.{field}"] = settings[field]
    return {what: path for what, path in paths.items() if path}


def _brought(config: ConfigDict, architecture: Architecture, dataset: Dataset) -> list[str]:
    """Reads models that were made elsewhere, so that what does not fit is known; and notes."""
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), np.float32)
    paths = _paths(config)
    notes = [note for what, note in BROUGHT.items() if what in paths]
    if config.original.path and config.retrained and not config.retrained_path:
        notes.append(RETRAINED_BY)
    if config.retrained_path and len(config.seeds) > 1:
        notes.append(ONE_RETRAINED)
    if paths:
        shapes = jax.eval_shape(architecture.model.init, jax.random.key(0), image)
        for what, path in paths.items():
            brought.read(path, what, shapes)
        logits = num_logits(architecture.model, shapes, image)
        if logits > dataset.num_classes:
            notes.append(
                f"The model tells {logits} classes apart, the data {dataset.num_classes}, its "
                "first ones: the others take part in probabilities, and answers of them are wrong."
            )
    return notes


def check_read(experiments: list[Experiment]) -> None:
    """Raises where a setting was changed that no cell reads: it would be dropped in silence."""
    unread = [config_lib.unread(one.cell.config, one.dataset) for one in experiments]
    for path, message in unread[0].items():
        if all(path in found for found in unread):
            raise UserError(message)
    for one, found in zip(experiments, unread, strict=True):
        for field in one.cell.config.requests[-1] if one.request else ():
            if f"config.forget.{field}" in found:
                raise UserError(f"request {one.request}: {found[f'config.forget.{field}']}")


def check_requests(one: Experiment) -> None:
    """Raises where a method is not defined for what is asked to be forgotten."""
    labels = one.dataset.train.labels
    if not np.isin(labels[one.asked.forget], labels[one.asked.retain]).any():
        return
    for name, settings in one.cell.config.methods.items():
        if find(settings.method).requests == ("class",):
            raise UserError(
                f"config.methods.{name}: {settings.method} can only forget whole classes, and "
                f"forget.kind={one.cell.config.forget.kind!r} leaves examples of the same class in "
                "retain; set forget.kind='class', or leave the method out"
            )


def check_judged(one: Experiment) -> None:
    """Raises where test holds nothing but the classes to forget, so that nothing can be judged."""
    labels, classes = one.dataset.test.labels, one.forgotten_classes
    if np.isin(labels, classes).all():
        names = ", ".join(one.dataset.class_names[label] for label in classes)
        raise UserError(
            f"forget.kind={one.cell.config.forget.kind!r} takes all of {names}, and each of the "
            f"{len(labels)} test images of {one.dataset.name} is of such a class, so that nothing "
            "is left to judge a model on; forget fewer classes, or give other test images"
        )


def check_watched(one: Experiment) -> None:
    """Raises where methods are to be stopped by validation images that there are not."""
    labels, retain = one.dataset.train.labels, one.asked.retain
    if one.cell.config.watch.stop and not np.isin(one.dataset.val.labels, labels[retain]).any():
        raise UserError(
            f"config.watch.stop=True on {one.dataset.name}: validation has no image of a class "
            "that retain has; set watch.stop=False, or give other validation images"
        )


def check_tuned(one: Experiment) -> None:
    """Raises where methods are to be tuned, and nothing unseen stands in for retrained's values."""
    if not one.cell.config.tune.trials:
        return
    counts = {which: len(getattr(one.dataset, which)) for which in SETS}
    labels_alone = {which: np.zeros((count, 1)) for which, count in counts.items()}
    proxy.check(one.predictions(labels_alone), one.dataset.class_names)


def batch_sizes(config: ConfigDict) -> dict[str, int]:
    """The batch sizes of what is trained here, by the config's section."""
    return {
        **({"train": config.train.batch_size} if config_lib.is_train_read(config) else {}),
        **{
            f"methods.{name}": settings.batch_size
            for name, settings in config.methods.items()
            if not find(settings.method).files  # what is brought is not trained
        },
    }


def _check_backbone(config: ConfigDict, name: str, settings: ConfigDict) -> None:
    """Raises where an original that is trained here is said not to have seen the forget set."""
    fields = flatten_dict(settings.to_dict(), sep=".")
    said = [field for field in fields if field.split(".")[-1] == BACKBONE and fields[field]]
    if said and not config.original.path:
        raise UserError(
            f"config.methods.{name}.{said[0]}=True, and original is trained here on all of train, "
            "the forget set included; give one that was not by config.original.path, or leave it "
            "at False"
        )


def check_fit(config: ConfigDict, dataset: Dataset, num_devices: int) -> None:
    """Raises where settings that are right for themselves do not fit the data or the devices."""
    channels = dataset.train.images.shape[-1]
    allowed = "1 number for images with 1 channel"
    if channels > 1:
        allowed = f"1 or {channels} numbers for images with {channels} channels"
    for field in ("mean", "std"):
        given = config.data[field]
        if len(given) not in (1, channels):
            raise UserError(f"config.data.{field} must be {allowed}, got {given}")
    chain = config_lib.augment_chain(config)
    for policy, params in chain:
        fill = dict(params).get("fill", (0,))
        if policy == "random_erasing" and len(fill) not in (1, channels):
            raise UserError(f"augment_params.random_erasing.fill must be {allowed}, got {fill}")
        if policy == "stain_jitter" and channels == 1:
            raise UserError(GREY_STAIN)
    policies = [policy for policy, _ in chain]
    if config.requests and config.retrained_path:
        raise UserError(
            "config.retrained_path is one model, and each of config.requests has a retrained model "
            "of its own; leave one of the two empty"
        )
    for name, settings in config.methods.items():
        find(settings.method).check(settings, dataset, policies)
        if config.requests and find(settings.method).files:
            raise UserError(
                f"config.methods.{name} is one model, which cannot answer one request after "
                "another; leave it out, or leave config.requests empty"
            )
        closure.check(modules(settings))
        _check_backbone(config, name, settings)
    for section, size in batch_sizes(config).items():
        if size % num_devices:
            raise UserError(
                f"config.{section}.batch_size must be a multiple of {num_devices} on "
                f"{num_devices} devices, got {size}"
            )
