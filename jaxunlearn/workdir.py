"""The folder of results: claimed by one config, written file by file, whole or not at all."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import files
from jaxunlearn.data.forget import Split
from jaxunlearn.errors import UserError
from jaxunlearn.files import write_npz, write_text
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.metrics.results import Results
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
    mine = json.loads(json.dumps(config.to_dict()))
    kept = workdir / "config.json"
    try:
        theirs = None
        if os.path.lexists(kept):
            # What is no file, such as a pipe, would block.
            theirs = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else ()
        if theirs is not None and not isinstance(theirs, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UserError(
            f"{kept} cannot be read as a run's config; give another --workdir, or remove it"
        ) from error
    if theirs is not None:
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
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        for folder in (workdir, workdir / "models", workdir / "predictions", workdir / "diverged"):
            files.sweep(folder)
        write_text(kept, json.dumps(mine, indent=1))


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


def write_report(report: Results, workdir: Path) -> None:
    """Writes the files of results; `metrics.json` last: where it is, they are whole."""
    from jaxunlearn.report import figures, terminal

    with _writing(workdir):
        write_text(workdir / "table.md", terminal.markdown_table(report))
        with files.whole(workdir / "figure.png", ".png") as name:
            figures.draw(report, str(name))
        write_text(workdir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
