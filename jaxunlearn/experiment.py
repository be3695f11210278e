"""One experiment from a config to a verdict; `run` reads like the flow of the library."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from flax.errors import FlaxError
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import augment, data, devices, grid, metrics, models, training
from jaxunlearn import config as config_lib
from jaxunlearn.data import forget
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.task import Shared, Task
from jaxunlearn.report import figures, terminal
from jaxunlearn.report.progress import progress
from jaxunlearn.store import (
    Store,
    load_tree,
    make_key,
    read_meta,
    read_npz,
    save_tree,
    write_npz,
    write_text,
)

# What a run may change and still be the same run: these do not alter its numbers.
INCIDENTAL = ("store", "devices", "checkpoint_every")
SETS = ("train", "val", "test")
# The library's code that makes a model what it is: edit it, and models are made anew.
TRAINING_CODE = ("training.py", "keys.py", "models", "augment/ops.py", "augment/policies.py")
METHODS_CODE = ("saliency.py", "methods")


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Runs the config's experiment, or its grid of them, and returns what `metrics.json` holds.

    Args:
      config: see `jaxunlearn.config.default`.
      workdir: where results go; made if need be. It may hold an earlier run of the same config.
      console: where the progress, the table and the notes are printed.

    Raises:
      UserError: the config, the data or the working directory is not as it must be; or training
        diverged.
    """
    console, workdir = console or Console(), Path(workdir).expanduser()
    config_lib.check(config)
    programs = training.Programs(devices.make_mesh(config.devices))
    cells = grid.cells(config)
    datasets: dict[str, data.Dataset] = {}
    plans = []
    for cell in cells:  # all that can be wrong, before anything is trained or written
        config_lib.check(cell.config)
        source = cell.config.data.to_json()
        if source not in datasets:
            datasets[source] = data.load(cell.config.data)
        _check_fit(cell.config, datasets[source], programs.mesh.size)
        folder = workdir / "cells" / cell.label if config.axes else workdir
        plans.append(
            (folder, datasets[source], *forget.resolve(cell.config.forget, datasets[source]))
        )
    _claim(workdir, config)
    if config.axes:
        for cell, (folder, *_) in zip(cells, plans, strict=True):
            _claim(folder, cell.config)
    where = Path(config.store).expanduser() if config.store else workdir.absolute().parent / "store"
    store = Store(where, console.print)

    reports = []
    for i, (cell, (folder, dataset, split, notes)) in enumerate(zip(cells, plans, strict=True)):
        if config.axes:
            console.rule(f"{i + 1} of {len(cells)}: {cell.label}", align="left")
        lab = Lab(cell.config, dataset, split, programs, store, folder, console)
        reports.append(lab.run(notes))
    report = reports[0]
    if config.axes:
        report = grid.merge(config, cells, reports)
        _write(report, workdir)

    for note in report["notes"]:
        console.print(f"Note: {note}", highlight=False)
    terminal.print_table(report, console)
    console.print(f"Results: {workdir}", highlight=False, soft_wrap=True)
    return report


class Stored(NamedTuple):
    """A trained model in the store."""

    key: str
    path: Path

    def variables(self) -> training.Variables:
        """The model's variables, as numpy arrays."""
        return load_tree(self.path / "variables")


@dataclasses.dataclass(frozen=True)
class Lab:
    """What the stages of one experiment work with."""

    config: ConfigDict
    dataset: data.Dataset
    split: forget.Split
    programs: training.Programs
    store: Store
    workdir: Path
    console: Console

    @functools.cached_property
    def images(self) -> jax.Array:
        """The training images, put on the devices when the first model needs them."""
        return devices.replicate(self.dataset.train.images, self.programs.mesh)

    def run(self, notes: list[str]) -> dict[str, Any]:
        """The whole experiment: every model of every seed, its values, and the files of results."""
        config, report = self.config, self.describe()
        report["notes"] = notes
        self.split.save(self.workdir / "split.npz")
        (self.workdir / "predictions").mkdir(exist_ok=True)
        names = ["original", "retrained", *config.methods]
        report["models"] = {name: {"per_seed": []} for name in names}
        for seed in config.seeds:
            original = self.original(seed)
            trained = {"original": original, "retrained": self.retrained(seed)}
            shared = Shared()
            for name, settings in config.methods.items():
                trained[name] = self.unlearned(name, settings, seed, original, shared)
            values = {name: self.judge(name, seed, model) for name, model in trained.items()}
            for name in names:
                report["models"][name]["per_seed"].append(
                    self.compare(values[name], values["retrained"], name)
                )
        for model in report["models"].values():
            model["mean"], model["interval"] = metrics.summarise(model["per_seed"])
        _write(report, self.workdir)
        return report

    def setup(self, settings: ConfigDict) -> training.Setup:
        """What every step of a stage with these settings shares."""
        config = self.config
        return training.Setup(
            model=models.build(num_classes=self.dataset.num_classes, **config.model),
            num_classes=self.dataset.num_classes,
            augment=augment.build_chain(config_lib.augment_chain(config)),
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            batch_size=settings.batch_size,
            optimizer=settings.optimizer,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def original(self, seed: int) -> Stored:
        """The model trained on all of train."""
        everything = np.arange(len(self.dataset.train))
        return self._trained(
            "original", seed, forget.Split(everything[:0], everything), examples="all"
        )

    def retrained(self, seed: int) -> Stored:
        """The same recipe and seed on the retain set only."""
        return self._trained("retrained", seed, self.split, examples=self.split.fingerprint)

    def _trained(self, name: str, seed: int, split: forget.Split, examples: str) -> Stored:
        """A model trained by the original's recipe on the split's retain set."""
        config = self.config
        fields = {
            "data": self.dataset.fingerprint,
            "mean": config.data.mean,
            "std": config.data.std,
            "model": config.model.to_dict(),
            "augment": config_lib.augment_chain(config),
            "train": config.train.to_dict(),
            "code": _hash_code(*TRAINING_CODE, "methods/retrain.py"),
            "examples": examples,
            "seed": seed,
        }
        settings = ConfigDict({"method": "retrain", **config.train.to_dict()})
        return self._obtain(name, seed, fields, settings, split, "train", None, Shared())

    def unlearned(
        self, name: str, settings: ConfigDict, seed: int, original: Stored, shared: Shared
    ) -> Stored:
        """What a method makes of the original; copied into the working directory too."""
        fields = {
            "original": original.key,
            "split": self.split.fingerprint,
            "method": settings.to_dict(),
            "code": _hash_code(*METHODS_CODE, inspect.getfile(METHODS[settings.method].passes)),
            "seed": seed,
        }
        model = self._obtain(name, seed, fields, settings, self.split, "unlearn", original, shared)
        _copy(model.path, self.workdir / "models" / f"{name}-seed{seed}")
        return model

    def _obtain(
        self,
        name: str,
        seed: int,
        fields: dict[str, Any],
        settings: ConfigDict,
        split: forget.Split,
        stage: str,
        original: Stored | None,
        shared: Shared,
    ) -> Stored:
        """The model that the fields stand for: from the store, or trained now and put there."""
        key = make_key(fields)
        path = self.store.get(key)
        if path is not None:
            self.store.remove(f"{key}.pass-*")  # left where a run was killed at the very end
            self.console.print(f"seed {seed} · {name}: in the store", highlight=False)
            return Stored(key, path)
        dataset, setup, programs = self.dataset, self.setup(settings), self.programs
        if original is None:
            start = training.fresh(setup, self.images, seed, programs)
        else:
            start = original.variables()
        task = Task(
            original=start,
            split=split,
            images=self.images,
            labels=dataset.train.labels,
            val=dataset.val,
            malignant=dataset.malignant,
            seed=seed,
            setup=setup,
            programs=programs,
            shared=shared,
        )
        resume = self._resume(key)
        saved = shared.seconds_saved

        def own_seconds(seconds):
            """With the share of what other methods computed; a resumed run has it already."""
            return seconds if resume else seconds + shared.seconds_saved - saved

        def checkpoint(point):
            if len(point.history) % self.config.checkpoint_every == 0:
                meta = {
                    "done": point.done,
                    "history": point.history,
                    "seconds": own_seconds(point.seconds),
                    "answers": point.answers,
                }
                trees = {"state": jax.device_get(point.state)}
                if point.saved:
                    trees["saved"] = point.saved
                kept = f"{key}.pass-{len(point.history):06d}"
                self.store.put(kept, meta=meta, trees=trees)
                self.store.remove(f"{key}.pass-*", before=kept)

        def fail(problem: object, variables: training.Variables) -> NoReturn:
            path = self.workdir / "diverged" / f"{name}-seed{seed}"
            shutil.rmtree(path, ignore_errors=True)
            save_tree(path, variables)
            raise UserError(f"{name}, seed {seed}: {problem}; the last finite parameters: {path}")

        with progress(self.console, f"seed {seed} · {name}") as update:
            try:
                result = training.run(
                    METHODS[settings.method].passes(task, settings),
                    task.original,
                    self.images,
                    setup,
                    stage=stage,
                    seed=seed,
                    programs=programs,
                    progress=update,
                    resume=resume,
                    checkpoint=checkpoint,
                )
            except training.DivergedError as error:
                fail(error, error.variables)
            except FlaxError as error:  # a user's own module, such as one with dropout
                raise UserError(
                    f"{name}, seed {seed}: the model fails: {one_line(error)}"
                ) from error
        logits = {
            which: training.predict(
                result.variables,
                self.images if which == "train" else getattr(dataset, which).images,
                setup,
                programs,
                self.config.eval.batch_size,
            )
            for which in SETS
        }
        if not all(np.isfinite(values).all() for values in logits.values()):
            fail(
                "its logits are not finite; a lower learning rate is the usual mend",
                jax.device_get(result.variables),
            )
        meta = {
            "key": key,
            "fields": fields,
            "seconds": own_seconds(result.seconds),
            "compile_seconds": result.compile_seconds,
            "history": result.history,
        }
        path = self.store.put(
            key,
            meta=meta,
            trees={"variables": jax.device_get(result.variables)},
            arrays={"logits": logits},
        )
        self.store.remove(f"{key}.pass-*")
        return Stored(key, path)

    def _resume(self, key: str):
        """The furthest intact point of an interrupted run."""
        for path in sorted(self.store.root.glob(f"{key}.pass-??????"), reverse=True):
            entry = self.store.get(path.name)
            if entry is None:
                continue
            try:
                meta, leaves = read_meta(entry), load_tree(entry / "state")
                saved = load_tree(entry / "saved") if (entry / "saved").exists() else {}
            except OSError:  # another run has gone further, and removed it
                continue
            self.console.print(f"resumed after epoch {len(meta['history'])}", highlight=False)
            return training.Point(
                meta["done"], leaves, meta["history"], meta["seconds"], meta["answers"], saved
            )
        return None

    def judge(self, name: str, seed: int, model: Stored) -> dict[str, Any]:
        """A model's values by its predictions, which are kept in the working directory."""
        config, logits = self.config, read_npz(model.path / "logits.npz")
        predictions = {}
        for which in ("forget", "retain", "val", "test"):
            indices = getattr(self.split, which, slice(None))
            source = which if which in SETS else "train"
            examples: data.Examples = getattr(self.dataset, source)
            groups = None if examples.groups is None else examples.groups[indices]
            predictions[which] = metrics.Predictions(
                logits[source][indices], examples.labels[indices], groups
            )
        columns = {
            f"{which}_{field}": value
            for which, prediction in predictions.items()
            for field, value in prediction._asdict().items()
            if value is not None
        }
        write_npz(self.workdir / "predictions" / f"{name}-seed{seed}.npz", columns)
        values = metrics.evaluate(
            predictions,
            malignant=self.dataset.malignant,
            scenarios=config.eval.scenarios,
            attack=config.eval.attack,
            members=config.eval.members,
            malignant_rule=config.eval.malignant_rule,
            seed=seed,
        )
        meta = read_meta(model.path)
        values = {"seed": seed, **values, "RTE": meta["seconds"]}
        values["compile_seconds"] = meta["compile_seconds"]
        return {"values": values, "test": predictions["test"]}

    def compare(self, judged: dict, reference: dict, name: str) -> dict[str, Any]:
        """The values with their differences to the retrained model's."""
        values = metrics.compare(judged["values"], reference["values"])
        if self.dataset.malignant and name != "retrained":
            values["false_negatives"] = metrics.clinical.compare_false_negatives(
                judged["test"],
                reference["test"],
                self.dataset.malignant,
                self.config.eval.malignant_rule,
            )
        return values

    def describe(self) -> dict[str, Any]:
        """What the results say of the data, the split and the machine."""
        config, dataset, split = self.config, self.dataset, self.split
        packages = ("jaxunlearn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        mesh = self.programs.mesh
        device = mesh.devices.flat[0]
        return {
            "name": config.name,
            "dataset": {
                "name": dataset.name,
                "num_classes": dataset.num_classes,
                "class_names": list(dataset.class_names),
                "malignant": list(dataset.malignant),
                "licence": dataset.licence,
                "synthetic": dataset.synthetic,
                **{which: len(getattr(dataset, which)) for which in SETS},
                "fingerprint": dataset.fingerprint,
            },
            "split": {
                "forget": len(split.forget),
                "retain": len(split.retain),
                "fingerprint": split.fingerprint,
            },
            "seeds": list(config.seeds),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
            },
            "device": f"{mesh.size} × {device.platform} {device.device_kind}",
            "attack": config.eval.attack,
        }


def _write(report: dict[str, Any], workdir: Path) -> None:
    """Writes the files of results; `metrics.json` last: where it is, they are whole."""
    write_text(workdir / "table.md", terminal.markdown_table(report))
    figures.draw(report, str(workdir / "figure.png"))
    write_text(workdir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))


@functools.cache
def _hash_code(*parts: str) -> str:
    """SHA-256 of source files, or of all in a folder, by path from the library's own folder."""
    digest = hashlib.sha256()
    for part in parts:
        path = Path(__file__).parent / part  # an absolute part stands for itself
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_fit(config: ConfigDict, dataset: data.Dataset, num_devices: int) -> None:
    """Raises where settings that are right for themselves do not fit the data or the devices."""
    channels = dataset.train.images.shape[-1]
    for field in ("mean", "std"):
        given = config.data[field]
        if len(given) not in (1, channels):
            raise UserError(
                f"config.data.{field} is {given} for images of {channels} channels; allowed: 1 or "
                f"{channels} numbers"
            )
    policies = [policy for policy, _ in config_lib.augment_chain(config)]
    sizes = {"train": config.train.batch_size}
    for name, settings in config.methods.items():
        METHODS[settings.method].check(dataset, policies)
        sizes[f"methods.{name}"] = settings.batch_size
    for section, size in sizes.items():
        if size % num_devices:
            raise UserError(
                f"config.{section}.batch_size is {size} on {num_devices} devices; allowed: "
                f"multiples of {num_devices}"
            )


def _claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the working directory, or sees that it holds a run of this very config."""
    mine = json.loads(json.dumps(config.to_dict()))
    kept = workdir / "config.json"
    try:
        theirs = json.loads(kept.read_text()) if kept.exists() else None
        if theirs is not None and not isinstance(theirs, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UserError(
            f"{kept} cannot be read as a run's config; give another --workdir, or remove it"
        ) from error
    if theirs is not None:
        for incidental in INCIDENTAL:
            theirs.pop(incidental, None)
        changed = [
            field
            for field in sorted({*mine, *theirs} - set(INCIDENTAL))
            if mine.get(field) != theirs.get(field)
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a run with another config ({', '.join(changed)} differ); "
                "give another --workdir, or remove that one"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(mine, indent=1))
    except OSError as error:
        raise UserError(
            f"the working directory {workdir} cannot be written ({error.strerror}); "
            "give another --workdir"
        ) from error


def _copy(entry: Path, target: Path) -> None:
    """Copies a stored model and what is known of it, unless it is there already."""
    meta = (entry / "meta.json").read_bytes()
    if (target / "meta.json").exists() and (target / "meta.json").read_bytes() == meta:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(entry, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
