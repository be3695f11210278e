"""Results: the schema of `metrics.json`, and how it is built from judged models and read back.

The file holds a `Report` of one experiment or, where it has "cells", a `Grid` of them or, where it
has "requests", the `Requests` of a sequence. Values are dicts whose keys and units are those of
`evaluate.METRICS`, and besides:

    seed             of every model's training
    gaps             absolute differences from retrained, by metric
    avg_gap          their mean over UA, RA, TA and MIA, in percentage points
    fn_change        false negatives on test, minus the reference model's
    fp_change        false positives on test, minus the reference model's
    false_negatives  `clinical.FalseNegatives`, against the reference model
    made_on          the machines that trained it, in order, as in `Base`: device, cores, versions,
                     convolution
    made_by          the method and its settings, with the SHA-256 of files in place of paths
    key              of the model in the store
    parent           that of the model that it started from; None: it started anew
    claims           what the method claims of its own result, such as {"epsilon": 1.0}; under
                     "caveat", in words, what that does not promise
    intervals        of a sequence: one seed's intervals of what it has lost, over test images
    watch            with `config.watch.every`: `jaxunlearn.watch.Curve`; of a reference model, one
                     look at it, on the same images

`gaps` and `avg_gap` are there only if there is a retrained model. An undefined value is None.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast, final

import numpy as np

from jaxunlearn import files
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import clinical, statistics, unlearning, verdicts
from jaxunlearn.metrics.evaluate import METRICS, closest
from jaxunlearn.metrics.predictions import Predictions

# Raised whenever a key is renamed, removed or changes its meaning; 1 was the layout without it. 3:
# where classes are forgotten whole, TA, MIA, the clinical values and their sizes in `n` leave these
# out; costs in the names of scenarios are exact.
SCHEMA = 3

# Models to compare methods with, the best reference first.
RETRAINED, ORIGINAL = "retrained", "original"
REFERENCES = (RETRAINED, ORIGINAL)

# Not meaningful to average over seeds.
# A threshold of 2 calls nothing malignant.
NOT_AVERAGED = (
    *("seed", "p_value", "threshold", "claims", "intervals", "made_by", "parent", "watch"),
)

Values = dict[str, Any]


class ModelVerdicts(TypedDict):
    """A method's verdicts.

    Attributes:
      false_negatives: where some class is malignant, and there is a reference model.
    """

    false_negatives: NotRequired[verdicts.FalseNegativesVerdict]


class Model(TypedDict):
    """One model of every seed.

    Attributes:
      per_seed: its values, in the order of the report's seeds.
      mean: over seeds, nested as the values are.
      interval: `[low, high]` of 95%, nested as the values are: t intervals over several seeds;
        with one seed, Wilson intervals of the proportions and what `intervals` has.
      verdicts: of a method; a reference model has none.
    """

    per_seed: list[Values]
    mean: Values
    interval: Values
    verdicts: NotRequired[ModelVerdicts]


class Base(TypedDict):
    """The part that the results of an experiment and of a grid share.

    Attributes:
      schema: the version of this layout (`SCHEMA`).
      name: the experiment's.
      seeds: of the models, in the order of `per_seed`.
      device: number, platform and kind, of the machine that wrote the results.
      cores: its CPU cores.
      versions: of Python and of the packages there, by name.
      convolution: what computed convolutions there, such as "oneDNN 3.2.0" or "XLA"; and the
        precision of JAX's products, where the user has set it: "XLA at tensorfloat32".
      notes: warnings about the data and the split, in sentences.
    """

    schema: int
    name: str
    seeds: list[int]
    device: str
    cores: int
    versions: dict[str, str]
    convolution: str
    notes: list[str]


class Experiment(Base):
    """An experiment's results.

    Attributes:
      dataset: name, num_classes, class_names, malignant (labels), licence, synthetic, the sizes of
        train, val and test, and fingerprint.
      split: the sizes of forget and retain, and how many of forget this request took (asked: of a
        sequence earlier ones took the rest); the names of the classes forgotten whole
        (forgotten_classes), and fingerprint.
      request: the fields of `config.forget` that the request reads.
      batch_size: the largest of the models' training; None where all were made elsewhere.
      attack: the name of the attack that MIA is by.
      reference: the model that methods are compared with: "retrained", without one "original",
        None if there is neither.
      models: by name; reference models first.
      worse_than_trivial: by cost scenario; empty where no class is malignant.
      majority: whether the reference models learned more than which class is the largest.
      evidence: whether there are enough images to judge by.
      left_out: by method that diverged, and has no values, how.
      tuning: by method, what choosing its settings took: the number of trials, how many diverged or
        missed more malignant validation images than the original, and their seconds, without
        compilation; empty where `config.tune` did not ask for it.
    """

    dataset: dict[str, Any]
    split: dict[str, Any]
    request: dict[str, Any]
    batch_size: int | None
    attack: str
    reference: str | None
    models: dict[str, Model]
    worse_than_trivial: dict[str, verdicts.TrivialVerdict]
    majority: verdicts.MajorityVerdict
    evidence: verdicts.Evidence
    tuning: dict[str, dict[str, Any]]
    left_out: dict[str, str]


@final
class Report(Experiment):
    """The results of one experiment."""


@final
class Cell(Experiment):
    """An experiment of a grid.

    Attributes:
      point: the values of the axes' fields.
      labels: these values as tables and figures name them.
      folder: of the cell's own results, relative to the grid's.
    """

    point: dict[str, Any]
    labels: dict[str, str]
    folder: str


class Comparison(TypedDict):
    """The cells of a grid that differ in its first axis only.

    Attributes:
      labels: of the values that they share, by field.
      cells: positions in the grid's `cells`, the reference first.
      verdicts: by method, on its lowest Avg Gap; empty without retrained, or other values.
    """

    labels: dict[str, str]
    cells: list[int]
    verdicts: dict[str, verdicts.GapVerdict]


@final
class Grid(Base):
    """The results of a grid.

    Attributes:
      axes: pairs of a field and its values; the first value of the first axis is the reference.
      cells: one per combination, the last axis fastest. Means and intervals of cells that have an
        `avg_gap` also have `avg_gap_change`, in percent of the reference's.
      comparisons: of the cells along the first axis.
    """

    axes: list[list[Any]]
    cells: list[Cell]
    comparisons: list[Comparison]


@final
class Step(Experiment):
    """The results after one request of a sequence, with all that it has forgotten as forget.

    Attributes:
      number: of the request in the config, from 1.
      new: the number of images that it took.
      folder: of the step's own results, relative to the sequence's.
    """

    number: int
    new: int
    folder: str


@final
class Requests(Base):
    """The results of a sequence of requests.

    Attributes:
      requests: one step for each; a request that asked for nothing new has none, but a note.
      budget: what may be lost, by the key of its metric; 0: anything.
      verdicts: by method, on whether to retrain.
    """

    requests: list[Step]
    budget: dict[str, float]
    verdicts: dict[str, verdicts.BudgetVerdict]


Results = Report | Grid | Requests


class Judged(NamedTuple):
    """One model of one seed.

    Attributes:
      values: `evaluate.evaluate`'s, and "seed", "RTE", "compile_seconds" (both None of a model that
        was made elsewhere); "claims" where the method makes any.
      test: its predictions on the test images that it is judged on, those of classes that were not
        forgotten whole.
    """

    values: Values
    test: Predictions


class Asked(NamedTuple):
    """A request of a sequence; the attributes are those of `Step`."""

    number: int
    new: int
    folder: str


class Point(NamedTuple):
    """Where an experiment lies in a grid; the attributes are those of `Cell`."""

    values: dict[str, Any]
    labels: dict[str, str]
    folder: str


def assemble(
    header: Mapping[str, Any],
    names: Sequence[str],
    judged: Mapping[str, Sequence[Judged]],
    *,
    malignant: tuple[int, ...],
    malignant_rule: str,
) -> Report:
    """The results of an experiment: comparisons, means, intervals and verdicts.

    Args:
      header: name, dataset, split, request, batch_size, seeds, device, cores, versions, attack and
        notes, and tuning where there was any: see `Report`.
      names: the models', in the order of the tables.
      judged: by name, one per seed in the order of `header["seeds"]`.
      malignant: labels of the malignant classes.
      malignant_rule: a name in `clinical.MALIGNANT_RULES`.

    Raises:
      UserError: two models' predictions are not on the same test set.
    """
    reference = next((name for name in REFERENCES if name in names), None)
    found: dict[str, list[Values]] = {}
    for name in names:
        found[name] = [dict(each.values) for each in judged[name]]
        if reference:
            for i, (one, other) in enumerate(zip(judged[name], judged[reference], strict=True)):
                found[name][i] = compare(one.values, other.values, gaps=reference == RETRAINED)
                if malignant and name != reference:
                    found[name][i]["false_negatives"] = clinical.compare_false_negatives(
                        one.test, other.test, malignant, malignant_rule
                    )
    test = judged[names[0]][0].test  # all are judged on the same images
    return conclude({**header, "reference": reference}, found, *verdicts.most_frequent(test.labels))


def conclude(
    header: Mapping[str, Any], found: Mapping[str, list[Values]], answer: int, share: float
) -> Report:
    """The results of an experiment whose models have been compared: all that is over seeds.

    Args:
      header: as in `assemble`, with the reference.
      found: each model's values by seed, with the differences from the reference model's; in the
        order of the tables.
      answer: the most frequent label of the test images.
      share: its share of them, in percent.
    """
    models: dict[str, Model] = {}
    for name, per_seed in found.items():
        mean, interval = summarise(per_seed)
        models[name] = {"per_seed": per_seed, "mean": mean, "interval": interval}
        if name not in REFERENCES:
            models[name]["verdicts"] = {}
    first = next(iter(found.values()))[0]
    misses = {
        name: [values["false_negatives"] for values in per_seed]
        for name, per_seed in found.items()
        if name not in REFERENCES and "false_negatives" in per_seed[0]
    }
    if misses:
        reference = header["reference"]
        keys = {values.get("key", i) for i, values in enumerate(found[reference])}
        one_retrained = reference == RETRAINED and len(keys) == 1 < len(header["seeds"])
        of = verdicts.false_negatives(misses, reference, _sizes(first), one_retrained)
        for name, verdict in of.items():
            models[name]["verdicts"]["false_negatives"] = verdict
    means = {name: model["mean"] for name, model in models.items()}
    accuracies = {
        name: [values["TA"] for values in per_seed]
        for name, per_seed in found.items()
        if name in REFERENCES
    }
    report = {
        "schema": SCHEMA,
        "tuning": {},
        "left_out": {},
        **header,
        "models": models,
        "worse_than_trivial": verdicts.trivial(means) if "risk" in first else {},
        "majority": verdicts.majority(answer, share, accuracies, header["seeds"]),
        "evidence": verdicts.evidence(_sizes(first), header["batch_size"]),
    }
    return cast(Report, report)


def made_elsewhere(found: Mapping[str, Sequence[Values]], machine: Mapping[str, Any]) -> list[str]:
    """Sentences on the models that came from the store and were not trained as here.

    Args:
      found: each model's values by seed, of which "seed" and "made_on" are read.
      machine: the present machine's device, cores and versions.
    """
    others: dict[str, list[str]] = {}
    for name, per_seed in found.items():
        for values in per_seed:
            for made_on in values["made_on"]:
                differences = _differences(made_on, machine)
                if differences:
                    others.setdefault(differences, []).append(f"{name} (seed {values['seed']})")
    return [
        f"Trained on another machine or with other versions ({differences}), where RTE was "
        f"measured: {', '.join(dict.fromkeys(names))}."
        for differences, names in others.items()
    ]


def stopped(found: Mapping[str, Sequence[Values]]) -> list[str]:
    """Sentences on the methods that were stopped by `config.watch.stop`.

    Args:
      found: each model's values by seed, of which "seed" and "watch" are read.
    """
    notes = []
    for name, per_seed in found.items():
        for values in (values for values in per_seed if "watch" in values):
            looks, result = values["watch"]["looks"], values["watch"]["result"]
            if result == len(looks) - 1:
                continue
            what = f"what it had after pass {looks[result]['passes']}"
            if result == 0:
                what = "what it started from, unchanged"
            why = "accuracy on validation had fallen by more than config.watch.tolerance"
            if looks[-1]["VA"] is None:
                why = "logits were no longer finite"
            notes.append(
                f"{name} (seed {values['seed']}) was stopped after pass {looks[-1]['passes']}: its "
                f"{why}. Its result is {what}."
            )
    return notes


def _differences(made_on: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """How a machine differs from the present one, in words; "" where it does not."""
    pairs = [
        (made_on["device"], machine["device"]),
        (f"{made_on['cores']} cores", f"{machine['cores']} cores"),
        tuple(f"convolutions by {one['convolution']}" for one in (made_on, machine)),
        *(
            (f"{package} {version}", f"{package} {machine['versions'].get(package)}")
            for package, version in made_on["versions"].items()
        ),
    ]
    return "; ".join(f"{there}, here {here}" for there, here in pairs if there != here)


def compare(values: Values, reference: Values, *, gaps: bool = True) -> Values:
    """The values with their differences from a reference model's.

    Args:
      values: of `evaluate.evaluate`.
      reference: the reference model's.
      gaps: whether that is retrained, so that `gaps` and `avg_gap` are added. Where there are
        confusion counts, `fn_change` and `fp_change` always are.
    """
    values = dict(values)
    if gaps:
        values["gaps"] = unlearning.gaps(
            values, reference, [name for name in closest() if name in values]
        )
        # Avg Gap = mean over UA, RA, TA, MIA of |value − retrained's value|
        values["avg_gap"] = sum(values["gaps"][name] for name in unlearning.AVG_GAP) / len(
            unlearning.AVG_GAP
        )
    if "counts" in values:
        for name in ("fn", "fp"):
            values[f"{name}_change"] = values["counts"][name] - reference["counts"][name]
    return values


def summarise(per_seed: Sequence[Values]) -> tuple[Values, Values]:
    """Mean and 95% interval `[low, high]` of every value over seeds, nested as the values are.

    Several seeds: t intervals over seeds. One seed, whose spread over seeds is unknown: Wilson
    intervals over examples, of the metrics that name the examples that they are a share of, and
    those that the values have themselves. A value that is None for any seed has None for both.
    """
    mean = _reduce(per_seed, lambda values: float(np.mean(values)))
    if len(per_seed) > 1:
        return mean, _reduce(per_seed, lambda values: list(statistics.t_interval(values)))
    return mean, _wilson_intervals(per_seed[0]) | per_seed[0].get("intervals", {})


def _reduce(per_seed: Sequence[Values], reduce: Callable[[list[float]], Any]) -> Values:
    """One dict of the seeds' dicts: `reduce` of each numeric leaf."""
    reduced: Values = {}
    for name, first in per_seed[0].items():
        if name in NOT_AVERAGED:
            continue
        values: list[Any] = [entry.get(name) for entry in per_seed]
        if any(value is None for value in values):
            reduced[name] = None
        elif isinstance(first, dict):
            reduced[name] = _reduce(values, reduce)
        elif isinstance(first, int | float):
            reduced[name] = reduce(values)
    return reduced


def _sizes(values: Values) -> dict[str, int]:
    """Sizes of the sets that a model is judged on and of test's parts, and numbers of groups."""
    sizes = dict(values["n"])
    if "counts" in values:
        counts = values["counts"]
        sizes |= {"malignant": counts["tp"] + counts["fn"], "benign": counts["tn"] + counts["fp"]}
    groups = values.get("groups") or {}
    return sizes | {f"{name} groups": number for name, number in groups.items()}


def _wilson_intervals(values: Values) -> Values:
    """Wilson intervals of one seed's proportions."""
    sizes = _sizes(values)
    intervals: Values = {}
    for key, metric in METRICS.items():
        if metric.wilson_over is None or key not in values:
            continue
        value, interval = values[key], None
        if value is not None:
            n = sizes[metric.wilson_over]
            whole = 100 / metric.scale  # what is stored where the proportion is 1
            bounds = statistics.wilson(round(value / whole * n), n)
            interval = bounds and [whole * bound for bound in bounds]
        intervals[key] = interval
    return intervals


def merge(
    name: str,
    axes: Sequence[Sequence[Any]],
    points: Sequence[Point],
    reports: Sequence[Report],
) -> Grid:
    """The results of a grid from those of its cells, which are left as they are.

    The mean and interval of each model get `avg_gap_change`: the change of Avg Gap in percent
    against the same model at the first value of the first axis, other settings equal. It is None
    there, for retrained, and where the reference's Avg Gap is 0. Without retrained there is none.

    Args:
      name: the grid's.
      axes: pairs of a field and its values.
      points: one per cell.
      reports: each cell's results.
    """
    cells = [
        cast(
            Cell,
            {
                "point": point.values,
                "labels": point.labels,
                "folder": point.folder,
                **copy.deepcopy(report),
            },
        )
        for point, report in zip(points, reports, strict=True)
    ]
    grid = {
        **_base(name, reports),
        "axes": [[field, list(values)] for field, values in axes],
        "cells": cells,
        "comparisons": [_comparison(cells, positions) for positions in _along_first_axis(cells)],
    }
    return cast(Grid, grid)


def _base(name: str, reports: Sequence[Experiment]) -> Base:
    """What several experiments' results have in common."""
    first = reports[0]
    return {
        "schema": SCHEMA,
        "name": name,
        "seeds": first["seeds"],
        "device": first["device"],
        "cores": first["cores"],
        "versions": first["versions"],
        "convolution": first["convolution"],
        "notes": list(dict.fromkeys(note for report in reports for note in report["notes"])),
    }


def chain(
    name: str, budget: Mapping[str, float], asked: Iterable[Asked], reports: Iterable[Report]
) -> Requests:
    """The results of a sequence of requests from those of its steps, which are left as they are.

    Args:
      name: the sequence's.
      budget: what may be lost against the original, by the key of its metric; 0: anything.
      asked: one per step.
      reports: each step's results.
    """
    steps = [
        cast(Step, {**one._asdict(), **copy.deepcopy(report)})
        for one, report in zip(asked, reports, strict=True)
    ]
    methods = [model for model in steps[0]["models"] if model not in REFERENCES]
    found = {
        method: verdicts.budget([loss for step in steps for loss in _losses(step, method, budget)])
        for method in methods
    }
    allowed = {key: budget[key] for key in LOSES}
    return {**_base(name, steps), "requests": steps, "budget": allowed, "verdicts": found}


# What can have a budget, in the order of its verdicts, with the images that each is of, as
# `verdicts.LEAST` counts them. A distance is of none.
LOSES: dict[str, tuple[str, ...]] = {
    "TA_lost": ("test",),
    "fnr_rise": ("malignant",),
    "risk_rise": ("test", "malignant"),
    "moved": (),
}


def _losses(step: Step, method: str, budget: Mapping[str, float]) -> list[verdicts.Loss]:
    """What a method has lost at a step, of what there is a budget for."""
    model, found = step["models"][method], []
    sizes = _sizes(model["per_seed"][0])
    for key, images in LOSES.items():
        most = budget[key]
        if not most or key not in model["mean"]:
            continue
        names = [each for name in images for each in (name, f"{name} groups")]
        counts = {name: sizes[name] for name in names if name in sizes}
        scenarios = model["mean"][key] if isinstance(model["mean"][key], dict) else [""]
        for scenario in scenarios:
            path = (key, scenario) if scenario else (key,)
            interval, over = _interval(model, path)
            by = dig(model["mean"], path)
            if by == 0 and interval and not verdicts.has_width(interval):
                interval = None  # no answer has changed, of which no spread can be known
            seeds = {"seeds": len(model["per_seed"])} if images and over == "seeds" else {}
            loss = verdicts.Loss(
                request=step["number"],
                because=" ".join(path),
                by=by,
                interval=interval,
                budget=most,
                retrained=dig(step["models"], (RETRAINED, "mean", *path)),
                too_few=verdicts.too_few({**counts, **seeds}),
                over=over,
                exact=not images,
            )
            found.append(loss)
    return found


def _interval(model: Model, path: Sequence[str]) -> tuple[Any, Literal["test images", "seeds"]]:
    """A loss's interval and what it is over: seeds, unless all seeds have the same loss."""
    per_seed, interval = model["per_seed"], dig(model["interval"], path)
    if len(per_seed) == 1:
        return interval, "test images"
    if interval is None or verdicts.has_width(interval):
        return interval, "seeds"
    own = [dig(values.get("intervals", {}), path) for values in per_seed]
    return (None if None in own else min(own)), "test images"


def dig(nested: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value that the keys lead to, None where there is none."""
    value: Any = nested
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _along_first_axis(cells: Sequence[Cell]) -> list[list[int]]:
    """The positions of cells that differ in the first axis only, its first value first."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        groups.setdefault(tuple(cell["labels"].values())[1:], []).append(i)
    return list(groups.values())


def _comparison(cells: Sequence[Cell], positions: list[int]) -> Comparison:
    """One comparison along the first axis; adds its changes of Avg Gap to the cells."""
    first, *others = group = [cells[i] for i in positions]
    field, *rest = first["labels"]
    found: dict[str, verdicts.GapVerdict] = {}
    if all(cell["reference"] == RETRAINED for cell in group):
        for cell in group:
            for name, model in cell["models"].items():
                change: tuple[Any, Any] = None, None
                if cell is not first and name != RETRAINED:
                    change = statistics.percent_change(avg_gaps(cell, name), avg_gaps(first, name))
                model["mean"]["avg_gap_change"], model["interval"]["avg_gap_change"] = change
        for name in first["models"]:
            if others and name not in REFERENCES:
                sizes = [_sizes(cell["models"][name]["per_seed"][0]) for cell in group]
                sets = [each for s in ("forget", "retain", "test") for each in (s, f"{s} groups")]
                found[name] = verdicts.lowest_gap(
                    {cell["labels"][field]: avg_gaps(cell, name) for cell in group},
                    {s: min(n[s] for n in sizes) for s in sets if all(s in n for n in sizes)},
                )
    labels = {each: first["labels"][each] for each in rest}
    return {"labels": labels, "cells": positions, "verdicts": found}


def avg_gaps(cell: Experiment, name: str) -> list[float]:
    """A model's Avg Gap in each seed, in percentage points."""
    return [values["avg_gap"] for values in cell["models"][name]["per_seed"]]


def load(folder: str | Path) -> Results:
    """Reads the results back from a finished run's folder.

    Args:
      folder: the run's `--workdir`, which holds `metrics.json`.

    Raises:
      UserError: there are no results, or they are of another schema.
    """
    path = files.local(folder, "the folder") / "metrics.json"
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise ValueError
        results = json.loads(path.read_text(encoding="utf-8"))
        found = results.get("schema", 1)
    except OSError as error:
        raise UserError(
            f"no results at {path} ({error.strerror}); give the --workdir of a finished run"
        ) from error
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged; rerun the command of that run, which keeps its trained models"
        ) from error
    if found != SCHEMA:
        raise UserError(
            f"{path} has schema {found!r}; allowed: {SCHEMA}; rerun the command of that run, or "
            "read it with the version of jaxunlearn that wrote it"
        )
    return results
