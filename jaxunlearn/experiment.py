"""One experiment from a config to a verdict; `run` reads like the flow of the library."""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

from jaxunlearn import compiled, devices, metrics, processes, tune, watch, workdir
from jaxunlearn.data import forget
from jaxunlearn.data.dataset import SETS
from jaxunlearn.errors import Diverged, unknown
from jaxunlearn.metrics import drift, results, unlearning
from jaxunlearn.metrics.predictions import apart
from jaxunlearn.plan import Experiment, batch_sizes
from jaxunlearn.prepared import Prepared
from jaxunlearn.report import terminal
from jaxunlearn.store import load_tree
from jaxunlearn.trained import Recipe, Trained, Trainer, why_lost


def run(
    config: ConfigDict,
    folder: str | Path,
    console: Console | None = None,
    model: Any = None,
) -> results.Results:
    """Runs the config's experiment, grid or sequence, and returns what `metrics.json` holds.

    Args:
      config: see `jaxunlearn.config.default`.
      folder: where results go; made if need be. It may hold an earlier run of the same config.
      console: where the progress, the table and the notes are printed.
      model: in place of the one that `config.model` names: a `Model`, or what such a name may stand
        for (see `jaxunlearn.models.build`).

    Raises:
      UserError: the config, the data or the folder is invalid; or the original, retrained or every
        method diverged. Of several methods one that does is left out, which a note tells.
    """
    return carry_out(Prepared(config, folder, console, model))


def carry_out(ready: Prepared) -> results.Results:
    """`run` of what is ready for it."""
    processes.from_first(ready.claim)
    if str(ready.programs.convolution):
        ready.say(str(ready.programs.convolution))
    models = [one.architecture for one in ready.experiments]
    in_float32 = any(each.fields.get("dtype") != "bfloat16" for each in models)
    if in_float32 and devices.in_full(ready.programs.mesh):
        takes = all(each.shipped for each in models)
        ready.say(devices.IN_FULL.format("--config.model.dtype=bfloat16, or " if takes else ""))
    reports: list[results.Report] = []
    with compiled.kept():
        for i, one in enumerate(ready.experiments):
            if one.cell.point:
                title = Text(f"{i + 1} of {len(ready.experiments)}: {one.cell.label}")
                ready.console.rule(title, align="left")
            reports.append(_run_one(one, ready.trainer(one), ready.inner(one)))
    report: results.Results = reports[0]
    if ready.config.requests:
        asked = [
            results.Asked(one.request, len(one.asked.forget), f"requests/{one.request}")
            for one in ready.experiments
        ]
        report = results.chain(ready.config.name, ready.config.budget, asked, reports)
    if ready.config.axes:
        points = [
            results.Point(one.cell.point, one.cell.labels, f"cells/{one.cell.label}")
            for one in ready.experiments
        ]
        report = results.merge(ready.config.name, ready.config.axes, points, reports)
    if report is not reports[0] and processes.is_first():
        workdir.write_report(report, ready.folder)

    for note in report["notes"]:
        ready.say(f"Note: {note}")
    terminal.print_table(report, ready.console)
    ready.say(f"Results: {ready.folder}")
    return report


def make_models(
    config: ConfigDict,
    folder: str | Path,
    cell: str,
    seed: int,
    models: Collection[str],
    console: Console | None = None,
) -> None:
    """Makes models of one cell and one seed of an experiment, for `run` to find in the store.

    Args:
      config: see `jaxunlearn.config.default`.
      folder: where `run` will put its results; nothing is written there.
      cell: the cell's label, such as "request=2"; "" where there is only one.
      seed: one of the config's.
      models: which of the cell's models: "original", "retrained", and the methods' names.
      console: where the progress is printed.

    Raises:
      UserError: as `run`; or there is no such cell or seed.
    """
    ready = Prepared(config, folder, console)
    tune.check_at_once(ready.config)
    cells = {one.cell.label: one for one in ready.experiments}
    if cell not in cells:
        raise unknown("cell", cell, cells)
    if seed not in ready.config.seeds:
        raise unknown("seed", seed, map(str, ready.config.seeds))
    trainer = ready.trainer(cells[cell])
    with compiled.kept():
        for name, recipe in cells[cell].recipes(seed).items():
            if name in models:
                _make(cells[cell], name, recipe, trainer)


def _make(one: Experiment, name: str, recipe: Recipe, trainer: Trainer) -> Trained | None:
    """A model; None where it diverges and results do without it."""
    return trainer.attempt(recipe) if one.may_lack(name) else trainer.obtain(recipe)


def _run_one(one: Experiment, trainer: Trainer, folder: Path) -> results.Report:
    """Every model of every seed, its values, and the files of results."""
    one, tuned = tune.choose(one, trainer)
    config, machine = one.cell.config, trainer.programs.describe()
    judged: dict[str, list[results.Judged]] = {}
    lost: dict[str, str] = {}
    if processes.is_first():
        workdir.write_split(folder, one.split)
        if tuned:  # at once, for a run that may end before it has a retrained model
            tune.write(one, tuned, trainer, folder, gaps=False)
    for seed in config.seeds:
        made: dict[str, Trained] = {}
        for name, recipe in one.recipes(seed).items():
            if name in lost:
                continue
            trained = _make(one, name, recipe, trainer)
            if trained is None:
                why = functools.partial(why_lost, trainer.diverged, recipe)
                lost[name] = processes.from_first(why)
                if len(lost) == len(config.methods):
                    raise Diverged("; ".join(lost.values()))
                continue
            made[name] = trained
            if processes.is_first():
                if name in config.methods:
                    workdir.link_model(trained.path, folder, f"{name}-seed{seed}")
                judged.setdefault(name, []).append(_judge(one, name, seed, trained, folder))
        if one.request and processes.is_first():
            _add_drift(one, made, {name: models[-1] for name, models in judged.items()})
    if tuned and processes.is_first():
        tune.write(one, tuned, trainer, folder)
        machine |= {"tuning": {name: found.spent for name, found in tuned.items()}}
    whole = {name: models for name, models in judged.items() if name not in lost}
    return processes.from_first(lambda: _report(one, machine, whole, lost, folder))


def _report(
    one: Experiment,
    machine: dict[str, Any],
    judged: dict[str, list[results.Judged]],
    lost: dict[str, str],
    folder: Path,
) -> results.Report:
    """What the models' values give, written to the folder."""
    header = _describe(one, machine)
    found = {name: [model.values for model in models] for name, models in judged.items()}
    header["left_out"] = lost
    notes = [f"{name} is left out, as it diverged: {why}." for name, why in lost.items()]
    notes += [*results.made_elsewhere(found, header), *results.stopped(found)]
    header["notes"] = [*header["notes"], *notes]
    report = results.assemble(
        header,
        list(judged),
        judged,
        malignant=one.dataset.malignant,
        malignant_rule=one.cell.config.eval.malignant_rule,
    )
    config = one.cell.config
    methods = [name for name in judged if name in config.methods]
    workdir.write_changed(folder, methods, config.seeds, one.dataset)
    workdir.write_report(report, folder)
    return report


def _judge(one: Experiment, name: str, seed: int, trained: Trained, folder: Path) -> results.Judged:
    """A model's values by its predictions, which are kept in the folder."""
    predictions, meta = one.predictions(trained.logits()), trained.meta()
    workdir.write_predictions(folder, f"{name}-seed{seed}", predictions)
    values = {"seed": seed, **one.evaluate(predictions, seed)}
    values["made_on"], values["made_by"] = meta["made_on"], meta["fields"]["method"]
    for value, kept in (("RTE", "seconds"), ("compile_seconds", "compile_seconds")):
        # Of a model that was made elsewhere they are those of reading it.
        values[value] = meta[kept] if values["made_by"]["method"] != "brought" else None
    values["key"], values["parent"] = trained.key, meta["fields"]["parent"]
    if meta["claims"]:
        values["claims"] = meta["claims"]
    if one.cell.config.watch.every:
        values["watch"] = meta["watch"] or _looked_at(one, seed, trained)
    judged_on, _ = apart(predictions["test"], one.forgotten_classes)
    return results.Judged(values, judged_on)


def _looked_at(one: Experiment, seed: int, trained: Trained) -> watch.Curve:
    """A look at a model that was not watched, on the images that a method is watched on."""
    drawn = watch.draw(one.asked, one.dataset, seed, one.cell.config.watch.images)
    logits, found = trained.logits(), {}
    for which, (source, rows) in drawn.items():
        labels = getattr(one.dataset, source).labels[rows]
        found[which] = metrics.Predictions(logits[source][rows], labels)
    return {"looks": [watch.look(0, found)], "result": 0}


def _add_drift(
    one: Experiment, made: dict[str, Trained], judged: dict[str, results.Judged]
) -> None:
    """Adds what models of a sequence, of one seed, have lost against the original."""
    config, original, new = one.cell.config, judged["original"], one.asked.forget
    start = _params(made["original"])
    for name, (values, test) in judged.items():
        labels = one.dataset.train.labels[new]
        of_new = metrics.Predictions(made[name].logits()["train"][new], labels)
        values["UA_new"] = unlearning.error(of_new)
        if name == "original":
            continue
        lost, values["intervals"] = drift.drift(
            test,
            original.test,
            malignant=one.dataset.malignant,
            scenarios=config.eval.scenarios,
            malignant_rule=config.eval.malignant_rule,
        )
        values |= {**lost, "moved": drift.moved(_params(made[name]), start)}


def _params(trained: Trained) -> list[Any]:
    """A model's parameters."""
    return jax.tree.leaves(load_tree(trained.path / "variables")["params"])


def _describe(one: Experiment, machine: dict[str, Any]) -> dict[str, Any]:
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
            "asked": len(one.asked.forget),
            "forgotten_classes": [dataset.class_names[label] for label in one.forgotten_classes],
            "fingerprint": split.fingerprint,
        },
        "request": {
            field: config.forget[field] for field in ("kind", *forget.reads(config.forget))
        },
        "batch_size": max(batch_sizes(config).values(), default=None),
        "seeds": list(config.seeds),
        **machine,
        "attack": config.eval.attack,
        "notes": one.notes,
    }
