"""Trained models kept under a hash of all that they depend on: never trained twice, never half.

An entry is a folder `KEY/` with an Orbax checkpoint `variables/`, the logits `logits.npz` and
`meta.json`, which holds the SHA-256 of every other file. It is written under a temporary name and
renamed, so two runs may share a store, and an entry whose files do not match is set aside, never
used.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.training.loop import Point

FORMAT = 2  # part of every key: raise it when an entry's meaning changes
POINT = ".pass-"  # between a key and the number of passes in a checkpoint's name
TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.pass-\d{6})?\.[0-9a-f]{32}")  # what `put` is writing
ABANDONED = 24 * 3600  # seconds after which no run is still writing an entry


def make_key(fields: Any) -> str:
    """The content hash of the fields (anything JSON can hold)."""
    text = json.dumps({"format": FORMAT, "fields": fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz` whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays as an Orbax checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), tree)


def load_tree(path: Path) -> Any:
    """Reads an Orbax checkpoint as nested dicts and lists of numpy arrays."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(
            path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )


class Store:
    """Entries by key in the folder `root`; `notice` is called for each entry set aside."""

    def __init__(self, root: Path, notice: Callable[[str], None]):
        self.root, self.notice = root, notice
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the store {root} cannot be made ({error.strerror}); set store"
            ) from error
        if not os.access(root, os.W_OK):
            raise UserError(f"the store {root} cannot be written; set store")
        for path in root.glob(".*"):  # half-written, perhaps by a run that was killed
            with contextlib.suppress(OSError):  # gone in the meantime
                old = time.time() - path.stat().st_mtime > ABANDONED
                if old and TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def get(self, key: str) -> Path | None:
        """Returns the entry's folder, or None where there is none or it was damaged."""
        path = self.root / key
        if not path.exists():
            return None
        try:
            files = json.loads((path / "meta.json").read_text())["files"]
            intact = files == self._hashes(path)
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if intact:
            return path
        aside = path.with_name(f"{key}.damaged-{uuid.uuid4().hex[:8]}")
        try:
            os.replace(path, aside)
        except FileNotFoundError:
            return None  # not damaged: another run was removing it
        self.notice(f"the stored entry {key} was damaged: set aside as {aside.name}, and rebuilt")
        return None

    def put(
        self,
        key: str,
        *,
        meta: dict[str, Any],
        trees: dict[str, Any],
        arrays: dict[str, dict[str, np.ndarray]] | None = None,
    ) -> Path:
        """Writes an entry: pytrees as Orbax checkpoints, arrays as `.npz`, `meta` as JSON."""
        path = self.root / key
        temporary = self.root / f".{key}.{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            for name, tree in trees.items():
                save_tree(temporary / name, tree)
            for name, columns in (arrays or {}).items():
                write_npz(temporary / f"{name}.npz", columns)
            text = json.dumps({**meta, "files": self._hashes(temporary)}, indent=1)
            (temporary / "meta.json").write_text(text)
            try:
                os.rename(temporary, path)
            except OSError:
                if not path.exists():
                    raise  # otherwise another run has put the same content there: keep that one
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path

    def remove(self, pattern: str, before: str = "~") -> None:
        """Removes the entries whose names fit the pattern and sort before a name."""
        for path in self.root.glob(pattern):
            if path.name < before:
                shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def _hashes(path: Path) -> dict[str, str]:
        """SHA-256 of every file of an entry but its `meta.json`, by relative path."""
        return {
            str(file.relative_to(path)): hash_file(file)
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name != "meta.json"
        }


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The points that a run of a key can resume from: entries beside it in the store.

    Attributes:
      store: where.
      key: of the model in the making.
      every: passes between two points.
    """

    store: Store
    key: str
    every: int

    def save(self, point: Point) -> None:
        """Keeps the point if it is its turn, in place of earlier ones."""
        if len(point.history) % self.every:
            return
        meta = {
            "done": point.done,
            "history": point.history,
            "seconds": point.seconds,
            "answers": point.answers,
        }
        trees = {"state": jax.device_get(point.state)}
        if point.saved:
            trees["saved"] = point.saved
        name = f"{self.key}{POINT}{len(point.history):06d}"
        self.store.put(name, meta=meta, trees=trees)
        self.store.remove(f"{self.key}{POINT}*", before=name)

    def latest(self) -> Point | None:
        """The furthest intact point."""
        for path in sorted(self.store.root.glob(f"{self.key}{POINT}??????"), reverse=True):
            entry = self.store.get(path.name)
            if entry is None:
                continue
            try:
                meta, state = read_meta(entry), load_tree(entry / "state")
                saved = load_tree(entry / "saved") if (entry / "saved").exists() else {}
            except OSError:  # another run has gone further, and removed it
                continue
            return Point(
                meta["done"], state, meta["history"], meta["seconds"], meta["answers"], saved
            )
        return None

    def clear(self) -> None:
        """Removes them."""
        self.store.remove(f"{self.key}{POINT}*")


def read_meta(path: Path) -> dict[str, Any]:
    """What `put` was given as `meta`."""
    return json.loads((path / "meta.json").read_text())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`, never a pickle."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
