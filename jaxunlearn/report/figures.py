"""The figure of an experiment or a grid."""

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

from jaxunlearn.grid import comparisons, value_name
from jaxunlearn.metrics.unlearning import GAPS
from jaxunlearn.report.sheets import REFERENCES, dig, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colour-blind tell them apart: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, but for
# yellow, faint on white; then wine and olive of Tol 2021, https://personal.sron.nl/~pault/. Nine
# colours and eight markers: 72 models before a pair comes again.
COLOURS = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#882255", "#999933"),
)
MARKERS = "osD^vP<X"
GREY = "0.35"
# Whole even at 0, where the axis cuts.
POINT: dict[str, Any] = {"markersize": 8, "clip_on": False, "zorder": 3}


def draw(metrics: dict[str, Any], path: str) -> None:
    """Writes the figure as PNG.

    Clinical data: false negative against false positive rate, and the risk of each scenario beside
    those of the trivial answers. Other data: each model's gaps to retrained. A grid: each method's
    Avg Gap along the first axis, a row of panels for each combination of the others.

    Args:
      metrics: what `metrics.json` holds.
      path: the file to write.
    """
    if "cells" in metrics:
        _draw_grid(metrics, path)
    else:
        _draw_experiment(metrics, path)


def _draw_experiment(metrics: dict[str, Any], path: str) -> None:
    """The figure of one experiment."""
    from matplotlib.figure import Figure

    models = dict(metrics["models"])
    mean = models["retrained"]["mean"]
    clinical = "counts" in mean
    if not clinical:
        del models["retrained"]  # no gap to itself
    panels = list(mean["risk"]) if clinical else [*GAPS, "Avg Gap"]
    widths = [1.6] * clinical + [1.0] * len(panels)
    height = max(4.2 if clinical else 2.6, 1.6 + 0.35 * len(models))
    figure = Figure(figsize=(2 + 2.4 * sum(widths), height), dpi=150, layout="constrained")
    figure.suptitle(title(metrics), fontsize=11)
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    if clinical:
        _draw_rates(axes[0], models)
    for i, (axis, panel) in enumerate(zip(axes[clinical:], panels, strict=True)):
        if clinical:
            _draw_risk(axis, models, panel)
        else:
            _draw_gap(axis, models, panel)
        axis.set_yticks(range(len(models)), list(models) if i == 0 else [""] * len(models))
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.set_xlim(left=0)
    _finish(axes, figure, _caption(metrics, clinical), path)


def _draw_grid(metrics: dict[str, Any], path: str) -> None:
    """The figure of a grid."""
    from matplotlib.figure import Figure

    rows = comparisons(metrics["cells"])
    field = metrics["axes"][0][0]
    methods = [name for name in rows[0][0]["models"] if name not in REFERENCES]
    size = (2 + 2.6 * len(methods), 1.2 + len(rows) * (1 + 0.3 * len(rows[0])))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    datasets = dict.fromkeys(entry["dataset"]["name"] for entry in metrics["cells"])
    figure.suptitle(f"{metrics['name']}: {', '.join(datasets)}", fontsize=11)
    panels = figure.subplots(len(rows), len(methods), squeeze=False, sharex="col")
    for axes, entries in zip(panels, rows, strict=True):
        rest = [f"{f}={value_name(v)}" for f, v in entries[0]["point"].items() if f != field]
        for axis, method in zip(axes, methods, strict=True):
            scenarios = {value_name(e["point"][field]): e["models"][method] for e in entries}
            reference, _ = _value(entries[0]["models"][method], ("avg_gap",))
            axis.axvline(reference, linestyle="--", color=GREY, linewidth=1.2)
            _draw_gap(axis, scenarios, "Avg Gap")
            axis.set_title(", ".join([method, *rest]), fontsize=10)
            names = list(scenarios) if axis is axes[0] else [""] * len(scenarios)
            axis.set_yticks(range(len(scenarios)), names)
            axis.set_ylim(len(scenarios) - 0.5, -0.5)
    for axis in panels[-1]:
        axis.set_xlim(left=0)  # last, for it fixes the other end too
    seeds = len(metrics["seeds"])
    caption = (
        f"Avg Gap to retrained, by {field}; dashed: at {value_name(metrics['axes'][0][1][0])}. "
    )
    caption += "One seed." if seeds == 1 else f"{seeds} seeds: means with 95% t intervals."
    _finish(panels.ravel(), figure, caption, path)


def _finish(axes: Any, figure: Any, caption: str, path: str) -> None:
    """What every figure has."""
    for axis in axes:
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8, color=GREY)
    figure.savefig(path)


def _looks(models: dict[str, Any]) -> Any:
    """Each model's name and values with its own colour and marker."""
    return zip(models.items(), cycle(COLOURS), cycle(MARKERS), strict=False)


def _value(model: dict[str, Any], path: tuple[str, ...], most: float = math.inf) -> tuple[Any, Any]:
    """A model's mean, and how far its interval reaches below and above (None if there is none)."""
    value, interval = dig(model["mean"], path), dig(model["interval"], path)
    if interval is None:
        return value, None
    # A t interval may reach where no rate, risk or gap is; and rounding may put a bound of an
    # interval on the wrong side of a value of 0 or 1, which Matplotlib does not draw.
    low, high = max(interval[0], 0), min(interval[1], most)
    return value, [[max(value - low, 0)], [max(high - value, 0)]]


def _draw_rates(axis: "Axes", models: dict[str, Any]) -> None:
    """False negative against false positive rate."""
    for (_, model), colour, marker in _looks(models):
        x, x_reach = _value(model, ("fpr",), most=1)
        y, y_reach = _value(model, ("fnr",), most=1)
        if x is not None and y is not None:
            bars = axis.errorbar(
                x, y, y_reach, x_reach, fmt=marker, color=colour, elinewidth=1, **POINT
            )
            for line in bars[2]:
                line.set_alpha(0.4)  # the intervals of many models cross
    axis.set_xlabel("false alarms: FPR (%)")
    axis.set_ylabel("missed malignant: FNR (%)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(lambda rate, _: f"{100 * rate:g}")


def _draw_risk(axis: "Axes", models: dict[str, Any], scenario: str) -> None:
    """Risks of one scenario, a row for each model, and lines for the trivial answers."""
    mean = models["retrained"]["mean"]
    risks = [mean[f"risk_treat_{name}"][scenario] for name in ("none", "all")]
    limit = min(risks)  # the smaller is always shown, the larger where the models reach it
    for row, ((_, model), colour, marker) in enumerate(_looks(models)):
        x, reach = _value(model, ("risk", scenario))
        axis.errorbar(x, row, xerr=reach, fmt=marker, color=colour, **POINT)
        best, _ = _value(model, ("risk_at_threshold", scenario))
        if best is not None:
            axis.plot(best, row, marker, color=colour, fillstyle="none", **POINT)
        limit = max(limit, x + (reach[1][0] if reach else 0), best or 0)
    for risk, style in zip(risks, ("--", ":"), strict=True):
        if risk <= limit:
            axis.axvline(risk, linestyle=style, color=GREY, linewidth=1.2, zorder=2)
    axis.set_xlim(right=1.1 * limit or 1)
    axis.set_title(f"Risk {scenario}", fontsize=10)
    axis.set_xlabel(
        "cost per test image\n" + "treat none (--): {:.3f}\ntreat all (:): {:.3f}".format(*risks)
    )


def _draw_gap(axis: "Axes", models: dict[str, Any], name: str) -> None:
    """Absolute differences to retrained in one metric, a row for each model."""
    path = ("gaps", name) if name in GAPS else ("avg_gap",)
    for row, ((_, model), colour, marker) in enumerate(_looks(models)):
        x, reach = _value(model, path)
        axis.errorbar(x, row, xerr=reach, fmt=marker, color=colour, **POINT)
    axis.set_title(name if name == "Avg Gap" else f"{name} gap", fontsize=10)
    axis.set_xlabel("percentage points")


def _caption(metrics: dict[str, Any], clinical: bool) -> str:
    """What the signs mean, and how the intervals were made."""
    seeds = len(metrics["seeds"])
    intervals = f"{seeds} seeds: means with 95% t intervals over seeds."
    if seeds == 1:
        intervals = (
            f"One seed: {'95% Wilson intervals of the rates' if clinical else 'no intervals'}."
        )
    if not clinical:
        return f"{intervals} 0 is retrained."
    return (
        f"Left: colours and markers as on the right. {intervals}\n"
        "Risk, filled: as the model decides; open: at the threshold of least risk on validation."
    )
