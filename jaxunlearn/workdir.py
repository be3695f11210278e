"""The folder of results: claimed by one config, written file by file, whole or not at all."""

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import files
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.forget import Split
from jaxunlearn.errors import UserError
from jaxunlearn.files import write_npz, write_text
from jaxunlearn.metrics.predictions import Predictions, changed, probabilities
from jaxunlearn.metrics.results import Report, Results
from jaxunlearn.store import is_intact

# What a run may change and still be the same run: these do not alter its numbers.
INCIDENTAL = ("store", "devices", "checkpoint_every")


def _writing(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """What cannot be written there is a user's error."""
    return files.writing(
        workdir, "the working directory", "free some space, or give another --workdir"
    )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the working directory, or sees that it holds a run of this very config."""
    check(workdir, config)
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # What follows replaces files that they are of; they are made again from the store.
        (workdir / "metrics.json").unlink(missing_ok=True)
        for folder in ("", "models", "predictions", "changed", "diverged"):
            files.sweep(workdir / folder)
        _write_config(workdir, config)


def _write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`, but over no other config's that a run has put there meanwhile."""
    kept, text = workdir / "config.json", json.dumps(config.to_dict(), indent=1)
    if not os.path.lexists(kept):
        new = files.temporary(kept)
        try:
            new.write_text(text, encoding="utf-8")
            with contextlib.suppress(OSError):  # FileExistsError, or a file system without links
                os.link(new, kept)
        finally:
            files.discard(new)
        check(workdir, config)
    write_text(kept, text)


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises where the working directory holds a run of another config."""
    mine = json.loads(json.dumps(config.to_dict()))
    if os.path.lexists(workdir / "config.json"):
        theirs = read_config(workdir, "give another --workdir, or remove it")
        for incidental in INCIDENTAL:
            theirs.pop(incidental, None)
        changed = [
            field
            for field in sorted({*mine, *theirs} - set(INCIDENTAL))
            if mine.get(field) != theirs.get(field)
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a run with another config ({', '.join(changed)} differ); "
                "give another --workdir, or remove that one"
            )


def read_config(workdir: Path, advice: str) -> dict[str, Any]:
    """The config of the run that the folder holds; where it cannot be read an error ends so."""
    kept = workdir / "config.json"
    try:
        # What is no file, such as a pipe, would block.
        config = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else ()
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UserError(f"{kept} cannot be read as a run's config; {advice}") from error
    return config


def link_model(entry: Path, workdir: Path, name: str) -> None:
    """Puts a stored model into the folder, by hard links where the file system has them."""
    target = workdir / "models" / name
    if is_intact(target, entry.name):
        return
    with _writing(workdir):
        target.parent.mkdir(exist_ok=True)
        files.remove(target)
        temporary = files.temporary(target)
        try:
            shutil.copytree(entry, temporary, copy_function=_link)
            os.rename(temporary, target)
        except OSError:
            if not is_intact(target, entry.name):  # otherwise another run has put it there
                raise
        finally:
            files.discard(temporary)


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_split(workdir: Path, split: Split) -> None:
    """Writes the indices into train, `forget` and `retain`, as an `.npz`."""
    with _writing(workdir):
        write_npz(workdir / "split.npz", {"forget": split.forget, "retain": split.retain})


def write_predictions(workdir: Path, name: str, predictions: dict[str, Any]) -> None:
    """Writes `Predictions` by set as the columns SET_FIELD of an `.npz`."""
    columns: dict[str, np.ndarray] = {
        f"{which}_{field}": value
        for which, prediction in predictions.items()
        for field, value in prediction._asdict().items()
        if value is not None
    }
    with _writing(workdir):
        (workdir / "predictions").mkdir(exist_ok=True)
        write_npz(workdir / "predictions" / f"{name}.npz", columns)


def read_predictions(workdir: Path, name: str) -> dict[str, Predictions]:
    """What `write_predictions` was given."""
    with np.load(workdir / "predictions" / f"{name}.npz", allow_pickle=False) as columns:
        sets: dict[str, dict[str, np.ndarray]] = {}
        for column, values in columns.items():
            which, _, field = column.rpartition("_")
            sets.setdefault(which, {})[field] = values
    return {which: Predictions(**fields) for which, fields in sets.items()}


def write_changed(
    workdir: Path, methods: Iterable[str], seeds: Iterable[int], dataset: Dataset
) -> None:
    """Writes which test images each method's model answers otherwise than the original.

    A CSV for each model, with a row for each image: `index` in test, `group` where there are any,
    `label`, the answers `before` and `after`, and each answer's probability.
    """

    def named(label: int) -> str:
        names = dataset.class_names
        return names[label] if label < len(names) else f"class {label}"

    for name, seed in itertools.product(methods, seeds):
        before, after = (
            read_predictions(workdir, f"{each}-seed{seed}")["test"] for each in ("original", name)
        )
        rows = changed(before, after)
        columns: dict[str, Iterable[Any]] = {"index": rows}
        if before.groups is not None:
            groups, names = before.groups[rows], dataset.group_names
            columns["group"] = [names[group] for group in groups] if names else groups
        columns["label"] = [named(label) for label in before.labels[rows]]
        for when, each in (("before", before), ("after", after)):
            found = probabilities(each.logits[rows])
            columns[when] = [named(label) for label in found.argmax(axis=1)]
            columns[f"probability_{when}"] = [f"{value:.6f}" for value in found.max(axis=1)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [columns, *zip(*columns.values(), strict=True)]
        )
        with _writing(workdir):
            (workdir / "changed").mkdir(exist_ok=True)
            write_text(workdir / "changed" / f"{name}-seed{seed}.csv", text.getvalue())


def write_tuning(workdir: Path, report: dict[str, Any], table: str) -> None:
    """Writes what methods' settings were chosen from, as JSON and as a table in Markdown."""
    with _writing(workdir):
        write_text(workdir / "tuning.json", json.dumps(report, indent=1, allow_nan=False))
        write_text(workdir / "tuning.md", table)


def write_report(report: Results, workdir: Path) -> None:
    """Writes the files of results; `metrics.json` last: where it is, they are whole."""
    from jaxunlearn.report import figures, summary, terminal

    with _writing(workdir):
        if (workdir / "split.npz").exists():  # of one run, whose files the page names
            write_text(workdir / "summary.md", summary.summary(cast(Report, report)))
        write_text(workdir / "table.md", terminal.markdown_table(report))
        with files.whole(workdir / "figure.png", ".png") as name:
            figures.draw(report, str(name))
        if "models" in report and figures.is_watched(report):
            with files.whole(workdir / "watch.png", ".png") as name:
                figures.draw_watch(report, str(name))
        write_text(workdir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
