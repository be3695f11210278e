"""One experiment from a config to a verdict; `run` reads like the flow of the library."""

import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

from jaxunlearn import config as config_lib
from jaxunlearn import devices, files, metrics, plan, workdir
from jaxunlearn.data.dataset import Examples
from jaxunlearn.metrics import results
from jaxunlearn.metrics.predictions import apart
from jaxunlearn.plan import Experiment
from jaxunlearn.report import terminal
from jaxunlearn.store import Store
from jaxunlearn.trained import SETS, Trained, Trainer
from jaxunlearn.training.programs import Programs


def run(config: ConfigDict, folder: str | Path, console: Console | None = None) -> results.Results:
    """Runs the config's experiment, or its grid of them, and returns what `metrics.json` holds.

    Args:
      config: see `jaxunlearn.config.default`.
      folder: where results go; made if need be. It may hold an earlier run of the same config.
      console: where the progress, the table and the notes are printed.

    Raises:
      UserError: the config, the data or the folder is invalid; or training diverged.
    """
    console, folder = console or Console(), files.local(folder, "--workdir")
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    devices.check_switches()
    config = config_lib.plain(config)
    programs = Programs(devices.make_mesh(config.devices))
    experiments = plan.make(config, programs.mesh.size)
    folders = [folder / "cells" / one.cell.label if config.axes else folder for one in experiments]
    where = folder.absolute().parent / "store"
    if config.store:
        where = files.local(config.store, "config.store")
    workdir.claim(folder, config)
    if config.axes:
        for one, inner in zip(experiments, folders, strict=True):
            workdir.claim(inner, one.cell.config)
    store = Store(where, say)

    reports: list[results.Report] = []
    for i, (one, inner) in enumerate(zip(experiments, folders, strict=True)):
        if config.axes:
            title = Text(f"{i + 1} of {len(experiments)}: {one.cell.label}")
            console.rule(title, align="left")
        trainer = Trainer(
            programs=programs,
            store=store,
            console=console,
            checkpoint_every=config.checkpoint_every,
            predict_batch=one.cell.config.eval.batch_size,
            diverged=inner / "diverged",
        )
        reports.append(_run_one(one, trainer, inner))
    report: results.Results = reports[0]
    if config.axes:
        points = [
            results.Point(one.cell.point, one.cell.labels, f"cells/{one.cell.label}")
            for one in experiments
        ]
        report = results.merge(config.name, config.axes, points, reports)
        workdir.write_report(report, folder)

    for note in report["notes"]:
        say(f"Note: {note}")
    terminal.print_table(report, console)
    say(f"Results: {folder}")
    return report


def _run_one(one: Experiment, trainer: Trainer, folder: Path) -> results.Report:
    """Every model of every seed, its values, and the files of results."""
    config = one.cell.config
    workdir.write_split(folder, one.split)
    judged: dict[str, list[results.Judged]] = {}
    for seed in config.seeds:
        for name, recipe in one.recipes(seed).items():
            trained = trainer.obtain(recipe)
            if name in config.methods:
                workdir.link_model(trained.path, folder, f"{name}-seed{seed}")
            judged.setdefault(name, []).append(_judge(one, name, seed, trained, folder))
    header = _describe(one, trainer.programs.mesh)
    header["notes"] = [*header["notes"], *results.made_elsewhere(judged, header)]
    report = results.assemble(
        header,
        list(judged),
        judged,
        malignant=one.dataset.malignant,
        malignant_rule=config.eval.malignant_rule,
    )
    workdir.write_report(report, folder)
    return report


def _judge(one: Experiment, name: str, seed: int, trained: Trained, folder: Path) -> results.Judged:
    """A model's values by its predictions, which are kept in the folder."""
    config, predictions, meta = one.cell.config, _predictions(one, trained), trained.meta()
    workdir.write_predictions(folder, f"{name}-seed{seed}", predictions)
    values = metrics.evaluate(
        predictions,
        malignant=one.dataset.malignant,
        scenarios=config.eval.scenarios,
        attack=config.eval.attack,
        members=config.eval.members,
        malignant_rule=config.eval.malignant_rule,
        seed=seed,
    )
    values = {"seed": seed, **values, "RTE": meta["seconds"]}
    values["compile_seconds"] = meta["compile_seconds"]
    values["made_on"] = meta["made_on"]
    if meta["claims"]:
        values["claims"] = meta["claims"]
    judged_on, _ = apart(predictions["test"], one.forgotten_classes)
    return results.Judged(values, judged_on)


def _predictions(one: Experiment, trained: Trained) -> dict[str, metrics.Predictions]:
    """The model's predictions on forget, retain, val and test."""
    logits = trained.logits()
    rows: dict[str, tuple[str, Any]] = {
        "forget": ("train", one.split.forget),
        "retain": ("train", one.split.retain),
        "val": ("val", slice(None)),
        "test": ("test", slice(None)),
    }
    predictions = {}
    for which, (source, index) in rows.items():
        examples: Examples = getattr(one.dataset, source)
        groups = None if examples.groups is None else examples.groups[index]
        predictions[which] = metrics.Predictions(
            logits[source][index], examples.labels[index], groups
        )
    return predictions


def _describe(one: Experiment, mesh: Mesh) -> dict[str, Any]:
    """What the results say of the data, the split and the machine."""
    config, dataset, split = one.cell.config, one.dataset, one.split
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
            "forgotten_classes": [dataset.class_names[label] for label in one.forgotten_classes],
            "fingerprint": split.fingerprint,
        },
        "batch_size": config.train.batch_size,
        "seeds": list(config.seeds),
        **devices.describe(mesh),
        "attack": config.eval.attack,
        "notes": one.notes,
    }
