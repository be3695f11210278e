"""One process at a time makes a model; the others wait for it. A death frees the lock."""

import contextlib
import inspect
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

SIGN_OF_LIFE = 5.0  # seconds between two signs of life
SILENT = 600.0  # seconds without one after which those who wait are told
PATIENCE = 10.0  # seconds between two looks at it
POLL = 0.2  # seconds between two tries


@contextlib.contextmanager
def held(path: Path, what: str, notice: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Holds the lock file `path`, once no other process does.

    The operating system frees the lock of a process that ends in whatever way. On a file system
    without locks there is none, which `notice` tells.

    Args:
      path: the lock file, made if need be.
      what: is made under the lock; for the messages.
      notice: is told who is waited for.

    Yields:
      A function to call as the work goes on, so that those who wait see that it does.
    """
    lock = _lock(path)
    holder = path.with_suffix(".holder")
    try:
        _wait(lock, holder, what, notice)
    except filelock.Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        notice(
            f"{path.parent} cannot hold locks ({error}): runs at the same time may train {what} "
            "twice"
        )
        yield lambda: None
        return
    try:
        with contextlib.suppress(OSError):  # only for the messages of those who wait
            told = {"host": socket.gethostname(), "pid": os.getpid()}
            holder.write_text(json.dumps(told), encoding="utf-8")
        yield _sign_of_life(path, holder)
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _lock(path: Path) -> filelock.BaseFileLock:
    """The operating system's lock."""
    # Where there is none, later versions would have a file instead, which stays for ever when its
    # holder's machine dies.
    if "fallback_to_soft" in inspect.signature(filelock.FileLock.__init__).parameters:
        return filelock.FileLock(path, fallback_to_soft=False)
    return filelock.FileLock(path)


def _sign_of_life(*paths: Path) -> Callable[[], None]:
    """A function that renews the files' times."""
    last = 0.0

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last > SIGN_OF_LIFE:
            last = time.monotonic()
            for path in paths:
                with contextlib.suppress(OSError):
                    os.utime(path)

    alive()
    return alive


def _wait(
    lock: filelock.BaseFileLock,
    holder: Path,
    what: str,
    notice: Callable[[str], None],
) -> None:
    """Acquires the lock; tells for whom it waits, and when that one is silent for long."""
    told, patience = False, 1.0
    while True:
        try:
            lock.acquire(timeout=patience, poll_interval=POLL)
            return
        except filelock.Timeout:
            patience = PATIENCE
        silent = 0.0
        with contextlib.suppress(OSError):
            # Not the lock file's, which those who wait renew in older versions of filelock.
            silent = time.time() - holder.stat().st_mtime
        if not told:
            notice(f"{what}: waiting for {_name(holder)}, which is training it")
            told = True
        elif silent > SILENT:
            notice(
                f"{what}: {_name(holder)} has made no progress for {silent / 60:.0f} minutes; if "
                "it hangs, stop it, and this run goes on from its last checkpoint"
            )
            patience = SILENT


def _name(holder: Path) -> str:
    """Who holds a lock, as far as is known."""
    try:
        told = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
