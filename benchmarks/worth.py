"""Which methods are worth using, of one data set: `python benchmarks/worth.py PUBLISHED [TUNED …]`.

Prints one row for each method from the folder of a finished run, as `configs/all_methods.py` makes
it, with the settings as they are given, or with those that its `tuning.json` has; or of two of the
same seeds, the second with those that `config.tune` chose on the first seed, which may be in
several folders, of some methods each. The lowest Avg Gap comes first, of the tuned where there are
any.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from absl import app
from measuring import show

from jaxunlearn import pool
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import results

ALONE = [
    *("method", "Avg Gap", "UA", "RA", "TA", "MIA", "cancers missed", "false alarms", "time"),
]
# Their names may differ, how the request is written, as what is forgotten stands in the split, and
# the largest batch of their methods.
OWN = ("name", "request", "batch_size")
SAME = [*(field for field in pool.SHARED if field not in OWN), "seeds"]
BOTH = [
    *("method", "Avg Gap, published", "tuned", "regret", "cancers missed, published", "tuned"),
    *("time, published", "tuned", "tuning"),
]


def gap(model: dict[str, Any]) -> str:
    """Mean Avg Gap in percentage points, ± half its interval over several seeds."""
    mean, interval = f"{model['mean']['avg_gap']:.1f}", model["interval"].get("avg_gap")
    return f"{mean} ± {(interval[1] - interval[0]) / 2:.1f}" if interval else mean


def share(model: dict[str, Any], anew: float) -> str:
    """Mean RTE in % of `anew`, that of retraining; of what was made elsewhere it is not known."""
    found = [values["RTE"] for values in model["per_seed"]]
    return "" if None in found else f"{statistics.mean(found) / anew:.0%}"


def retraining(report: Any) -> float:
    """Mean RTE of retrained."""
    return statistics.mean(values["RTE"] for values in report["models"]["retrained"]["per_seed"])


def change(model: dict[str, Any], key: str) -> str:
    """A mean difference in counts from retrained, where some class is malignant."""
    value = model["mean"].get(key)
    return "" if value is None else f"{value:+.1f}"


def check(report: Any) -> None:
    """Raises where there is no retrained model."""
    if report["reference"] != results.RETRAINED:
        raise UserError("there is no retrained model; set config.retrained=True")
    if report["models"][results.RETRAINED]["per_seed"][0]["RTE"] is None:
        raise UserError("retrained was made elsewhere, and how long that took is not known")


def check_same(one: Any, other: Any) -> None:
    """Raises where two runs are not of one experiment."""
    for field in SAME:
        if one[field] != other[field]:
            raise UserError(f"two of the runs differ in {field}; give those of one experiment")


def joined(reports: list[Any]) -> Any:
    """Runs of some methods each as one, which they are if they share the original and retrained."""
    first = {**reports[0], "models": {}}
    for report in reports:
        check_same(first, report)
        for name, model in report["models"].items():
            if first["models"].setdefault(name, model) != model:
                raise UserError(f"two of the runs have another {name}; give runs of one store")
    return first


def alone(published: Any, tuning: dict[str, Any]) -> list[list[str]]:
    """A row for each method, for the original and for retrained, of one run.

    Args:
      published: its results, with a retrained model.
      tuning: the methods of its `tuning.json`; where there is none, there is no column for regret.
    """
    check(published)
    anew, found = retraining(published), []
    for name, model in published["models"].items():
        mean = model["mean"]
        shares = [f"{mean[key]:.1f}" for key in ("UA", "RA", "TA", "MIA")]
        time = "" if name in results.REFERENCES else share(model, anew)
        counts = [change(model, key) for key in ("fn_change", "fp_change")]
        cells = [f"`{name}`", gap(model), *shares, *counts, time]
        if tuning:
            cells.append(f"{tuning[name]['regret']:.1f}" if name in tuning else "")
        found.append((mean["avg_gap"], cells))
    return [cells for _, cells in sorted(found)]


def rows(published: Any, tuned: Any, tuning: dict[str, Any]) -> list[list[str]]:
    """A row for each method, and one for the original.

    Args:
      published: the results of the run with published settings, with a retrained model.
      tuned: those of the tuned run.
      tuning: the methods of its `tuning.json`.

    Raises:
      UserError: the two are not of one experiment with retrained.
    """
    check_same(published, tuned)
    check(published)
    anew, found = [retraining(report) for report in (published, tuned)], []
    for name in dict.fromkeys([*published["models"], *tuned["models"]]):
        given, chosen, regret, spent = published["models"].get(name), None, "", ""
        if name in tuning and name in tuned["models"]:  # elsewhere it is as given, or diverged
            chosen, tried = tuned["models"][name], tuning[name]
            regret, spent = f"{tried['regret']:.1f}", f"{tried['seconds'] / anew[1]:.0%}"
        both = list(zip((given, chosen), anew, strict=True))
        gaps = [gap(model) if model else "" for model, _ in both]
        missed = [change(model, "fn_change") if model else "" for model, _ in both]
        times = [share(model, one) if model else "" for model, one in both]
        if name == "original":  # what it took has nothing to do with the request
            times = ["", ""]
        if name != "retrained" and (given or chosen):
            cells = [f"`{name}`", gaps[0] or "diverged", gaps[1], regret, *missed, *times, spent]
            found.append(((chosen or given)["mean"]["avg_gap"], cells))
    return [cells for _, cells in sorted(found)]


def means(published: Any, tuned: Any, tuning: dict[str, Any], seed: int) -> str:
    """Of all methods that were tuned: mean Avg Gaps, and how far the chosen are above the best."""
    names = tuning.keys() & tuned["models"].keys() & published["models"].keys()
    if not names:
        return "No method was tuned."

    def mean(report: Any, seeds: list[int]) -> str:
        at = [i for i, each in enumerate(report["seeds"]) if each in seeds]
        models = [report["models"][name]["per_seed"] for name in names]
        return f"{statistics.mean(model[i]['avg_gap'] for model in models for i in at):.1f}"

    lines = [f"Mean Avg Gap of {len(names)} methods:"]
    others = [each for each in published["seeds"] if each != seed]
    for seeds, which in (([seed], f"on seed {seed}, which chose"), (others, "on the others")):
        if seeds:
            lines.append(f"{which}: given {mean(published, seeds)}, tuned {mean(tuned, seeds)};")
    regrets = [tuning[name]["regret"] for name in names]
    few = sum(regret <= 0.1 for regret in regrets)
    lines.append(
        f"regret {statistics.mean(regrets):.1f}, at most {max(regrets):.1f}; of {few} at most 0.1."
    )
    return " ".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("give folders: python benchmarks/worth.py PUBLISHED [TUNED …]")
    try:
        published, *more = (results.load(folder) for folder in argv[1:])
        tuning: dict[str, Any] = {}
        seed = 0
        for folder in argv[2:] or argv[1:]:
            file = Path(folder) / "tuning.json"
            if more or file.is_file():
                read = json.loads(file.read_text(encoding="utf-8"))
                tuning, seed = {**tuning, **read["methods"]}, read["seed"]
        tuned = joined(more) if more else None
        if more:
            header, found = BOTH, rows(published, tuned, tuning)
        else:
            header, found = ALONE + ["regret"] * bool(tuning), alone(published, tuning)
    except (UserError, OSError, ValueError, KeyError) as error:
        raise app.UsageError(f"{type(error).__name__}: {error}") from error
    seeds = ", ".join(map(str, published["seeds"]))
    print(
        f"{published['name']}, seeds {seeds}; Avg Gap in percentage points, mean ± half"
        " the 95% t interval over seeds; cancers missed, false alarms: of the malignant and "
        "the benign test images, more (+) or fewer (-) than retrained, mean of seeds; time: RTE as "
        "a share of retraining's; tuning: all trials that did not diverge, likewise; regret: how "
        "far, on the first seed, the chosen trial is above the best one, which only a retrained "
        "model can tell.\n"
    )
    show(header, found)
    if more:
        print(f"\n{means(published, tuned, tuning, seed)}")


if __name__ == "__main__":
    app.run(main)
