"""The folder of results: claimed by one config, written file by file, whole or not at all."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn.errors import UserError
from jaxunlearn.metrics.results import Results
from jaxunlearn.store import write_npz, write_text

# What a run may change and still be the same run: these do not alter its numbers.
INCIDENTAL = ("store", "devices", "checkpoint_every")


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the working directory, or sees that it holds a run of this very config."""
    mine = json.loads(json.dumps(config.to_dict()))
    kept = workdir / "config.json"
    try:
        theirs = json.loads(kept.read_text()) if kept.exists() else None
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
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(mine, indent=1))
    except OSError as error:
        raise UserError(
            f"the working directory {workdir} cannot be written ({error.strerror}); "
            "give another --workdir"
        ) from error


def copy_model(entry: Path, target: Path) -> None:
    """Puts a stored model into the folder, by hard links where the file system has them."""
    meta = (entry / "meta.json").read_bytes()
    if (target / "meta.json").exists() and (target / "meta.json").read_bytes() == meta:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(entry, temporary, copy_function=_link)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_predictions(path: Path, predictions: dict[str, Any]) -> None:
    """Writes `Predictions` by set as the columns SET_FIELD of an `.npz`."""
    path.parent.mkdir(exist_ok=True)
    columns: dict[str, np.ndarray] = {
        f"{which}_{field}": value
        for which, prediction in predictions.items()
        for field, value in prediction._asdict().items()
        if value is not None
    }
    write_npz(path, columns)


def write_report(report: Results, workdir: Path) -> None:
    """Writes the files of results; `metrics.json` last: where it is, they are whole."""
    from jaxunlearn.report import figures, terminal

    write_text(workdir / "table.md", terminal.markdown_table(report))
    figures.draw(report, str(workdir / "figure.png"))
    write_text(workdir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
