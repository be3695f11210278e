"""The tables as text: one sheet per experiment or sequence, and for a grid one per comparison."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.metrics.clinical import TRIVIAL
from jaxunlearn.metrics.evaluate import METRICS, Metric
from jaxunlearn.metrics.results import (
    ORIGINAL,
    REFERENCES,
    RETRAINED,
    Cell,
    Comparison,
    Experiment,
    Grid,
    Model,
    Requests,
    Results,
    dig,
)
from jaxunlearn.metrics.verdicts import (
    PARTS,
    SIGNIFICANT,
    BudgetVerdict,
    FalseNegativesVerdict,
    GapVerdict,
)

ABSENT = "–"
NO_EVIDENCE = "No reliable difference is not evidence of no difference."
# What there may be few of, in words that follow a number.
COUNTED = {
    "forget": "image{s} to forget",
    "retain": "image{s} to retain",
    "test": "test image{s}",
    "malignant": "malignant test image{s}",
    "benign": "benign test image{s}",
    "forget groups": "group{s} of images to forget",
    "retain groups": "group{s} of images to retain",
    "test groups": "group{s} of test images",
    "malignant groups": "group{s} of malignant test images",
    "seeds": "seed{s}",
}


class Column(NamedTuple):
    """One column of values.

    Attributes:
      header: its name.
      path: keys that lead to the value in a model's mean: the metric's, and the scenario's if any.
      metric: the row of `METRICS` that describes it.
    """

    header: str
    path: tuple[str, ...]
    metric: Metric

    @property
    def rank(self) -> tuple[str, ...]:
        """The keys that lead to what the best method is chosen by: the gap or the value."""
        return ("gaps", *self.path) if self.metric.better == "closest to retrained" else self.path

    def show(self, value: float) -> str:
        """The value in its unit."""
        rounded = round(self.metric.scale * value, self.metric.digits) + 0.0  # -0 becomes 0
        return f"{rounded:.{self.metric.digits}f}"


class Sheet(NamedTuple):
    """The table as text.

    Attributes:
      title: one line.
      header: column names.
      groups: each column's group; columns of a group stay together where they fit.
      rows: cells by row; the first cell is the row's name.
      best: (row, column) of the best value of each column among the methods.
      lines: row numbers that a line goes under.
      notes: how to read it.
      findings: one sentence per method, on its verdict.
    """

    title: str
    header: list[str]
    groups: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    lines: set[int]
    notes: list[str]
    findings: list[str]


def title(report: Experiment) -> str:
    """One line that names the experiment, its data and its split."""
    return f"{report['name']}: {_contents(report)}"


def _contents(report: Experiment) -> str:
    """An experiment's data and split."""
    dataset, split = report["dataset"], report["split"]
    share = f"{split['forget']} of {dataset['train']} training images to forget"
    return f"{data_name(dataset)}, {share}"


def data_name(dataset: dict[str, Any]) -> str:
    """The data set's name, marked if the data are synthetic."""
    plain = not dataset["synthetic"] or "synthetic" in dataset["name"]
    return dataset["name"] if plain else f"{dataset['name']} (synthetic data)"


def make_sheets(report: Results) -> list[Sheet]:
    """The sheet of an experiment or a sequence, or one per comparison along a grid's first axis.

    Args:
      report: see `metrics.results`.
    """
    if "requests" in report:
        return [_requests_sheet(report)]
    if "cells" in report:
        return [_comparison_sheet(report, comparison) for comparison in report["comparisons"]]
    return [_experiment_sheet(report)]


def _experiment_sheet(report: Experiment) -> Sheet:
    """The table of an experiment."""
    models = report["models"]
    methods = [name for name in models if name not in REFERENCES]
    references = [i for i, name in enumerate(models) if name in REFERENCES]
    columns = _columns(models)
    rows = [[name, *(_cell(name, models[name], column) for column in columns)] for name in models]
    findings = _findings(report)
    return Sheet(
        title=title(report),
        header=["", *(column.header for column in columns)],
        groups=["", *(column.metric.group for column in columns)],
        rows=rows + _trivial_rows(models, columns),
        best=_best(models, methods, columns),
        lines={*references[-1:], len(models) - 1},
        notes=[
            *_notes(columns, len(report["seeds"]), len(methods), {"attack": report["attack"]}),
            *_cautions(report),
            *_reliability(report),
            *_reference_note(report),
            *_ranges(models),
            *_worse_than_trivial(report),
            *claims(models),
        ],
        findings=findings,
    )


def _comparison_sheet(grid: Grid, comparison: Comparison) -> Sheet:
    """A grid's table along its first axis: every model at each of its values."""
    field = grid["axes"][0][0]
    cells = [grid["cells"][i] for i in comparison["cells"]]
    first = cells[0]
    models, names, lines = _stacked({cell["labels"][field]: cell for cell in cells})
    # Values by scenario and costs are in the tables of the cells.
    columns = [c for c in _columns(models) if len(c.path) == 1 and c.metric.group != "cost"]
    methods = [row for row in models if names[row] not in REFERENCES]
    where = f"{field}={first['labels'][field]}"
    attacks = " or ".join(dict.fromkeys(cell["attack"] for cell in cells))
    notes = _notes(columns, len(grid["seeds"]), len(methods), {"attack": attacks, "first": where})
    found = comparison["verdicts"]
    if any(verdict["interval"] is not None for verdict in found.values()):
        notes.append(
            '"Reliably" means that the 95% interval over seeds excludes 0; it is corrected for the '
            f"number of values, not for that of methods or of tables. {NO_EVIDENCE}"
        )
    rest = "".join(f", {each}={label}" for each, label in comparison["labels"].items())
    return Sheet(
        title=_comparison_title(grid["name"], cells) + rest,
        header=["", *(column.header for column in columns)],
        groups=["", *(column.metric.group for column in columns)],
        rows=[[row, *(_cell(names[row], models[row], c) for c in columns)] for row in models],
        best=_best(models, methods, columns),
        lines=lines,
        notes=[
            *notes,
            *_where(
                field,
                {
                    cell["labels"][field]: [*_cautions(cell), *_reference_note(cell)]
                    for cell in cells
                },
            ),
            *claims(models),
        ],
        findings=[_gap_finding(name, field, verdict) for name, verdict in found.items()],
    )


def _stacked(
    reports: Mapping[str, Experiment],
) -> tuple[dict[str, Model], dict[str, str], set[int]]:
    """The models of several experiments by row, their names, and the last rows of each."""
    models: dict[str, Model] = {}
    names: dict[str, str] = {}
    lines = set()
    for label, report in reports.items():
        for name, model in report["models"].items():
            row = f"{label} · {name}"
            models[row], names[row] = model, name
        lines.add(len(models) - 1)
    return models, names, lines


def _requests_sheet(report: Requests) -> Sheet:
    """The table of a sequence: every model after each of its requests."""
    steps = {str(step["number"]): step for step in report["requests"]}
    first, *_, last = [*steps.values(), *steps.values()]
    models, names, lines = _stacked(steps)
    # The others are in the tables of the steps.
    columns = [
        column
        for column in _columns(models)
        if column.metric.group == "drift"
        or (len(column.path) == 1 and column.metric.group != "cost")
    ]
    counts = ", ".join(f"{step['new']} at request {number}" for number, step in steps.items())
    return Sheet(
        title=f"{report['name']}: {_contents(last)} in {len(steps)} requests",
        header=["", *(column.header for column in columns)],
        groups=["", *(column.metric.group for column in columns)],
        rows=[[row, *(_cell(names[row], models[row], c) for c in columns)] for row in models],
        best=set(),
        lines=lines,
        notes=[
            f"Rows are request · model. Images to forget: {counts}. Methods start from their own "
            "result of the request before; all values but UA new are of everything forgotten so "
            "far.",
            *_notes(columns, len(report["seeds"]), 1, {"attack": first["attack"]}),
            *_where("request", {number: _cautions(step) for number, step in steps.items()}),
            *_reference_note(first),
            *claims(models),
            *_budget_note(report, columns),
        ],
        findings=[_budget_finding(name, verdict) for name, verdict in report["verdicts"].items()],
    )


def _budget_note(report: Requests, columns: list[Column]) -> list[str]:
    """What may be lost, and what follows where more is."""
    shown = {column.path[0] for column in columns}
    allowed = [
        f"{METRICS[key].header} {most:g}"
        for key, most in report["budget"].items()
        if most and key in shown
    ]
    if not allowed:
        return ["There is no budget for what may be lost, so no verdict is more than keep."]
    return [
        f'Budget: {", ".join(allowed)}. "Retrain" means that a loss is above its budget and its '
        '95% interval above 0; "unclear" that it is above its budget, but may be chance; "keep" '
        "that none is above its budget, which is no evidence that nothing was lost."
    ]


def _budget_finding(name: str, verdict: BudgetVerdict) -> str:
    """One sentence on whether a method has lost more than its budget."""
    unknown = ""
    if verdict["unknown"]:
        unknown = f" Unknown at some request: {', '.join(map(_loss, verdict['unknown']))}."
    keep = ""
    if verdict["verdict"] == "keep":
        known = "known " * bool(unknown)
        keep = f"{name}: keep: no {known}loss is above its budget at any request."
    if verdict["because"] is None:
        return f"{keep}{unknown}"
    metric = METRICS[verdict["because"].partition(" ")[0]]
    by, most = f"{verdict['by']:.{metric.digits}f} {metric.unit}", f"{verdict['budget']:g}"
    interval = ""
    if verdict["interval"] is not None:
        low, high = (f"{bound:+.{metric.digits}f}" for bound in verdict["interval"])
        interval = f" (95% interval over {verdict['over']} {low} to {high})"
    few = f"; too few to decide by ({_counted(verdict['too_few'])})" * bool(verdict["too_few"])
    reference = ""
    if verdict["retrained"] is not None:
        reference = f"; retrained's is {verdict['retrained']:.{metric.digits}f}"
    if keep:
        return (
            f"{keep} It may be largest for {_loss(verdict['because'])} at request "
            f"{verdict['request']}: {by}{interval}, budget {most}{reference}{few}.{unknown}"
        )
    return (
        f"{name}: {verdict['verdict']} at request {verdict['request']}: "
        f"{_loss(verdict['because'])} is {by}{interval}, above the budget of "
        f"{most}{reference}{few}.{unknown}"
    )


def _loss(because: str) -> str:
    """The header of a loss that a verdict names by its key and scenario."""
    key, _, scenario = because.partition(" ")
    return f"{METRICS[key].header} {scenario}".strip()


def _comparison_title(name: str, cells: list[Cell]) -> str:
    """The title of an experiment where the cells share one, else the names of their data."""
    contents = dict.fromkeys(map(_contents, cells))
    if len(contents) > 1:
        contents = dict.fromkeys(data_name(cell["dataset"]) for cell in cells)
    return f"{name}: {', '.join(contents)}"


def _columns(models: Mapping[str, Model]) -> list[Column]:
    """A column for each metric with a header that any model has, by group."""
    columns = []
    has_gaps = any("gaps" in model["mean"] for model in models.values())
    for key, metric in METRICS.items():
        found = [model["mean"][key] for model in models.values() if key in model["mean"]]
        if not metric.header or not found or (metric.instead and has_gaps):
            continue
        if not metric.always and all(value is None for value in found):
            continue
        if isinstance(found[0], dict):
            for scenario in found[0]:
                columns.append(Column(f"{metric.header} {scenario}", (key, scenario), metric))
        else:
            columns.append(Column(metric.header, (key,), metric))
    groups = list(dict.fromkeys(metric.group for metric in METRICS.values()))
    return sorted(columns, key=lambda column: groups.index(column.metric.group))


def _cell(name: str, model: Model, column: Column) -> str:
    """A value, ± half its interval over several seeds, and in parentheses its gap if it has one."""
    value = dig(model["mean"], column.path)
    if value is None:
        return ABSENT
    text = column.show(value)
    interval = dig(model["interval"], column.path)
    if interval is not None and len(model["per_seed"]) > 1:
        text += f"±{column.show((interval[1] - interval[0]) / 2)}"
    gap = dig(model["mean"], column.rank)
    if column.rank != column.path and gap is not None and name != RETRAINED:
        text += f" ({column.show(gap)})"
    return text


def _best(
    models: Mapping[str, Model], methods: list[str], columns: list[Column]
) -> set[tuple[int, int]]:
    """Where each column's best value among the methods stands, equal to the decimals shown."""
    best = set()
    for j, column in enumerate(columns, start=1):
        ranks = {name: dig(models[name]["mean"], column.rank) for name in methods}
        sign = -1 if column.metric.better == "higher" else 1
        shown = {
            name: sign * round(column.metric.scale * rank, column.metric.digits)
            for name, rank in ranks.items()
            if rank is not None and column.metric.better
        }
        if len(shown) > 1:
            least = min(shown.values())
            best |= {(i, j) for i, name in enumerate(models) if shown.get(name) == least}
    return best


def _trivial_rows(models: Mapping[str, Model], columns: list[Column]) -> list[list[str]]:
    """Rows for the answers that never see the image, where a column knows their values."""
    mean = next(iter(models.values()))["mean"]  # the same of every model, on one test set
    rows = []
    for i, answer in enumerate(TRIVIAL):
        cells = []
        for column in columns:
            value = None if column.metric.trivial is None else column.metric.trivial[i]
            if isinstance(value, str):
                value = dig(mean, (value, *column.path[1:]))
            elif value is not None and dig(mean, column.path) is None:
                cells.append(ABSENT)  # a rate of no images, whatever the answer
                continue
            cells.append("" if value is None else column.show(value))
        rows.append([answer, *cells])
    return rows if any(column.metric.trivial for column in columns) else []


def _notes(columns: list[Column], seeds: int, num_methods: int, words: dict[str, str]) -> list[str]:
    """How to read the table; `words` fill the metrics' notes."""
    by_unit: dict[str, list[str]] = {}
    explained: dict[str, None] = {}
    for column in columns:
        if column.metric.note:
            explained[column.metric.note.format(**words)] = None
        else:
            by_unit.setdefault(column.metric.unit, []).append(column.header)
    units = [f"{', '.join(headers)} in {unit}" for unit, headers in by_unit.items()]
    notes = ["; ".join([*units, *explained]) + "."]
    if num_methods > 1:
        notes += _marks(columns)
    if seeds > 1:
        notes.append(
            f"{seeds} seeds: mean ± half the 95% t interval over seeds; differences are taken "
            "within each seed, then averaged."
        )
    else:
        notes.append("One seed: no ± over seeds; metrics.json has Wilson intervals of proportions.")
    return notes


def _marks(columns: list[Column]) -> list[str]:
    """Which value of each column is marked as the best."""
    ranked: dict[str, list[str]] = {"closest to retrained": [], "higher": [], "lower": []}
    has_gaps = any(column.path == ("avg_gap",) for column in columns)
    for column in columns:
        better = column.metric.better
        if better and (has_gaps or better != "closest to retrained"):
            ranked[better].append(column.header)
    *others, lowest = ranked.values()
    named = len(lowest) + sum(map(len, others)) < len(columns) or not any(others)
    parts = [
        f"{word} for {', '.join(headers)}"
        for word, headers in zip(("closest to retrained", "highest"), others, strict=True)
        if headers
    ]
    if lowest:
        parts.append(f"lowest for {', '.join(lowest) if named else 'the rest'}")
    return [f"* marks the best method per column: {'; '.join(parts)}."] if parts else []


def cautions(report: Experiment) -> list[str]:
    """How far findings can be trusted."""
    return [*_cautions(report), *_worse_than_trivial(report), *_reliability(report)]


def _cautions(report: Experiment) -> list[str]:
    """What the values are of, and how far they can be trusted."""
    cautions = [*_forgotten_classes(report), *_majority(report), *_evidence(report)]
    if too_narrow(report):
        cautions.append(
            "Wilson intervals take images of one group for independent, and are too narrow where "
            "these are alike."
        )
    return cautions


def too_narrow(report: Experiment) -> bool:
    """Whether there are intervals over images, and several of one group among these."""
    values = next(iter(report["models"].values()))["per_seed"][0]
    groups, sizes = values.get("groups") or {}, values["n"]
    alike = any(groups[name] < sizes[name] for name in groups.keys() & sizes.keys())
    return len(report["seeds"]) == 1 and alike


def _where(field: str, cautions: Mapping[str, list[str]]) -> list[str]:
    """Cautions by the field's values, each with those that it is for unless it is for all."""
    found: dict[str, list[str]] = {}
    for label, notes in cautions.items():
        for note in notes:
            found.setdefault(note, []).append(label)
    return [
        note if len(labels) == len(cautions) else f"At {field}={', '.join(labels)}: {note}"
        for note, labels in found.items()
    ]


def _forgotten_classes(report: Experiment) -> list[str]:
    """Which classes were forgotten whole, and on which images that leaves the models judged."""
    names = report["split"].get("forgotten_classes", [])
    if not names:
        return []
    dataset, mean = report["dataset"], next(iter(report["models"].values()))["mean"]
    judged, apart = (round(mean["n"][which]) for which in ("test", "test_forgotten"))
    clinical = " and the clinical values" if "counts" in mean else ""
    notes = [
        f"Forgotten whole: {', '.join(names)}. TA, MIA (its non-members){clinical} are over the "
        f"{judged} of {dataset['test']} test images of other classes; "
        + (
            f"TA forgotten is the accuracy on the other {apart}."
            if apart
            else "no test image is of a forgotten class."
        )
    ]
    if clinical:
        notes += _malignant_left(names, dataset, mean)
    return notes


def _malignant_left(
    names: list[str], dataset: Mapping[str, Any], mean: Mapping[str, Any]
) -> list[str]:
    """What the clinical values say where classes were forgotten whole."""
    malignant = [dataset["class_names"][label] for label in dataset["malignant"]]
    gone = [name for name in names if name in malignant]
    notes = []
    if gone:
        notes.append(
            "A forgotten malignant class can be neither missed nor found: images of "
            f"{', '.join(gone)} enter no clinical value."
        )
    counts = mean["counts"]
    if counts["tp"] + counts["fn"] == 0:
        notes.append(
            "No malignant image is left to judge on: FNR is undefined, and Risk counts only false "
            "alarms."
        )
    if counts["tn"] + counts["fp"] == 0:
        notes.append(
            "No benign image is left to judge on: FPR is undefined, and Risk counts only missed "
            "lesions."
        )
    return notes


def _majority(report: Experiment) -> list[str]:
    """The reference models that learned no more than which class is the largest."""
    found = report["majority"]
    names = report["dataset"].get("class_names")
    answer = names[found["answer"]] if names else f"class {found['answer']}"
    if found["share"] == 100:
        return [
            f"All test images judged on are of one class, {answer}: their accuracy cannot tell a "
            "model that learned something from one that always answers so."
        ]
    notes = []
    for name, seeds in found["no_better"].items():
        where = ""
        if len(seeds) < len(report["seeds"]):
            where = f" (seed {', '.join(map(str, seeds))})"
        so = ", so there may be nothing to forget"
        if name == report["reference"]:
            so = ", and differences from such a model mean nothing"
        notes.append(
            f"{name}{where} answers no more test images rightly than always answering {answer} "
            f"would ({found['share']:.2f}%): its accuracy cannot be told from that of a model that "
            f"learned nothing{so}."
        )
    return notes


def _evidence(report: Experiment) -> list[str]:
    """Of which images there are few."""
    found, notes = report["evidence"], []
    if found["small"]:
        notes.append(
            f"Few images: {_counted(found['small'])}. A rate over fewer than {found['least']} may "
            "be off by more than 20 points either way."
        )
    if found["one_step"]:
        notes.append(
            f"The {report['split']['retain']} images to retain fit in one batch of "
            f"{report['batch_size']}: an epoch of training on them is a single step."
        )
    return notes


def _too_few(counts: Mapping[str, int]) -> str:
    """Why nothing is decided, as the middle of a sentence; "" where there is enough."""
    return f"too few to decide by ({_counted(counts)}), so " if counts else ""


def _counted(counts: Mapping[str, int]) -> str:
    """Numbers with what they count."""
    return ", ".join(
        f"{count} {COUNTED[name].format(s='' if count == 1 else 's')}"
        for name, count in counts.items()
    )


def _reliability(report: Experiment) -> list[str]:
    """The meaning of "reliably" in the findings on false negatives."""
    found = [each for each in _false_negatives(report).values() if each["by"] is not None]
    if not found:
        return []
    images = f"{'groups of ' * _by_group(report['models'])}test images"
    if len(report["seeds"]) == 1:
        images += ", for this one training per model"
    else:
        images += " in every seed, for these trainings"
    words = {"seeds": "seeds", "test images": images}
    over = " or ".join(words[each] for each in words if each in {v["over"] for v in found})
    numbers = {verdict["corrected_for"] for verdict in found}
    corrected = (
        f", with p-values Holm-corrected over the {max(numbers)} methods"
        if max(numbers) > 1
        else ""
    )
    note = f'"Reliably" means significant at the 5% level across {over}{corrected}. {NO_EVIDENCE}'
    if len(report["seeds"]) == 1:
        return [note]
    levels = ", ".join(f"over {each} at {100 * SIGNIFICANT * PARTS[each]:g}%" for each in PARTS)
    return [f"{note} It is tested {levels}; each p is scaled to 5%."]


def _reference_note(report: Experiment) -> list[str]:
    """The consequences of there being no retrained model."""
    if report["reference"] == RETRAINED:
        return []
    instead = ""
    if report["reference"] == ORIGINAL and _false_negatives(report):
        instead = "; false negatives are compared with the original's instead"
    unseen = any(
        metric.instead and model["mean"].get(key) is not None
        for key, metric in METRICS.items()
        for model in report["models"].values()
    )
    place = (
        "Δ, against unseen images, stands in their place."
        if unseen
        else "No validation or test image of these classes is unseen (those of train's groups are "
        "not), so that nothing stands in their place."
    )
    return [f"Without a retrained model there are no gaps and no Avg Gap{instead}. {place}"]


def _ranges(models: Mapping[str, Model]) -> list[str]:
    """The notes of metrics that have no column, with their range over the models."""
    notes = []
    for key, metric in METRICS.items():
        if metric.header or not metric.note:
            continue
        values = [model["mean"].get(key) for model in models.values()]
        known = [metric.scale * value for value in values if value is not None]
        if known:
            low, high = (f"{value:.{metric.digits}f}" for value in (min(known), max(known)))
            notes.append(metric.note.format(low=low, high=high))
    return notes


def _worse_than_trivial(report: Experiment) -> list[str]:
    """For each scenario, the models that do worse than an answer that never sees the image."""
    lines = []
    for scenario, found in report["worse_than_trivial"].items():
        if found["worse"]:
            every = len(found["worse"]) == len(report["models"])
            whom = "every model" if every else ", ".join(found["worse"])
            path = ("mean", "risk_at_threshold", scenario)
            chosen = ""
            if any(dig(model, path) is not None for model in report["models"].values()):
                chosen = (
                    " metrics.json has the risk at a threshold chosen for these costs "
                    "(risk_at_threshold)."
                )
            lines.append(
                f'At {scenario}, the answer "{found["answer"]}" has risk {found["risk"]:.3f}, less '
                f"than {whom}.{chosen}"
            )
    return lines


def claims(models: Mapping[str, Model]) -> list[str]:
    """The methods' claims about their own results."""
    notes = []
    for name, model in models.items():
        texts = {}
        for values in model["per_seed"]:
            if text := _worded(values.get("claims") or {}):
                texts[values.get("seed")] = text
        if len(set(texts.values())) == 1 and len(texts) == len(model["per_seed"]):
            notes.append(f"{name} claims {next(iter(texts.values()))}")
        else:
            notes += [f"{name} (seed {seed}) claims {text}" for seed, text in texts.items()]
    return notes


def _worded(claims: Mapping[str, Any]) -> str:
    """Claims in a sentence, and their caveat after it; sections are left to metrics.json."""
    values = {key: value for key, value in claims.items() if not isinstance(value, Mapping)}
    caveat = values.pop("caveat", "")
    said = ", ".join(f"{key} {_claim(value)}" for key, value in values.items())
    return f"{said}. {caveat}".rstrip() if said else caveat


def _claim(value: Any) -> str:
    """A claimed value: a number without trailing zeros, else as JSON has it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or isinstance(value, str):
        return f"{value:g}" if number else value
    return json.dumps(value, ensure_ascii=False)


def _false_negatives(report: Experiment) -> dict[str, FalseNegativesVerdict]:
    """The methods' verdicts on false negatives, where there are any."""
    found = {name: model.get("verdicts", {}) for name, model in report["models"].items()}
    return {
        name: verdicts["false_negatives"]
        for name, verdicts in found.items()
        if "false_negatives" in verdicts
    }


def _by_group(models: Mapping[str, Model]) -> bool:
    """Whether test images have groups, so that these and not the images are compared."""
    return "test" in (next(iter(models.values()))["per_seed"][0].get("groups") or {})


def _findings(report: Experiment) -> list[str]:
    """A sentence per method on its false negatives."""
    return [
        _finding(name, report["models"][name], verdict)
        for name, verdict in _false_negatives(report).items()
    ]


def _finding(name: str, model: Model, verdict: FalseNegativesVerdict) -> str:
    """One sentence on false negatives against the reference, hedged by its test."""
    first, seeds = model["per_seed"][0]["false_negatives"], len(model["per_seed"])
    change = verdict["by"]
    if change is None:
        judged = " judged on" * ("test_forgotten" in model["mean"].get("n", {}))
        return (
            f"{name}: no test image{judged} is malignant, so nothing is known of its false "
            "negatives."
        )
    missed, digits, over = model["mean"]["false_negatives"]["missed"], 0, ""
    by_group = " by group" * _by_group({name: model})
    detail = (
        f"{first['newly_missed']} newly missed, {first['newly_found']} newly found; exact McNemar"
        f"{by_group} "
    )
    if seeds > 1:
        digits, over, detail = 1, f", mean of {seeds} seeds", "the same difference in every seed; "
        if verdict["interval"] is not None:
            low, high = verdict["interval"]
            detail = f"95% t interval over seeds {low:+.1f} to {high:+.1f}; "
        if verdict["over"] == "test images":
            detail += f"by exact McNemar{by_group} in every seed, "
    detail += f"p = {verdict['p']:.2g}"
    if verdict["p_corrected"] is not None and verdict["corrected_for"] > 1:
        detail += f", Holm-corrected {verdict['p_corrected']:.2g}"
    more = "more" if change > 0 else "fewer"
    than = f"{abs(change):.{digits}f} {more} than" if round(change, digits) else "as many as"
    decided = verdict["verdict"] in ("more", "fewer")
    return (
        f"{name} misses {missed:.{digits}f} of {first['n_malignant']} malignant test images{over}, "
        f"{than} {verdict['reference']} ({detail}): {_too_few(verdict['too_few'])}"
        f"{'reliably ' * decided}{verdict['verdict']}. "
        f"False alarms: {model['mean']['fp_change']:+.{digits}f}."
    )


def _gap_finding(name: str, field: str, verdict: GapVerdict) -> str:
    """One sentence on where a method's Avg Gap is lowest along an axis, hedged by its interval."""
    reference, number = verdict["reference"], verdict["corrected_for"]
    if verdict["by"] is None:
        return f"{name}: the change of Avg Gap is undefined because Avg Gap is 0 at {reference}."
    where = f"{field}={verdict['at']}"
    text = f"{name}: Avg Gap changes by {verdict['by']:+.1f}% from {reference} to {where}"
    text += f", the lowest of {number} values" if number > 1 else ""
    if verdict["interval"] is None:
        return f"{text}; with one seed there is no interval."
    low, high = verdict["interval"]
    corrected = f", corrected for {number} comparisons" if number > 1 else ""
    decided = verdict["verdict"] in ("lower", "higher")
    return (
        f"{text} (95% interval {low:+.1f} to {high:+.1f}{corrected}): "
        f"{_too_few(verdict['too_few'])}{'reliably ' * decided}{verdict['verdict']}."
    )
