"""Trained models kept under a hash of all that they depend on: never trained twice, never half.

An entry is a folder `KEY/` with an Orbax checkpoint `variables/`, the logits `logits.npz` and
`meta.json`, which holds the key, the SHA-256 of every other file and its own. It is written under
a temporary name and renamed. An entry that is not what its name and its hashes say is set aside,
never used. Of several runs that need the same model one trains it, and the others wait.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import signal
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import files, locks
from jaxunlearn.errors import UserError
from jaxunlearn.files import write_npz
from jaxunlearn.training.loop import Point

FORMAT = 3  # part of every key: raise it when an entry's meaning changes
POINT = ".pass-"  # between a key and the number of passes in a checkpoint's name


def make_key(fields: Any) -> str:
    """The content hash of the fields (anything JSON can hold)."""
    text = json.dumps({"format": FORMAT, "fields": fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """SIGTERM comes after what is done within: a scheduler that stops a job may send several."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGTERM)


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays as an Orbax checkpoint."""
    # An event loop, as Orbax has, may swallow what a signal's handler raises, or wait for ever.
    with _without_sigterm(), _literal(path) as path, _checkpointer() as checkpointer:
        checkpointer.save(path, tree)


def _checkpointer() -> Any:
    """Orbax's, of this process alone: others of the run do not take part."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def load_tree(path: Path) -> Any:
    """Reads an Orbax checkpoint as nested dicts and lists of numpy arrays."""
    import orbax.checkpoint as ocp

    with _without_sigterm(), _literal(path) as path, _checkpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


@contextlib.contextmanager
def _literal(path: Path) -> Iterator[Path]:
    """A path to the same place that Orbax does not take for a pattern."""
    path = path.absolute()
    if not set("[]*?") & set(str(path.parent)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "parent")
        link.symlink_to(path.parent)
        yield link / path.name


def read_meta(path: Path) -> dict[str, Any]:
    """What `put` was given as `meta`, with the key and the hashes."""
    return json.loads((path / "meta.json").read_text(encoding="utf-8"))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`, never a pickle."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


# Why an entry cannot be read where it is not what was put; None: an error of our own.
DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_intact(path: Path, key: str) -> bool:
    """Whether a folder is the entry of that key, complete and unchanged.

    It holds regular files alone, whose hashes are those in `meta.json`; and that is of this key,
    with its own hash.

    Raises:
      UserError: it cannot be read.
    """
    try:
        hashes = _hashes(path)
        meta = read_meta(path)
        digest = meta.pop("sha256")
        return meta["key"] == key and digest == _digest(meta) and meta["files"] == hashes
    except OSError as error:
        if error.errno in DAMAGE:
            return False
        # Another user's, a file system that has gone, no more files: it may be as it was.
        raise UserError(
            f"{path} cannot be read ({error.strerror}): make it readable, or give another store"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _digest(meta: dict[str, Any]) -> str:
    """SHA-256 of what `meta.json` says besides."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file of an entry but its `meta.json`, by relative path.

    Raises:
      OSError: something there is neither a folder nor a regular file.
    """
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise OSError("not a folder")
    hashes = {}
    for folder, folders, names in os.walk(path, onerror=_raise):
        for name in sorted([*folders, *names]):
            file = Path(folder, name)
            mode = file.lstat().st_mode  # a link may lead anywhere, a pipe would block
            if stat.S_ISREG(mode):
                hashes[file.relative_to(path).as_posix()] = files.sha256(file)
            elif not stat.S_ISDIR(mode):
                raise OSError("not a regular file")
    del hashes["meta.json"]
    return hashes


def _raise(error: OSError) -> None:
    raise error


class Store:
    """Entries by key in the folder `root`; `notice` is told of what a user should know.

    A folder that cannot be written is used for what it has. Where it is another process's of the
    run (`elsewhere`), it is only named.
    """

    def __init__(self, root: Path, notice: Callable[[str], None], elsewhere: bool = False):
        self.root, self.notice = root, notice
        if elsewhere:
            return
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the store {root} cannot be made ({error.strerror}); set store"
            ) from error
        self.writable = os.access(root, os.W_OK)
        if self.writable:
            files.sweep(root)
            self._sweep_locks()

    def _sweep_locks(self) -> None:
        """Removes the lock files of runs that were killed long ago."""
        for suffix in ("lock", "holder"):
            for path in self.root.glob(f".{'[0-9a-f]' * 32}.{suffix}"):
                with contextlib.suppress(OSError):  # gone in the meantime
                    if time.time() - path.stat().st_mtime > files.ABANDONED:
                        path.unlink()

    def get(self, key: str) -> Path | None:
        """Returns the entry's folder, or None where there is none or it was damaged."""
        path = self.root / key
        while (found := _identity(path)) is not None:
            if is_intact(path, key):
                return path
            if _identity(path) == found:
                self._set_aside(path)
                return None
            # Not damaged: another run has removed or replaced it while it was read.
        return None

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
        said = f"the stored entry {path.name} was damaged"
        if not self.writable:
            self.notice(f"{said}; the store cannot be written, so it stays and is not used")
            return
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            os.replace(path, aside)
            self.notice(f"{said}: set aside as {aside.name}, and rebuilt")

    @contextlib.contextmanager
    def making(self, key: str, what: str) -> Iterator[Callable[[], None]]:
        """While the model of a key is made: other runs that need it wait.

        Yields:
          A function to call as the work goes on.

        Raises:
          UserError: the store cannot be written.
        """
        if not self.writable:
            raise UserError(
                f"the store {self.root} cannot be written and has no model for {what}; set store "
                "to a folder that can"
            )
        lock = self.root / f".{key}.lock"
        with locks.held(lock, what, self.notice) as alive:
            yield alive
            # Not after a failure: those who wait hold on to this file, and find no entry.
            lock.unlink(missing_ok=True)

    def put(
        self,
        key: str,
        *,
        meta: dict[str, Any],
        trees: dict[str, Any],
        arrays: dict[str, dict[str, np.ndarray]] | None = None,
    ) -> Path:
        """Writes an entry: pytrees as Orbax checkpoints, arrays as `.npz`, `meta` as JSON.

        Raises:
          UserError: it cannot be written; nothing of it stays.
        """
        path = self.root / key
        temporary = files.temporary(path)
        try:
            with files.writing(self.root, "the store", "free some space, or set store"):
                temporary.mkdir()
                for name, tree in trees.items():
                    save_tree(temporary / name, tree)
                for name, columns in (arrays or {}).items():
                    write_npz(temporary / f"{name}.npz", columns)
                (temporary / "meta.json").touch()
                meta = json.loads(json.dumps({**meta, "key": key, "files": _hashes(temporary)}))
                text = json.dumps({**meta, "sha256": _digest(meta)}, indent=1)
                (temporary / "meta.json").write_text(text, encoding="utf-8")
                try:
                    os.rename(temporary, path)
                except OSError:
                    # Where another run has put the same content there, that one stays.
                    if not is_intact(path, key):
                        raise
        finally:
            files.discard(temporary)
        return path

    def remove(self, pattern: str, before: str = "~") -> None:
        """Removes the entries whose names fit the pattern and sort before a name."""
        if self.writable:
            for path in self.root.glob(pattern):
                if path.name < before:
                    files.remove(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that took its name; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The points that a run of a key can resume from: entries beside it in the store.

    Attributes:
      store: where.
      key: of the model in the making.
      every: passes between two points.
      made_on: the machines that have worked on it, in order: this one, and before it those of the
        point that `latest` found.
    """

    store: Store
    key: str
    every: int
    made_on: list[dict[str, Any]]
    _last: list[Point] = dataclasses.field(default_factory=list)  # not in the store yet, if any

    def save(self, point: Point) -> None:
        """Keeps the point if it is its turn, in place of earlier ones."""
        # On the host: the next step takes the buffers over.
        point = point._replace(state=jax.tree.map(np.array, jax.device_get(point.state)))
        self._last[:] = [point]
        if len(point.history) % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """Keeps the last point, if it is not in the store yet; SIGTERM waits for it."""
        with _without_sigterm():
            self._flush()

    def _flush(self) -> None:
        while self._last:
            point = self._last[-1]
            meta: dict[str, Any] = {
                "done": point.done,
                "history": point.history,
                "seconds": point.seconds,
                "answers": point.answers,
                "made_on": self.made_on,
            }
            trees: dict[str, Any] = {"state": point.state}
            if point.saved:
                trees["saved"] = point.saved
            name = f"{self.key}{POINT}{len(point.history):06d}"
            self.store.put(name, meta=meta, trees=trees)
            self._last.clear()  # now: whoever is stopped while it is written tries again
            self.store.remove(f"{self.key}{POINT}*", before=name)

    def latest(self) -> Point | None:
        """The furthest intact point."""
        for path in sorted(self.store.root.glob(f"{self.key}{POINT}??????"), reverse=True):
            entry = self.store.get(path.name)
            if entry is None:
                continue
            meta, state = read_meta(entry), load_tree(entry / "state")
            saved = load_tree(entry / "saved") if (entry / "saved").exists() else {}
            before = [machine for machine in meta["made_on"] if machine not in self.made_on]
            self.made_on[:] = [*before, *self.made_on]
            return Point(
                meta["done"], state, meta["history"], meta["seconds"], meta["answers"], saved
            )
        return None

    def clear(self) -> None:
        """Removes them."""
        self.store.remove(f"{self.key}{POINT}*")
