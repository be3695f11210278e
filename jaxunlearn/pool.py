"""Seeds that were run apart, in one table: `python -m jaxunlearn.pool --workdir=all seed0 seed1`.

For runs of one experiment that share no store, such as those of two machines or two notebooks: the
same config with other `seeds`. Of each folder its `config.json` and `metrics.json` are read; its
models, predictions and lists of changed images stay where they are.
"""

from collections.abc import Collection, Mapping
from typing import Any, cast

from absl import app, flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import files, main, workdir
from jaxunlearn.errors import UserError, one_line, shown
from jaxunlearn.metrics import results
from jaxunlearn.plan import IN_FLOAT32
from jaxunlearn.report import terminal

# What results of one experiment have in common, whatever their seeds.
SHARED = ("name", "dataset", "split", "request", "batch_size", "attack", "reference")
# What their configs may differ in. Methods are compared by what made each model, as `tune` changes
# that, and files by what is in them: the fingerprints of the data and the split.
APART = ("seeds", "methods", "tune", *workdir.INCIDENTAL)
FILES = ("path", "data.root", "data.groups", "retrained_path")  # the last parts of their fields


def pool(reports: Mapping[str, results.Results]) -> results.Report:
    """The results of all seeds, as if one run had had them.

    What tells of a machine (device, cores, versions) is that of the first; a note says which models
    were made on another one.

    Args:
      reports: of one experiment, each with seeds of its own, by the name that errors call it by.

    Raises:
      UserError: one is of a grid or of a sequence; or they are not of one experiment.
    """
    for name, report in reports.items():
        if "models" not in report:
            raise UserError(
                f"{name} holds a grid or a sequence of requests; give folders of single "
                "experiments, such as those under a grid's cells/"
            )
    singles = cast(Mapping[str, results.Report], reports)
    (one, first), *others = singles.items()
    left_out: dict[str, str] = {}  # by any: what is there of the other seeds makes no row
    for report in singles.values():
        left_out |= report.get("left_out", {})
    common = [name for name in first["models"] if name not in left_out]
    for other, report in others:
        _same(one, other, _identity(first, left_out), _identity(report, left_out))
    where: dict[int, tuple[str, int]] = {}
    for name, report in singles.items():
        for i, seed in enumerate(report["seeds"]):
            if seed in where:
                raise UserError(f"{where[seed][0]} and {name} both have seed {seed}; give one")
            where[seed] = name, i
    seeds = sorted(where)
    places = [where[seed] for seed in seeds]
    found = {
        model: [singles[name]["models"][model]["per_seed"][i] for name, i in places]
        for model in common
    }
    tuned = [name for name, report in singles.items() if report["tuning"]]
    if len(tuned) > 1:
        raise UserError(
            f"{' and '.join(tuned)} were both tuned; tune one run, and give the others what it "
            "chose (made_by in its metrics.json)"
        )
    notes: list[str] = []
    for report in singles.values():  # "here" in a note is the machine of its report
        per_seed = {model: values["per_seed"] for model, values in report["models"].items()}
        local = results.made_elsewhere(per_seed, report)
        notes += [note for note in report["notes"] if note not in local]
    notes += results.made_elsewhere(found, first)
    tuning = singles[tuned[0]]["tuning"] if tuned else {}
    header = {**first, "seeds": seeds, "tuning": tuning, "left_out": left_out}
    header["notes"] = list(dict.fromkeys(notes))
    majority = first["majority"]
    return results.conclude(header, found, majority["answer"], majority["share"])


def _identity(report: results.Report, left_out: Collection[str]) -> dict[str, Any]:
    """What tells one experiment's results from another's."""
    shared = {field: report[field] for field in SHARED}  # type: ignore[literal-required]
    shared["request"] = {k: v for k, v in report["request"].items() if not k.endswith(FILES)}
    models = report["models"]
    made_by = {
        name: model["per_seed"][0]["made_by"]
        for name, model in models.items()
        if name not in left_out
    }
    shared["computed in float32"] = IN_FLOAT32 in report["notes"]
    return {**shared, "models": sorted({*models, *left_out}), "settings": made_by}


def _same(one: str, other: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Raises where two nested dicts differ, naming the first field that does."""
    mine, theirs = (flatten_dict(each, sep=".") for each in (first, second))
    for field in sorted({*mine, *theirs}):
        if mine.get(field) != theirs.get(field):
            raise UserError(
                f"{one} and {other} are not of one experiment: {field} is "
                f"{shown(mine.get(field))} and {shown(theirs.get(field))}; give runs of one config "
                "that differ in their seeds"
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of the experiment, without its seeds, methods and files."""
    fields = flatten_dict(config, sep=".")
    return {
        field: value
        for field, value in fields.items()
        if field.split(".")[0] not in APART and not field.endswith(FILES)
    }


def run(argv: list[str]) -> None:
    """Pools the folders that are given into `--workdir`."""
    folders = argv[1:]
    with main.ending():
        if len(folders) < 2 or not main.WORKDIR.value:
            raise UserError(
                "give two folders of results or more, and --workdir for the table of all: "
                "python -m jaxunlearn.pool --workdir=all seed0 seed1"
            )
        if len(set(folders)) < len(folders):
            raise UserError("a folder is given twice; give each once")
        try:
            report = pool({folder: results.load(folder) for folder in folders})
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise UserError(
                f"metrics.json of {' or '.join(folders)} is damaged; rerun the command of that "
                "run, which keeps its trained models"
            ) from error
        configs = [
            workdir.read_config(
                files.local(folder, "the folder"), "give the --workdir of a finished run"
            )
            for folder in folders
        ]
        for folder, config in zip(folders[1:], configs[1:], strict=True):
            _same(folders[0], folder, _comparable(configs[0]), _comparable(config))
        whole = ConfigDict({**configs[0], "seeds": report["seeds"]})
        target = files.local(main.WORKDIR.value, "--workdir")
        if (target / "split.npz").exists():
            raise UserError(f"{target} holds a run of its own; give another --workdir")
        workdir.claim(target, whole)
        workdir.write_report(report, target)
        console = Console(highlight=False)
        terminal.print_table(report, console)
        print(f"Results: {target}")


def parse(argv: list[str]) -> list[str]:
    """Folders are left; a wrong flag is one line."""
    if "--help" in argv:
        return app.parse_flags_with_usage(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        main.fail(f"the flags are not understood: {one_line(error)}")


if __name__ == "__main__":
    app.run(run, flags_parser=parse)
