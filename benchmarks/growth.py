"""How time and memory grow: `python benchmarks/growth.py`.

Runs whole experiments in processes of their own, each twice: first with an empty store, then with a
full one. Images, methods, seeds and cells of a grid grow one at a time, the others held fixed. It
prints where the seconds went and the peak memory; per number a straight line a + b·n, how far the
runs lie from it, and the exponent of n. Small runs are repeated, and the fastest counts.
`processor` is the time of all cores together, which hardly grows while the machine is busy with
something else too.

`--parts` times alone, at larger counts, what is neither training nor prediction.
"""

import functools
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from measuring import Clock, Row, fit, seconds, show
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import config as config_lib

AXES = {
    "images": (500, 1000, 2000, 4000, 8000),
    "methods": (1, 2, 4, 8),
    "seeds": (1, 2, 4),
    "cells": (1, 2, 4, 8),
}
BASE = {"images": 500, "methods": 1, "seeds": 1, "cells": 0}  # 0: no grid
GROW = flags.DEFINE_multi_enum("grow", list(AXES), list(AXES), "What to grow.")
LARGEST = flags.DEFINE_integer("largest", 8000, "Of the numbers of images.")
MODEL = flags.DEFINE_string("model", "cnn", "The model.")
WIDTH = flags.DEFINE_integer("width", 8, "Its width.")
EPOCHS = flags.DEFINE_integer("epochs", 2, "Of every training.")
REPEATS = flags.DEFINE_integer("repeats", 2, "Of runs shorter than --short; the fastest counts.")
SHORT = flags.DEFINE_float("short", 10, "Seconds.")
FIGURE = flags.DEFINE_string("figure", "", "Where to draw what grew, as PNG.")
JSON = flags.DEFINE_string("json", "", "Where to write every number.")
PARTS = flags.DEFINE_bool("parts", False, "Time the parts alone instead.")
CHILD = flags.DEFINE_string("child", "", "Used by the benchmark itself: the numbers of a run.")
WORKDIR = flags.DEFINE_string("workdir", "", "Used by the benchmark itself.")

# Where the seconds of a run go: what is called while another is running is taken off that.
SPLIT = (
    *("imports", "data", "plan", "compile", "train", "predict", "judge"),
    *("look up", "put", "files"),  # the store: finding and hashing, writing; then the results
)


def make_config(numbers: Row) -> ConfigDict:
    """An experiment of as many images, methods, seeds and cells."""
    config = config_lib.default()
    config.name = "growth"
    config.data.count = numbers["images"]
    config.model.name, config.model.width = MODEL.value, WIDTH.value
    config.train.epochs, config.train.batch_size = EPOCHS.value, 64
    config.seeds = tuple(range(numbers["seeds"]))
    config.methods = config_lib.methods(
        **{
            f"finetune{i}": {
                "method": "finetune",
                "epochs": EPOCHS.value,
                "batch_size": 64,
                "lr": 0.001 * (i + 1),
            }
            for i in range(numbers["methods"])
        }
    )
    if numbers["cells"]:
        rates = tuple(0.001 * (i + 1) for i in range(numbers["cells"]))
        config.axes = (("methods.finetune0.lr", rates),)
    return config


def child(numbers: Row, workdir: str) -> Row:
    """Runs the experiment in this process: its seconds, by part, and its peak memory."""
    clock, start = Clock(SPLIT), time.perf_counter()
    with clock("imports"):  # those too that the library leaves until they are needed
        import matplotlib.figure  # noqa: F401
        import orbax.checkpoint  # noqa: F401
        import scipy.stats  # noqa: F401

        from jaxunlearn import experiment, plan, store, trained
        from jaxunlearn import workdir as folder
        from jaxunlearn.data.dataset import Dataset
        from jaxunlearn.metrics import results
        from jaxunlearn.training.programs import Programs
    clock.wrap("data", plan, "load")
    clock.wrap("data", Dataset, "fingerprint", "notes")
    clock.wrap("plan", plan, "make")
    clock.wrap("plan", plan.Experiment, "recipes")
    clock.wrap("plan", trained.Recipe, "fields", "key")
    clock.wrap("compile", Programs, "__call__")
    clock.wrap("train", trained, "run", "fresh")
    clock.wrap("predict", trained, "predict")
    clock.wrap("judge", experiment, "_judge")
    clock.wrap("judge", results, "assemble", "merge")
    clock.wrap("look up", store, "is_intact", "_hashes")
    clock.wrap("look up", store.Store, "__init__", "get", "remove")
    clock.wrap("look up", store.Checkpoints, "latest", "clear")
    clock.wrap("look up", trained.Trained, "variables", "logits", "meta")
    clock.wrap("look up", folder, "link_model")
    clock.wrap("put", store.Store, "put")
    clock.wrap("put", store.Checkpoints, "save", "flush")
    clock.wrap("files", folder, "claim", "write_split", "write_predictions", "write_report")
    experiment.run(make_config(numbers), workdir, Console(file=io.StringIO()))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "total": time.perf_counter() - start,
        "processor": used.ru_utime + used.ru_stime,
        **clock.seconds,
        "MiB": used.ru_maxrss / 2**10,
    }


def measure(numbers: Row) -> dict[str, Row]:
    """A first and a second run of an experiment, each the fastest of its repeats."""
    found: dict[str, Row] = {}
    for _ in range(max(1, REPEATS.value)):
        with tempfile.TemporaryDirectory() as root:
            for which in ("first", "second"):
                flagged = [f"--{flag.name}={flag.value}" for flag in (MODEL, WIDTH, EPOCHS)]
                command = [sys.executable, __file__, *flagged, f"--child={json.dumps(numbers)}"]
                done = subprocess.run(
                    [*command, f"--workdir={root}/run"], capture_output=True, text=True
                )
                if done.returncode:
                    sys.exit(done.stderr)
                row = json.loads(done.stdout.splitlines()[-1])
                found[which] = min(found.get(which, row), row, key=lambda row: row["total"])
        if found["first"]["total"] > SHORT.value:
            break
    return found


def grow(axis: str) -> list[Row]:
    """The runs of one number, printed; each has `n`, `first` and `second`."""
    values = [n for n in AXES[axis] if axis != "images" or n <= LARGEST.value]
    runs: list[Row] = []
    for n in values:
        numbers = {**BASE, axis: n}
        print(f"… {axis} {n}", file=sys.stderr, flush=True)
        runs.append({"n": n, **_measured(tuple(numbers.items()))})
    for which in ("first", "second"):
        rows = []
        for run in runs:
            row = run[which]
            rest = row["total"] - sum(row[part] for part in SPLIT)
            share = f"{100 * row['look up'] / row['total']:.1f}%"
            times = [row[part] for part in ("total", "processor", *SPLIT)]
            rows.append([run["n"], *times, rest, share, row["MiB"]])
        print(f"{axis}, {which} run: seconds, of the processor's cores together and by part\n")
        show([axis, "total", "processor", *SPLIT, "rest", "looking up", "peak MiB"], rows)
    fits = []
    for which, part in itertools.product(
        ("first", "second"), ("total", "processor", *SPLIT, "MiB")
    ):
        y = [run[which][part] for run in runs]
        if max(y) > 0.2 and part != "imports":
            fits.append([f"{which}: {part}", *fit(values, y).values()])
    show([axis, "a", "b", "off the line", "exponent", "last step"], fits)
    return runs


@functools.cache
def _measured(numbers: tuple[tuple[str, int], ...]) -> dict[str, Row]:
    """Once, where several numbers start from the same experiment."""
    return measure(dict(numbers))


def summarise(found: dict[str, list[Row]]) -> None:
    """Prints one row for each number that grew."""
    rows = []
    for axis, runs in found.items():
        n = [run["n"] for run in runs]
        line = fit(n, [run["first"]["processor"] for run in runs])
        shares = [100 * run["first"]["look up"] / run["first"]["total"] for run in runs]
        ends: Row = {
            f"{which} {part}": " to ".join(f"{runs[i][which][part]:.3g}" for i in (0, -1))
            for which, part in itertools.product(("first", "second"), ("total", "MiB"))
        }
        rows.append(
            [
                f"{axis}, {n[0]} to {n[-1]:,}",
                *(ends["first total"], f"{line['a']:.3g} + {line['b']:.3g} n"),
                *(f"{100 * line['off']:.1f}%", line["last"], f"{max(shares):.1f}%"),
                *(ends["second total"], ends["first MiB"], ends["second MiB"]),
            ]
        )
    header = ["n", "first run, s", "processor, s", "off the line", "exponent", "looking up"]
    show([*header, "second run, s", "MiB", "second, MiB"], rows)


def draw(found: dict[str, list[Row]], path: str) -> None:
    """Seconds by part in the first run, the second run's total, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 5.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    colours = {
        **{"compile": "#E69F00", "train": "#0072B2", "predict": "#56B4E9", "judge": "#009E73"},
        **{
            "data": "#CC79A7",
            "plan": "#999933",
            "look up": "#D55E00",
            "put": "#F0A080",
            "files": "#882255",
        },
    }
    for (times, memory), (axis, runs) in zip(panels.T, found.items(), strict=True):
        n = [run["n"] for run in runs]
        for part, colour in colours.items():
            y = [run["first"][part] for run in runs]
            times.plot(n, y, "o-", color=colour, label=part, markersize=4)
        y = [run["first"]["total"] for run in runs]
        times.plot(n, y, "ks-", label="first run", markersize=5)
        y = [run["second"]["total"] for run in runs]
        times.plot(n, y, "k^--", label="second run", markersize=5)
        times.set(xscale="log", yscale="log", title=f"{axis}", ylim=(1e-3, None))
        for which, style in (("first", "ks-"), ("second", "k^--")):
            memory.plot(n, [run[which]["MiB"] / 1024 for run in runs], style, markersize=5)
        memory.set(xscale="log", xlabel=axis, ylim=(0, None))
        for panel in (times, memory):
            panel.set_xticks(n, map(str, n))
            panel.minorticks_off()
            panel.grid(color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory (GiB)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path)


def parts() -> dict[str, list[Row]]:
    """What is neither training nor prediction, alone, at larger counts."""
    from jaxunlearn import plan, store
    from jaxunlearn.metrics import privacy
    from jaxunlearn.metrics.predictions import Predictions

    def keys(cells: int) -> int:
        config = make_config({**BASE, "methods": 4, "seeds": 5, "cells": cells})
        made = plan.make(config_lib.plain(config), 1)
        return len({r.key for one in made for i in range(5) for r in one.recipes(i).values()})

    def attack(function: Callable, images: int, *args: Any) -> Callable:
        rng, shares = np.random.default_rng(0), (0.2, 0.8, 1 / 3)  # forget, retain, test
        sets = [
            Predictions(
                rng.normal(size=(round(share * images), 2)).astype(np.float32),
                (np.arange(round(share * images)) % 2).astype(np.int32),
                None,
            )
            for share in shares
        ]
        return functools.partial(function, *sets, *args)

    keys(1)  # imports
    found: dict[str, list[Row]] = {}

    def time_of(name: str, sizes: Sequence[int], function: Callable[[int], Callable]) -> None:
        found[name] = [{"n": n, "seconds": seconds(function(n))} for n in sizes]
        y = [row["seconds"] for row in found[name]]
        rows.append([name, *fit(sizes, y).values(), f"{sizes[-1]:,}", y[-1]])

    rows: list[list[Any]] = []
    cells = (25, 50, 100, 200)
    time_of("plan and keys of 5 seeds × 6 models, by cells", cells, lambda n: lambda: keys(n))
    grids = {n: (report(), n) for n in (10, 20, 40, 80)}
    time_of("results of a grid merged, by cells", cells, lambda n: lambda: merged(report(), n))
    time_of("figure, by cells along the first axis", cells, lambda n: picture(n, 1))
    time_of("figure, by cells along the second axis", tuple(grids), lambda n: picture(1, n))
    images = (10_000, 100_000, 1_000_000)
    time_of(
        "MIA and its spread, by images",
        images,
        lambda n: attack(privacy.mia_spread, n, 0),
    )
    time_of(
        "MIA by svc, by images",
        (2000, 4000, 8000, 16_000),
        lambda n: attack(privacy.mia, n, "svc"),
    )
    with tempfile.TemporaryDirectory() as root:
        shelf = store.Store(Path(root), print)

        def listing(n: int) -> Callable:
            for i in range(n):
                (shelf.root / f"{i:032x}").mkdir(exist_ok=True)
            return store.Checkpoints(shelf, "a" * 32, 10, []).clear

        time_of("looking for a model's points, by stored models", (100, 1000, 10_000), listing)
    show(["", "a", "b", "off the line", "exponent", "last step", "largest n", "seconds"], rows)
    return found


@functools.cache
def report() -> Any:
    """Results of an experiment on made-up predictions."""
    from jaxunlearn import metrics
    from jaxunlearn.metrics import results

    rng, sizes = np.random.default_rng(0), {"forget": 40, "retain": 160, "val": 50, "test": 60}

    def judged(seed: int) -> results.Judged:
        predictions = {
            name: metrics.Predictions(
                rng.normal(size=(n, 2)).astype(np.float32), (np.arange(n) % 2).astype(np.int32)
            )
            for name, n in sizes.items()
        }
        values = metrics.evaluate(
            predictions,
            malignant=(1,),
            scenarios=((1.0, 1.0), (20.0, 1.0)),
            attack="threshold",
            members="all",
            malignant_rule="argmax",
            seed=seed,
        )
        return results.Judged({**values, "seed": seed, "RTE": 1.0}, predictions["test"])

    names = ["original", "retrained", "finetune", "salun", "scrub"]
    header: Row = {
        **{"name": "growth", "seeds": [0, 1, 2], "batch_size": 64, "attack": "threshold"},
        **{"device": "", "cores": 0, "convolution": "", "versions": {}, "notes": [], "split": {}},
        "dataset": {"name": "made up", "class_names": ["b", "m"], "synthetic": True},
    }
    judgements = {name: [judged(seed) for seed in range(3)] for name in names}
    return results.assemble(header, names, judgements, malignant=(1,), malignant_rule="argmax")


def merged(one: Any, *counts: int) -> Any:
    """A grid of as many cells along each axis, all with the same results."""
    from jaxunlearn.metrics import results

    axes = [(f"axis{i}", tuple(map(str, range(count)))) for i, count in enumerate(counts)]
    points = []
    for values in itertools.product(*(values for _, values in axes)):
        point = dict(zip((field for field, _ in axes), values, strict=True))
        points.append(results.Point(point, point, ""))
    return results.merge("growth", axes, points, [one] * len(points))


def picture(*counts: int) -> Callable[[], None]:
    """Draws such a grid."""
    from jaxunlearn.report import figures

    grid = merged(report(), *counts)
    return lambda: figures.draw(grid, io.BytesIO())  # type: ignore[arg-type]


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    if CHILD.value:
        print(json.dumps(child(json.loads(CHILD.value), WORKDIR.value)))
        return
    found = parts() if PARTS.value else {axis: grow(axis) for axis in GROW.value}
    if not PARTS.value:
        summarise(found)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(found, indent=1), "utf-8")
    if FIGURE.value and not PARTS.value:
        draw(found, FIGURE.value)


if __name__ == "__main__":
    app.run(main)
