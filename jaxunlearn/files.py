"""Files on this machine: the folders that a user names, and writes that are whole or not at all.

What is being written has a temporary name that tells by whom, so that the next run can remove what
a killed one has left.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxunlearn.errors import UserError, one_line, shown

# .NAME.tmp-HOST-PID-RANDOM, RANDOM 32 hexadecimal digits
TEMPORARY = re.compile(r"\..*\.tmp-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]{32}(\.[a-z]+)?")
ABANDONED = 24 * 3600  # seconds after which no run of another machine is still writing
LONGEST_NAME = 255  # bytes of one part of a path, on all common file systems


def local(path: str | os.PathLike, what: str) -> Path:
    """The path on this machine that a user gave, `~` expanded.

    Args:
      path: as given.
      what: what it is called in the message, such as "config.store".

    Raises:
      UserError: it is a URL, or no file system can have such a name.
    """
    text = os.fspath(path)
    if re.match(r"[a-zA-Z][\w+.-]+:/", text):
        raise UserError(
            f"{what} must be on this machine's file system, got {shown(text)}; mount it and give "
            "the mounted path"
        )
    if "\0" in text:
        raise UserError(f"{what} must be a path without NUL characters, got {shown(text)}")
    try:
        expanded = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{what}={shown(text)}: there is no such user's home folder") from error
    try:
        os.fsencode(expanded)
    except UnicodeEncodeError as error:
        raise UserError(f"{what}={shown(text)} cannot be the name of a file") from error
    longest = max((len(os.fsencode(part)) for part in expanded.parts), default=0)
    if longest > LONGEST_NAME:
        raise UserError(
            f"{what} has a name of {longest} bytes; allowed: up to {LONGEST_NAME}; shorten it"
        )
    return expanded


def temporary(path: Path, suffix: str = "") -> Path:
    """A name beside `path` to write it under, for `sweep` to know."""
    # As long as any name that a file system takes, whatever the path's own.
    name = path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")
    return path.with_name(f".{name}.tmp-{host()}-{os.getpid()}-{uuid.uuid4().hex}{suffix}")


def within(name: str, most: int) -> str:
    """The name in at most `most` bytes of UTF-8; a longer one is cut, and ends in its hash."""
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: most - 9].decode(errors='ignore')}-{digest}"


def host() -> str:
    """Names what process numbers are of: the machine, and in a container the container."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = f"-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()[: 60 - len(namespace)] + namespace


@contextlib.contextmanager
def whole(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary name to write the file or folder `path` under, renamed when all is written."""
    name = temporary(path, suffix)
    try:
        yield name
        os.replace(name, path)
    finally:
        discard(name)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as name:
        name.write_text(text, encoding="utf-8")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz`, whole or not at all."""
    with whole(path, ".npz") as name:  # savez adds the suffix to any other name
        np.savez(name, **arrays)  # type: ignore[arg-type]


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def discard(path: Path) -> None:
    """Removes a file or a folder, if it is there; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes an entry or a folder of results in one step for whoever looks it up."""
    away = temporary(path)
    with contextlib.suppress(OSError):  # removed by another run
        os.rename(path, away)
        discard(away)


def sweep(folder: Path) -> None:
    """Removes what runs that are dead were writing in a folder when they were killed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and _is_dead(path, match["host"], int(match["pid"])):
                discard(path)


def _is_dead(path: Path, where: str, pid: int) -> bool:
    """Whether the process that writes a file is gone; of another machine's, whether it must be."""
    if where != host():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > ABANDONED
        return False
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@contextlib.contextmanager
def writing(folder: Path, what: str, advice: str) -> Iterator[None]:
    """Turns a failed write into a user's error: "WHAT FOLDER cannot be written (…); ADVICE"."""
    try:
        yield
    except UserError:
        raise
    # ValueError: how Orbax's TensorStore tells of the file system.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        if "RESOURCE_EXHAUSTED" in str(error):  # in TensorStore's words, which fill a page
            reason = os.strerror(errno.ENOSPC)
        raise UserError(f"{what} {folder} cannot be written ({reason}); {advice}") from error
