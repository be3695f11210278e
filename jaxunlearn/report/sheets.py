"""What the tables say, as text: one sheet an experiment, and of a grid one for each comparison."""

from typing import Any, NamedTuple

from jaxunlearn.grid import avg_gaps, comparisons, value_name
from jaxunlearn.metrics.statistics import LEVEL, percent_change
from jaxunlearn.metrics.unlearning import GAPS

ABSENT = "–"
REFERENCES = ("original", "retrained")


class Column(NamedTuple):
    """One column of values.

    Attributes:
      header: its name.
      path: keys that lead to the value in a model's mean.
      rank: keys that lead to what is best when smallest.
      scale: what the value is multiplied by.
      digits: decimals shown.
    """

    header: str
    path: tuple[str, ...]
    rank: tuple[str, ...]
    scale: float = 1.0
    digits: int = 2


class Sheet(NamedTuple):
    """The table as text.

    Attributes:
      title: one line.
      header: column names.
      rows: cells by row; the first cell is the row's name.
      best: (row, column) of the best value of each column among the methods.
      lines: row numbers that a line goes under.
      notes: how to read it.
      findings: a sentence for each method on its false negatives.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    lines: set[int]
    notes: list[str]
    findings: list[str]


def title(metrics: dict[str, Any]) -> str:
    """One line that names the experiment, its data and its split."""
    dataset, split = metrics["dataset"], metrics["split"]
    share = f"{split['forget']} of {dataset['train']} training images to forget"
    return f"{metrics['name']}: {_data_name(dataset)}, {share}"


def _data_name(dataset: dict[str, Any]) -> str:
    """The data set's name, which says so if it is synthetic."""
    plain = not dataset["synthetic"] or "synthetic" in dataset["name"]
    return dataset["name"] if plain else f"{dataset['name']} (synthetic data)"


def dig(nested: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value that the keys lead to, None where there is none."""
    value: Any = nested
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def make_sheets(metrics: dict[str, Any]) -> list[Sheet]:
    """The sheet of an experiment, or those of a grid: one for each comparison along its first axis.

    Args:
      metrics: what `metrics.json` holds.
    """
    if "cells" in metrics:
        return [_comparison_sheet(metrics, entries) for entries in comparisons(metrics["cells"])]
    return [_experiment_sheet(metrics)]


def _experiment_sheet(metrics: dict[str, Any]) -> Sheet:
    """Everything that the table of an experiment says."""
    models = metrics["models"]
    retrained = models["retrained"]["mean"]
    clinical = "counts" in retrained
    columns = _columns(retrained)
    rows = [[name, *(_cell(name, models[name], column) for column in columns)] for name in models]
    methods = [name for name in models if name not in REFERENCES]
    notes = _notes(metrics, columns, len(methods))
    return Sheet(
        title=title(metrics),
        header=["", *(column.header for column in columns)],
        rows=rows + (_trivial_rows(retrained, columns) if clinical else []),
        best=_best(models, methods, columns),
        lines={list(models).index("retrained"), len(models) - 1},
        notes=notes + _spread(models) + (_beaten_by_trivial(models) if clinical else []),
        findings=[_finding(name, models[name]) for name in methods] if clinical else [],
    )


def _comparison_sheet(metrics: dict[str, Any], entries: list[dict[str, Any]]) -> Sheet:
    """A grid's table along its first axis: every model at each of its values."""
    field = metrics["axes"][0][0]
    first, *others = entries
    retrained = first["models"]["retrained"]["mean"]
    columns = [c for c in _columns(retrained) if c.header in (*GAPS, "Avg Gap", "FNR", "FPR")]
    change = Column("Change %", ("avg_gap_change",), ("avg_gap_change",), digits=1)
    columns.insert(len(GAPS) + 1, change)
    models, rows, methods, lines = {}, [], [], set()
    for entry in entries:
        for name, model in entry["models"].items():
            row = f"{value_name(entry['point'][field])} · {name}"
            models[row] = model
            rows.append([row, *(_cell(name, model, column) for column in columns)])
            if name not in REFERENCES:
                methods.append(row)
        lines.add(len(rows) - 1)
    rest = "".join(f", {f}={value_name(v)}" for f, v in first["point"].items() if f != field)
    reference = value_name(first["point"][field])
    notes = [
        *_notes(
            {**metrics, "attack": " or ".join(dict.fromkeys(e["attack"] for e in entries))},
            columns,
            len(methods),
        ),
        f"Change %: of Avg Gap against {field}={reference} (the ratio of the means over seeds); "
        "below 0 is nearer to retrained.",
    ]
    names = [name for name in first["models"] if name not in REFERENCES]
    return Sheet(
        title=_comparison_title(metrics["name"], entries) + rest,
        header=["", *(column.header for column in columns)],
        rows=rows,
        best=_best(models, methods, columns),
        lines=lines,
        notes=notes,
        findings=[_nearest(name, field, first, others) for name in names] if others else [],
    )


def _comparison_title(name: str, entries: list[dict[str, Any]]) -> str:
    """The title of an experiment where its entries have one, else the names of their data."""
    titles = {title({**entry, "name": name}) for entry in entries}
    if len(titles) == 1:
        return titles.pop()
    datasets = dict.fromkeys(_data_name(entry["dataset"]) for entry in entries)
    return f"{name}: {', '.join(datasets)}"


def _nearest(name: str, field: str, first: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """Where a method's Avg Gap fell most against the first entry's, and how reliably."""
    reference = value_name(first["point"][field])
    known = [e for e in others if e["models"][name]["mean"]["avg_gap_change"] is not None]
    if not known:
        return f"{name}: no change of Avg Gap to tell, for it is 0 at {reference}."
    best = min(known, key=lambda entry: entry["models"][name]["mean"]["avg_gap_change"])
    change, interval = percent_change(
        avg_gaps(best, name),
        avg_gaps(first, name),
        level=1 - (1 - LEVEL) / len(known),  # Bonferroni: the best of several is chosen
    )
    where = f"{field}={value_name(best['point'][field])}"
    text = f"{name}: Avg Gap changes by {change:+.1f}% from {reference} to {where}"
    text += f", the most of {len(known)} values" if len(known) > 1 else ""
    if interval is None:
        return f"{text}; one seed says nothing of its spread."
    low, high = max(interval[0], -100.0), interval[1]
    verdict = "lower" if high < 0 else "higher" if low > 0 else None
    reliable = f"reliably {verdict}" if verdict and low < high else "no reliable difference"
    corrected = f", corrected for {len(known)} comparisons" if len(known) > 1 else ""
    return f"{text} (95% interval {low:+.1f} to {high:+.1f}{corrected}): {reliable}."


def _columns(mean: dict[str, Any]) -> list[Column]:
    """The columns; clinical ones only where the values have them."""
    columns = [Column(name, (name,), ("gaps", name)) for name in GAPS]
    columns.append(Column("Avg Gap", ("avg_gap",), ("avg_gap",)))
    if "counts" in mean:
        columns += [Column(name.upper(), (name,), (name,), scale=100) for name in ("fnr", "fpr")]
        paths = [("risk", scenario) for scenario in mean["risk"]]
        columns += [Column(f"Risk {path[1]}", path, path, digits=3) for path in paths]
    return [*columns, Column("RTE", ("RTE",), ("RTE",), digits=1)]


def _cell(name: str, model: dict[str, Any], column: Column) -> str:
    """A value, ± half its interval over several seeds, and in brackets its gap if it has one."""
    value = dig(model["mean"], column.path)
    if value is None:
        return ABSENT
    text = f"{column.scale * value:.{column.digits}f}"
    interval = dig(model["interval"], column.path)
    if interval is not None and len(model["per_seed"]) > 1:
        text += f"±{column.scale * (interval[1] - interval[0]) / 2:.{column.digits}f}"
    if column.rank != column.path and name != "retrained":
        text += f" ({dig(model['mean'], column.rank):.{column.digits}f})"
    return text


def _best(
    models: dict[str, Any], methods: list[str], columns: list[Column]
) -> set[tuple[int, int]]:
    """Where each column's smallest value among the methods stands, equal to the decimals shown."""
    best = set()
    for j, column in enumerate(columns, start=1):
        ranks = {name: dig(models[name]["mean"], column.rank) for name in methods}
        shown = {
            name: round(column.scale * rank, column.digits)
            for name, rank in ranks.items()
            if rank is not None
        }
        if len(shown) > 1:
            least = min(shown.values())
            best |= {(i, j) for i, name in enumerate(models) if shown.get(name) == least}
    return best


def _trivial_rows(mean: dict[str, Any], columns: list[Column]) -> list[list[str]]:
    """Rows for calling no image malignant, and for calling every image malignant."""
    rows = []
    for name, fnr, fpr in (("none", 1, 0), ("all", 0, 1)):
        known = {"fnr": fnr, "fpr": fpr, "risk": mean[f"risk_treat_{name}"]}
        values = [dig(known, column.path) for column in columns]
        cells = [
            "" if value is None else f"{column.scale * value:.{column.digits}f}"
            for column, value in zip(columns, values, strict=True)
        ]
        rows.append([f"treat {name}", *cells])
    return rows


def _notes(metrics: dict[str, Any], columns: list[Column], num_methods: int) -> list[str]:
    """How to read the table."""
    seeds, headers = len(metrics["seeds"]), [column.header for column in columns]
    clinical = "FNR" in headers
    parts = [
        f"UA, RA, TA, MIA ({metrics['attack']} attack){', FNR, FPR' if clinical else ''} in %",
        "in brackets the absolute difference to retrained, whose mean is Avg Gap",
    ]
    if any(header.startswith("Risk") for header in headers):
        parts.append("Risk: cost per test image at costs C_FN:C_FP")
    if "RTE" in headers:
        parts.append("RTE in seconds, compile time apart")
    notes = ["; ".join(parts) + "."]
    if num_methods > 1:
        notes.append(
            "* marks the best value of a method: nearest to retrained in UA, RA, TA and MIA, else "
            "smallest."
        )
    if seeds > 1:
        notes.append(
            f"{seeds} seeds: mean ± half the 95% t interval over seeds; differences are taken "
            "within each seed, then averaged."
        )
    else:
        notes.append("One seed: no ± over seeds; metrics.json has Wilson intervals of proportions.")
    if clinical and num_methods:
        over = "seeds" if seeds > 1 else "test images, for this one training of each model"
        notes.append(
            f"Reliable is meant at the 5% level over {over}, and for each method alone; where no "
            "difference is reliable, there may still be one."
        )
    return notes


def _spread(models: dict[str, Any]) -> list[str]:
    """How far MIA hangs on the examples that the attack learns from."""
    spreads = [model["mean"].get("MIA_spread") for model in models.values()]
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return []
    return [
        "MIA depends on which examples the attack learns from: over resamples of these its "
        f"standard deviation is {min(known):.1f} to {max(known):.1f} points (MIA_spread in "
        "metrics.json)."
    ]


def _beaten_by_trivial(models: dict[str, Any]) -> list[str]:
    """For each scenario, the models that do worse than an answer that never sees the image."""
    lines = []
    mean = models["retrained"]["mean"]
    for scenario in mean["risk"]:
        ratios = {name: dig(models[name]["mean"], ("risk_ratio", scenario)) for name in models}
        beaten = [name for name, ratio in ratios.items() if ratio is not None and ratio > 1]
        if beaten:
            risks = {
                "no": mean["risk_treat_none"][scenario],
                "every": mean["risk_treat_all"][scenario],
            }
            word, risk = min(risks.items(), key=lambda item: item[1])
            whom = "every model" if len(beaten) == len(models) else ", ".join(beaten)
            lines.append(
                f"At {scenario}, calling {word} image malignant has risk {risk:.3f}, less than "
                f"{whom}. The risk at a threshold made for these costs is risk_at_threshold in "
                "metrics.json."
            )
    return lines


def _finding(name: str, model: dict[str, Any]) -> str:
    """What became of retrained's false negatives, with no more certainty than the data give."""
    per_seed = [entry["false_negatives"] for entry in model["per_seed"]]
    first, seeds = per_seed[0], len(per_seed)
    n = first["n_malignant"]
    if n == 0:
        return f"{name}: no test image is malignant, so nothing is known of its false negatives."
    if seeds == 1:
        missed, digits, over = first["missed"], 0, ""
        change = missed - first["missed_reference"]
        detail = (
            f"{first['newly_missed']} newly missed, {first['newly_found']} newly found; "
            f"exact McNemar p = {first['p_value']:.2g}"
        )
        reliable = first["p_value"] < 0.05
    else:
        missed, digits = model["mean"]["false_negatives"]["missed"], 1
        over = f", mean of {seeds} seeds"
        change, (low, high) = model["mean"]["fn_change"], model["interval"]["fn_change"]
        detail = f"95% t interval over seeds {low:+.1f} to {high:+.1f}"
        # Equal counts in all seeds give an interval of no width, which is no evidence.
        reliable = low < high and not low <= 0 <= high
    more = "more" if change > 0 else "fewer"
    than = f"{abs(change):.{digits}f} {more} than" if round(change, digits) else "as many as"
    verdict = f"reliably {more}" if reliable else "no reliable difference"
    return (
        f"{name} misses {missed:.{digits}f} of {n} malignant test images{over}, {than} retrained "
        f"({detail}): {verdict}. False alarms: {model['mean']['fp_change']:+.{digits}f}."
    )
