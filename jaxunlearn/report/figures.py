"""The figure of an experiment, a grid or a sequence of requests."""

import math
import textwrap
from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxunlearn.metrics.clinical import TRIVIAL
from jaxunlearn.metrics.evaluate import METRICS, closest
from jaxunlearn.metrics.results import (
    ORIGINAL,
    REFERENCES,
    RETRAINED,
    Experiment,
    Grid,
    Model,
    Requests,
    Results,
    dig,
)
from jaxunlearn.report.sheets import data_name, title, too_narrow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A colour-blind-safe palette: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, without yellow,
# which is faint on white; then wine and olive of Tol 2021, https://personal.sron.nl/~pault/. Nine
# colours and eight markers: 72 models before a combination repeats.
COLOURS = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#882255", "#999933"),
)
MARKERS = "osD^vP<X"
GREY = "0.35"
# What a look gives, and of what.
WATCHED = {"UA": "error on forget", "RA": "accuracy on retain", "VA": "accuracy on validation"}
# Do not clip markers at the axis.
POINT: dict[str, Any] = {"markersize": 8, "clip_on": False, "zorder": 3}


def draw(report: Results, path: str) -> None:
    """Writes the figure as PNG.

    Clinical data: false negative against false positive rate, and the risk of each scenario beside
    those of the trivial answers. Other data: each model's gaps to retrained, or without retrained
    the values themselves. A sequence: what was forgotten and what was lost, request by request. A
    grid: each method's Avg Gap along the first axis (without retrained its
    FNR or, on data that are not clinical, its TA), one row of panels per combination of the others.

    Args:
      report: see `metrics.results`.
      path: the file to write.
    """
    if "requests" in report:
        _draw_requests(report, path)
    elif "cells" in report:
        _draw_grid(report, path)
    else:
        _draw_experiment(report, path)


def _draw_experiment(report: Experiment, path: str) -> None:
    """The figure of one experiment."""
    from matplotlib.figure import Figure

    models = dict(report["models"])
    mean = next(iter(models.values()))["mean"]
    clinical = "counts" in mean
    panels = [("risk", scenario) for scenario in mean["risk"]] if clinical else _panels(mean)
    if not clinical and "gaps" in mean:
        del models[RETRAINED]  # no gap to itself
    widths = [1.6] * clinical + [1.0] * len(panels)
    height = max(4.2 if clinical else 2.6, 1.6 + 0.35 * len(models))
    figure = Figure(figsize=(2 + 2.4 * sum(widths), height), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    if clinical:
        _draw_rates(axes[0], models)
    for i, (axis, panel) in enumerate(zip(axes[clinical:], panels, strict=True)):
        if clinical:
            _draw_risk(axis, models, panel[1])
        else:
            _draw_values(axis, models, panel)
        axis.set_yticks(range(len(models)), list(models) if i == 0 else [""] * len(models))
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.set_xlim(left=0)
    _finish(axes, figure, title(report), _caption(report, clinical), path)


def _panels(mean: dict[str, Any]) -> list[tuple[str, ...]]:
    """The values shown for data that are not clinical, as keys that lead to them."""
    known = [key for key in closest() if mean.get(key) is not None]
    if "gaps" not in mean:
        return [(key,) for key in known]
    return [*(("gaps", key) for key in known), ("avg_gap",)]


def _draw_grid(grid: Grid, path: str) -> None:
    """The figure of a grid."""
    from matplotlib.figure import Figure

    rows = [[grid["cells"][i] for i in each["cells"]] for each in grid["comparisons"]]
    field = grid["axes"][0][0]
    methods = [name for name in rows[0][0]["models"] if name not in REFERENCES]
    means = [model["mean"] for cell in grid["cells"] for model in cell["models"].values()]
    shown = next(
        key for key in ("avg_gap", "fnr", "TA") if all(mean.get(key) is not None for mean in means)
    )
    size = (2 + 2.6 * len(methods), 1.2 + len(rows) * (1.2 + 0.3 * len(rows[0])))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    datasets = dict.fromkeys(data_name(cell["dataset"]) for cell in grid["cells"])
    panels = figure.subplots(len(rows), len(methods), squeeze=False)
    for axes, cells, comparison in zip(panels, rows, grid["comparisons"], strict=True):
        rest = [f"{each}={label}" for each, label in comparison["labels"].items()]
        for axis, method in zip(axes, methods, strict=True):
            scenarios = {cell["labels"][field]: cell["models"][method] for cell in cells}
            reference, _ = _value(cells[0]["models"][method], (shown,))
            if reference is not None:
                axis.axvline(
                    METRICS[shown].scale * reference, linestyle="--", color=GREY, linewidth=1.2
                )
            _draw_values(axis, scenarios, (shown,))
            axis.set_title("\n".join([method, *rest]), fontsize=10)
            header, unit = METRICS[shown].header, METRICS[shown].unit
            axis.set_xlabel(f"{header}, {unit}" if unit else header)
            names = list(scenarios) if axis is axes[0] else [""] * len(scenarios)
            axis.set_yticks(range(len(scenarios)), names)
            axis.set_ylim(len(scenarios) - 0.5, -0.5)
    for column in panels.T:
        _share(column)
    seeds = len(grid["seeds"])
    caption = (
        f"{METRICS[shown].header}, by {field}; dashed: at {grid['cells'][0]['labels'][field]}. "
    )
    intervals = " with 95% Wilson intervals" if METRICS[shown].wilson_over else ""
    caption += (
        f"One seed{intervals}." if seeds == 1 else f"{seeds} seeds: means with 95% t intervals."
    )
    heading = f"{grid['name']}: {', '.join(datasets)}"
    _finish(panels.ravel(), figure, heading, caption, path)


def _draw_requests(report: Requests, path: str) -> None:
    """The figure of a sequence."""
    from matplotlib.figure import Figure

    steps, models = report["requests"], report["requests"][-1]["models"]
    mean = next(models[name]["mean"] for name in models if name != ORIGINAL)
    panels: list[tuple[str, ...]] = [("UA",), *[("avg_gap",)] * ("avg_gap" in mean), ("TA_lost",)]
    if "fnr_rise" in mean:
        panels += [("fnr_rise",), *(("risk_rise", scenario) for scenario in mean["risk_rise"])]
    panels.append(("moved",))
    places = len(panels) + 1  # one for the legend
    columns = 3 if places in (5, 6) else min(places, 4)
    rows = math.ceil(places / columns)
    figure = Figure(figsize=(3.2 * columns, 0.9 + 2.9 * rows), dpi=150, layout="constrained")
    images = f"{steps[-1]['split']['forget']} of {steps[-1]['dataset']['train']} training images"
    dataset = data_name(steps[-1]["dataset"])
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    axes, others = axes[: len(panels)], axes[len(panels) :]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_course(axis, report, panel)
    for axis in others:
        axis.axis("off")
    others[0].legend(*axes[0].get_legend_handles_labels(), loc="center left", frameon=False)
    intervals = "means with 95% t intervals over seeds"
    if len(report["seeds"]) == 1:
        intervals = "one seed, 95% intervals over images where there are any"
    caption = f"By request; {intervals}. Lost, rise, moved: against the original; "
    heading = f"{report['name']}: {dataset}, {images} to forget"
    _finish(axes, figure, heading, caption + "dashed: the budget.", path)


def _draw_course(axis: "Axes", report: Requests, panel: tuple[str, ...]) -> None:
    """A value of every model, request by request; side by side where they would overlap."""
    metric, steps = METRICS[panel[0]], report["requests"]
    names = list(steps[0]["models"])
    for place, (name, colour, marker) in enumerate(_looks(names)):
        x, y, reach = [], [], []
        for step in steps:
            value = dig(step["models"][name]["mean"], panel)
            interval = dig(step["models"][name]["interval"], panel) or (value, value)
            if panel == ("UA",) and value is not None:  # a share, whose t interval reaches beyond
                interval = np.clip(interval, 0, 100 / metric.scale)
            if value is not None:
                x.append(step["number"] + 0.06 * (place - (len(names) - 1) / 2))
                y.append(metric.scale * value)
                reach.append([max(value - interval[0], 0), max(interval[1] - value, 0)])
        if x:
            bars = metric.scale * np.transpose(reach)
            look = {**POINT, "markersize": 5, "elinewidth": 1, "linewidth": 1}
            axis.errorbar(x, y, bars, fmt=f"{marker}-", color=colour, label=_label(name), **look)
    if most := report["budget"].get(panel[0]):
        axis.axhline(most, linestyle="--", color=GREY, linewidth=1.2)
    axis.set_title(" ".join([metric.header, *panel[1:]]), fontsize=10)
    axis.set_ylabel("points" if metric.unit == "percentage points" else metric.unit)
    axis.set_xticks([step["number"] for step in steps])


def is_watched(report: Experiment) -> bool:
    """Whether there are curves to draw."""
    return all("watch" in model["per_seed"][0] for model in report["models"].values())


def draw_watch(report: Experiment, path: str) -> None:
    """Writes the curves of watched methods as PNG: a panel per set, a line per method and seed.

    Args:
      report: see `metrics.results`.
      path: the file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.9), dpi=150, layout="constrained")
    *axes, legend = figure.subplots(1, len(WATCHED) + 1)
    for axis, (key, of) in zip(axes, WATCHED.items(), strict=True):
        for (name, model), colour, marker in _looks(report["models"].items()):
            curves = [values["watch"] for values in model["per_seed"]]
            if name in REFERENCES:
                height = np.mean([_look_values(curve, key) for curve in curves])
                axis.axhline(
                    height, linestyle="--", color=colour, linewidth=1.2, label=_label(name)
                )
            else:
                _draw_curves(axis, curves, key, name, f"{marker}-", colour)
        axis.set_title(f"{key}: {of}", fontsize=10)
        axis.set_xlabel("passes")
        axis.set_ylabel("%")
        axis.set_xlim(left=0)
        axis.locator_params("x", integer=True)
    legend.axis("off")
    legend.legend(*axes[0].get_legend_handles_labels(), loc="center left", frameon=False)
    caption = (
        "On images drawn from each set, a line per seed. Dashed: the mean of models that were not "
        "watched. Circle: the result of a method that was stopped."
    )
    _finish(axes, figure, title(report), caption, path)


def _look_values(curve: dict[str, Any], key: str) -> list[float]:
    """A value at every look; NaN, which is not drawn, where it is undefined."""
    return [math.nan if look[key] is None else look[key] for look in curve["looks"]]


def _draw_curves(
    axis: "Axes", curves: list[Any], key: str, name: str, fmt: str, colour: str
) -> None:
    """A value of a method by passes, for every seed."""
    for number, curve in enumerate(curves):
        x, y = [look["passes"] for look in curve["looks"]], _look_values(curve, key)
        label = None if number else _label(name)
        axis.plot(x, y, fmt, color=colour, label=label, **{**POINT, "markersize": 5})
        if (end := curve["result"]) < len(x) - 1:
            axis.plot(
                x[end], y[end], "o", color=colour, fillstyle="none", **{**POINT, "markersize": 12}
            )


def _share(axes: Any) -> None:
    """One range, from 0, for the panels of a column, and its numbers below the last of them.

    Matplotlib's own `sharex` asks every panel for every other's range: 100 panels take minutes.
    """
    low, high = (
        pick(getattr(axis.dataLim, side) for axis in axes)
        for pick, side in ((min, "x0"), (max, "x1"))
    )
    for axis in axes:
        axis.set_xlim(0, high + axis.margins()[0] * (high - low) or 1)
        axis.tick_params(labelbottom=axis is axes[-1])


def _label(name: str) -> str:
    """A model in a legend, where Matplotlib leaves out what begins with `_`."""
    return f" {name}" if name.startswith("_") else name


def _finish(axes: Any, figure: Any, heading: str, caption: str, path: str) -> None:
    """Adds what all figures share, and writes the file."""
    from matplotlib.text import Text

    for axis in axes:
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    inches = figure.get_figwidth()
    figure.suptitle(_wrapped(heading, 11 * inches), fontsize=11)
    figure.supxlabel(_wrapped(caption, 15 * inches), fontsize=8, color=GREY)
    for text in figure.findobj(Text):  # of names, where a dollar is a dollar
        text.set_parse_math(False)
    figure.savefig(path)


def _wrapped(text: str, width: float) -> str:
    """The text's lines, none with more characters than that."""
    lines = text.split("\n")
    return "\n".join(each for line in lines for each in textwrap.wrap(line, int(width)))


def _looks(models: Iterable[Any]) -> Any:
    """Each model with its own colour and marker."""
    return zip(models, cycle(COLOURS), cycle(MARKERS), strict=False)


def _value(model: Model, path: tuple[str, ...], most: float = math.inf) -> tuple[Any, Any]:
    """A model's mean, and how far its interval reaches below and above (None if there is none)."""
    value, interval = dig(model["mean"], path), dig(model["interval"], path)
    if interval is None:
        return value, None
    # A t interval may reach where no rate, risk or gap is; and rounding may put a bound of an
    # interval on the wrong side of a value of 0 or 1, which Matplotlib does not draw.
    low, high = max(interval[0], 0), min(interval[1], most)
    return value, [[max(value - low, 0)], [max(high - value, 0)]]


def _draw_rates(axis: "Axes", models: dict[str, Model]) -> None:
    """False negative against false positive rate."""
    for (_, model), colour, marker in _looks(models.items()):
        x, x_reach = _value(model, ("fpr",), most=1)
        y, y_reach = _value(model, ("fnr",), most=1)
        if x is not None and y is not None:
            bars = axis.errorbar(
                x, y, y_reach, x_reach, fmt=marker, color=colour, elinewidth=1, **POINT
            )
            for line in bars[2]:
                line.set_alpha(0.4)  # the intervals of many models cross
    if not axis.has_data():
        axis.annotate(
            "undefined: the images\nare all benign or all malignant",
            (0.5, 0.5),
            xycoords="axes fraction",
            ha="center",
            va="center",
            color=GREY,
        )
    axis.set_xlabel("false alarms: FPR (%)")
    axis.set_ylabel("missed malignant: FNR (%)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(lambda rate, _: f"{100 * rate:g}")


def _draw_risk(axis: "Axes", models: dict[str, Model], scenario: str) -> None:
    """Risks of one scenario, one row per model, and lines for the trivial answers."""
    mean = next(iter(models.values()))["mean"]  # trivial risks are the same of every model
    risks = {answer: mean[key][scenario] for answer, key in TRIVIAL.items()}
    limit = min(risks.values())  # the smaller is always shown, the larger where models reach it
    for row, ((_, model), colour, marker) in enumerate(_looks(models.items())):
        x, reach = _value(model, ("risk", scenario))
        axis.errorbar(x, row, xerr=reach, fmt=marker, color=colour, **POINT)
        best, _ = _value(model, ("risk_at_threshold", scenario))
        if best is not None:
            axis.plot(best, row, marker, color=colour, fillstyle="none", **POINT)
        limit = max(limit, x + (reach[1][0] if reach else 0), best or 0)
    lines = ["cost per test image"]
    for (answer, risk), style in zip(risks.items(), ("--", ":"), strict=True):
        if risk <= limit:
            axis.axvline(risk, linestyle=style, color=GREY, linewidth=1.2, zorder=2)
        lines.append(f"{answer} ({style}): {risk:.3f}")
    axis.set_xlim(right=1.1 * limit or 1)
    axis.set_title(f"Risk {scenario}", fontsize=10)
    axis.set_xlabel("\n".join(lines))


def _draw_values(axis: "Axes", models: dict[str, Model], path: tuple[str, ...]) -> None:
    """A metric's values, or its gaps, one row per model."""
    metric = METRICS[path[-1]]
    gap = path[0] == "gaps"
    for row, ((_, model), colour, marker) in enumerate(_looks(models.items())):
        whole = 100 / metric.scale if metric.unit == "%" else math.inf
        x, reach = _value(model, path, most=whole)
        if x is not None:
            reach = reach and [[metric.scale * length] for (length,) in reach]
            axis.errorbar(metric.scale * x, row, xerr=reach, fmt=marker, color=colour, **POINT)
    axis.set_title(f"{metric.header} gap" if gap else metric.header, fontsize=10)
    axis.set_xlabel("percentage points" if gap and metric.unit == "%" else metric.unit)


def _caption(report: Experiment, clinical: bool) -> str:
    """The meaning of the signs, and how the intervals were made."""
    seeds, gaps = len(report["seeds"]), report["reference"] == RETRAINED
    intervals = f"{seeds} seeds: means with 95% t intervals over seeds."
    if seeds == 1:
        proportions = "95% Wilson intervals of the rates"
        if not clinical:
            proportions = "no intervals" if gaps else "95% Wilson intervals of UA, RA and TA"
        if too_narrow(report):
            proportions += ", too narrow where images of one group are alike"
        intervals = f"One seed: {proportions}."
    if report["split"].get("forgotten_classes"):
        intervals += " No test image of a class that was forgotten whole counts"
        intervals += ", but in TA forgotten." if not clinical else "."
    if not clinical:
        return f"{intervals} 0 is retrained." if gaps else intervals
    return (
        f"Left: colours and markers as on the right. {intervals}\n"
        "Risk, filled: as the model decides; open: at the threshold that minimises risk on "
        "validation."
    )
