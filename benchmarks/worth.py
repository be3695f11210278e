"""Which methods are worth using, of one data set: `python benchmarks/worth.py PUBLISHED TUNED`.

Prints one row for each method from the folders of two finished runs of the same seeds, as
`configs/all_methods.py` makes them: with the settings that its authors published, and with those
that `config.tune` chose on the first seed. The lowest Avg Gap of the tuned comes first.
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

HEADER = [
    *("method", "Avg Gap, published", "tuned", "regret", "cancers missed, published", "tuned"),
    *("time, published", "tuned", "tuning"),
]


def gap(model: dict[str, Any]) -> str:
    """Mean Avg Gap in percentage points, ± half its interval over several seeds."""
    mean, interval = f"{model['mean']['avg_gap']:.1f}", model["interval"].get("avg_gap")
    return f"{mean} ± {(interval[1] - interval[0]) / 2:.1f}" if interval else mean


def seconds(model: dict[str, Any]) -> float:
    """Mean RTE."""
    return statistics.mean(values["RTE"] for values in model["per_seed"])


def rows(published: Any, tuned: Any, tuning: dict[str, Any]) -> list[list[str]]:
    """A row for each method, and one for the original.

    Args:
      published: the results of the run with published settings, with a retrained model.
      tuned: those of the tuned run.
      tuning: the methods of its `tuning.json`.

    Raises:
      UserError: the two are not of one experiment with retrained.
    """
    for field in (*pool.SHARED[1:], "seeds"):  # their names may differ
        if published[field] != tuned[field]:
            raise UserError(f"the two runs differ in {field}; give two of one experiment")
    if published["reference"] != results.RETRAINED:
        raise UserError("there is no retrained model; set config.retrained=True")
    anew = [seconds(report["models"]["retrained"]) for report in (published, tuned)]
    found = []
    for name, given in published["models"].items():
        if name == "retrained":
            continue
        tried = tuning.get(name)
        both = [given, tuned["models"][name]] if tried else [given]
        gaps, regret, spent = [gap(model) for model in both], "", ""
        changes = [model["mean"].get("fn_change") for model in both]  # where some are malignant
        missed = ["" if change is None else f"{change:+.1f}" for change in changes]
        times = [f"{seconds(model) / one:.0%}" for model, one in zip(both, anew, strict=False)]
        if name == "original":  # what it took has nothing to do with the request
            times = [""]
        if tried:
            regret, spent = f"{tried['regret']:.1f}", f"{tried['seconds'] / anew[1]:.0%}"
        pairs = [(*each, "")[:2] for each in (gaps, missed, times)]
        cells = [f"`{name}`", *pairs[0], regret, *pairs[1], *pairs[2], spent]
        found.append((both[-1]["mean"]["avg_gap"], cells))
    return [cells for _, cells in sorted(found)]


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise app.UsageError("give two folders: python benchmarks/worth.py PUBLISHED TUNED")
    try:
        published, tuned = (results.load(folder) for folder in argv[1:])
        tuning = json.loads((Path(argv[2]) / "tuning.json").read_text(encoding="utf-8"))
        found = rows(published, tuned, tuning["methods"])
    except (UserError, OSError, ValueError, KeyError) as error:
        raise app.UsageError(f"{type(error).__name__}: {error}") from error
    print(
        f"{published['name']}: {len(published['seeds'])} seeds; Avg Gap in percentage points, mean "
        "± half the 95% t interval over seeds; regret: how far, on the first seed, the chosen "
        "trial is above the best one, which only a retrained model can tell; cancers missed: of "
        "the malignant test images, more (+) or fewer (-) than retrained, mean of seeds; time: RTE "
        "as a share of retraining's; tuning: all trials that did not diverge, likewise.\n"
    )
    show(HEADER, found)


if __name__ == "__main__":
    app.run(main)
