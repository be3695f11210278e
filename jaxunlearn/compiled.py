"""Compiled programs kept from run to run, so that a second one starts to train at once.

JAX's own persistent cache does the work, in a folder of the user's own: what it holds is machine
code, which must not come with a store that others can write. What is added here: a folder for each
kind of processor, since a program for one can crash on another, and a hash beside each entry, so
that a damaged one is compiled again instead of run.
"""

import contextlib
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxunlearn import files

LARGEST = 2**30  # bytes of all entries of a folder; the least recently used go first
ENTRY = "-cache"  # ends the name of JAX's entries
BESIDE = ("-atime", f"{ENTRY}.sha256")  # what belongs to an entry, after the same beginning


def default_folder() -> Path:
    """Where programs for this machine's processor are kept."""
    described = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
        kinds = ("flags", "Features", "model name", "CPU part")
        described += "".join(sorted(line for line in lines if line.startswith(kinds)))
    kind = hashlib.sha256(described.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "jaxunlearn" / "compiled" / kind


@contextlib.contextmanager
def kept(folder: Path | None = None) -> Iterator[None]:
    """What is compiled in the context is kept in the folder, and read from there.

    Does nothing where the user has set JAX's own `jax_compilation_cache_dir`, where several
    processes compute a run, and where the folder cannot be written or there is no home folder.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    with contextlib.suppress(RuntimeError):  # there is no home folder
        folder = folder or default_folder()
    if folder is None:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": LARGEST,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    if before["jax_compilation_cache_dir"] or jax.process_count() > 1 or not _prepare(folder):
        yield
        return

    def change(values: dict) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it remembers its folder

    change(settings)
    there = set(folder.glob(f"*{ENTRY}"))
    try:
        with warnings.catch_warnings():
            # What cannot be read or written is compiled: there is nothing that a user should do.
            warnings.filterwarnings("ignore", ".*persistent compilation cache entry")
            warnings.filterwarnings("ignore", "Cache value for key")
            yield
    finally:
        change(before)
        _sign(folder, there)


def _prepare(folder: Path) -> bool:
    """Makes the folder, and removes what is not as it was signed; False where it cannot.

    A run signs its entries when it ends: young ones without a hash are of runs that still go on, or
    were killed. JAX writes them compressed, and compiles what it cannot read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        for entry in folder.glob(f"*{ENTRY}"):
            atime, signed = _beside(entry)
            if not signed.is_file():
                removed = time.time() - entry.stat().st_mtime > files.ABANDONED
            else:
                removed = not atime.is_file() or signed.read_text() != files.sha256(entry)
            if removed:
                for path in (entry, atime, signed):
                    path.unlink(missing_ok=True)
        return os.access(folder, os.W_OK)
    except (OSError, ValueError):
        return False


def _sign(folder: Path, there: set[Path]) -> None:
    """Writes the hashes of new entries; of those that were there another run may have left a part.

    Each is signed anew, as JAX may have removed an entry, and its hash be left.
    """
    with contextlib.suppress(OSError):
        for entry in set(folder.glob(f"*{ENTRY}")) - there:
            _, signed = _beside(entry)
            files.write_text(signed, files.sha256(entry))


def _beside(entry: Path) -> list[Path]:
    return [entry.with_name(entry.name.removesuffix(ENTRY) + ending) for ending in BESIDE]
