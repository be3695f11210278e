"""The plan: from a config to experiments, with all that can be wrong found before any training."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import closure
from jaxunlearn import config as config_lib
from jaxunlearn.augment.build import build_chain
from jaxunlearn.data import forget
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.load import load
from jaxunlearn.errors import UserError
from jaxunlearn.grid import Cell, cells
from jaxunlearn.methods.table import find, modules
from jaxunlearn.metrics.unlearning import forgotten_classes
from jaxunlearn.models import brought
from jaxunlearn.models.architecture import Architecture, given, named
from jaxunlearn.models.model import Model
from jaxunlearn.trained import Recipe, source_of
from jaxunlearn.training.step import Setup

BROUGHT = (
    "original was made elsewhere: that it was trained on these images, those to forget among them, "
    "is what its owner says."
)
RETRAINED_BY = (
    "retrained was made by config.train, which need not be how original was made: a part of the "
    "differences between them may come from that."
)
IN_FLOAT32 = (
    "Computed in float32 in place of bfloat16, which is not faster here: the processor has no "
    "arithmetic for it, or no oneDNN that makes use of it."
)


class Experiment(NamedTuple):
    """One experiment: settings that were checked, data, and the split that they ask for.

    Attributes:
      cell: its point in the grid, and its config.
      dataset: the data.
      split: what to forget and what to retain.
      notes: what a reader of the results must know of the split.
      source_of: `trained.source_of`, which reads the same sources once for a whole plan.
      architecture: of every model.
    """

    cell: Cell
    dataset: Dataset
    split: forget.Split
    notes: list[str]
    source_of: Callable[[tuple[str, ...]], str]
    architecture: Architecture

    @property
    def forgotten_classes(self) -> tuple[int, ...]:
        """Labels of the classes that the request takes whole."""
        labels = self.dataset.train.labels
        return forgotten_classes(labels[self.split.forget], labels[self.split.retain])

    def recipes(self, seed: int) -> dict[str, Recipe]:
        """The recipes of a seed's models by name: original, retrained, and one for each method."""
        config = self.cell.config
        everything = np.arange(len(self.dataset.train))
        train = ConfigDict({"method": "retrain", **config.train.to_dict()})
        first = train
        if config.original.path:
            first = config_lib.methods(original={"method": "brought", **config.original})[
                "original"
            ]
        whole = forget.Split(everything[:0], everything)
        original = self._recipe("original", seed, first, whole, None)
        recipes = {"original": original}
        if config.retrained:
            recipes["retrained"] = self._recipe("retrained", seed, train, self.split, None)
        for name, settings in config.methods.items():
            recipes[name] = self._recipe(name, seed, settings, self.split, original)
        return recipes

    def _recipe(
        self,
        name: str,
        seed: int,
        settings: ConfigDict,
        split: forget.Split,
        parent: Recipe | None,
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
            code=self.source_of((*modules(settings), *self.architecture.sources)),
        )


def make(
    config: ConfigDict, num_devices: int, bfloat16: bool = True, model: Model | None = None
) -> list[Experiment]:
    """The experiments that a config asks for.

    Args:
      config: see `jaxunlearn.config.default`.
      num_devices: how many a batch is split over.
      bfloat16: False: what is to be computed in bfloat16 is computed in float32.
      model: in place of the one that `config.model` names.

    Raises:
      UserError: a setting, the data or the forget request is invalid, or they do not fit together.
    """
    config_lib.check(config)
    datasets: dict[str, Dataset] = {}
    experiments, read_once = [], functools.cache(source_of)
    for cell in cells(config):
        config_lib.check(cell.config)
        source = cell.config.data.to_json()
        if source not in datasets:
            datasets[source] = load(cell.config.data)
        dataset = datasets[source]
        shape, classes = dataset.train.images.shape[1:], dataset.num_classes
        if model is None:
            architecture = named(cell.config.model.to_dict(), classes, bfloat16)
        else:
            architecture = given(model, shape, classes)
        architecture.check(shape, classes)
        check_fit(cell.config, dataset, num_devices)
        split, notes = forget.resolve(cell.config.forget, dataset)
        notes = [*dataset.notes, *notes, *_brought(cell.config, architecture, shape)]
        if cell.config.model.dtype == "bfloat16" and not bfloat16:
            notes.append(IN_FLOAT32)
        experiments.append(Experiment(cell, dataset, split, notes, read_once, architecture))
        check_requests(experiments[-1])
        check_judged(experiments[-1])
    check_read(experiments)
    return experiments


def _brought(config: ConfigDict, architecture: Architecture, shape: tuple[int, ...]) -> list[str]:
    """Reads models that were made elsewhere, so that what does not fit is known; and notes."""
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    paths = {"config.original.path": config.original.path} if config.original.path else {}
    for name, settings in config.methods.items():
        for field in find(settings.method).files:
            paths[f"config.methods.{name}.{field}"] = settings[field]
    if paths:
        shapes = jax.eval_shape(architecture.model.init, jax.random.key(0), image)
        for what, path in paths.items():
            brought.read(path, what, shapes)
    return [BROUGHT, *[RETRAINED_BY] * config.retrained] if config.original.path else []


def check_read(experiments: list[Experiment]) -> None:
    """Raises where a setting was changed that no cell reads: it would be dropped in silence."""
    unread = [config_lib.unread(one.cell.config, one.dataset) for one in experiments]
    for path, message in unread[0].items():
        if all(path in found for found in unread):
            raise UserError(message)


def check_requests(one: Experiment) -> None:
    """Raises where a method is not defined for what is asked to be forgotten."""
    forgotten = one.dataset.train.labels[one.split.forget]
    if np.isin(forgotten, one.forgotten_classes).all():
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
    policies = [policy for policy, _ in config_lib.augment_chain(config)]
    sizes = {"train": config.train.batch_size}
    for name, settings in config.methods.items():
        find(settings.method).check(settings, dataset, policies)
        closure.check(modules(settings))
        sizes[f"methods.{name}"] = settings.batch_size
    for section, size in sizes.items():
        if size % num_devices:
            raise UserError(
                f"config.{section}.batch_size must be a multiple of {num_devices} on "
                f"{num_devices} devices, got {size}"
            )
