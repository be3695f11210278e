"""The one reader of files that a user gives as data.

Nothing is unpickled, nothing is unpacked to disk, and a file is asked how large its content is
before any of it is read. Whatever is wrong with one is a `UserError` of one line: "PATH cannot be
read as KIND: REASON; ADVICE".
"""

import contextlib
import gzip
import io
import math
import os
import re
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from jaxunlearn.errors import UserError, one_line, shown
from jaxunlearn.files import local

TEXT_LIMIT = 16 * 2**20  # bytes of a text file: two million lines of seven digits
ARCHIVE_LIMIT = 2**29  # unpacked bytes of a .tar.gz; the published ones have under 0.2 GiB
_HEADER_LIMIT = 12 * 2**10  # bytes of a .npy up to its data; NumPy reads headers of 10,000
_DEFLATE = 1032  # bytes that one byte of deflate can make at most
_KINDS = {  # what is no file although it has a name
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


class Form(NamedTuple):
    """What a file should be, as its errors word it: "cannot be read as KIND: …; ADVICE"."""

    kind: str
    advice: str


class Declared(NamedTuple):
    """What an array in a file declares of itself; `start` is where its data begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Unfit(Exception):
    """Why a file is refused, in words."""


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gib(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB"


def named(path: Path) -> str:
    """A path as messages show it: whole where it can be."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 120 else shown(text, 120)


def regular(path: str | os.PathLike, what: str, form: Form) -> Path:
    """The path of a file with content, `~` expanded.

    Args:
      path: as the user gave it.
      what: what the user calls it, such as "data.path".
      form: what the file should be.

    Raises:
      UserError: no such path, or it is no regular file (nor a link to one), may not be read or is
        empty.
    """
    file = local(path, what)
    with _parsing(file, form):
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            link = file.is_symlink()
            reason = "it is a link to no file" if link else "there is no file of that name"
            raise _Unfit(reason) from None
        except OSError as error:
            raise _Unfit(error.strerror) from None
        if not stat.S_ISREG(found.st_mode):  # a pipe would hang, a device never end
            raise _Unfit(_KINDS.get(stat.S_IFMT(found.st_mode), "it is no regular file"))
        if not os.access(file, os.R_OK):
            raise _Unfit("there is no permission to read it")
        if found.st_size == 0:
            raise _Unfit("the file is empty")
    return file


def text(path: Path, form: Form) -> str:
    """The content of a UTF-8 text file of up to `TEXT_LIMIT` bytes, lines ended by newlines."""
    with _parsing(path, form), open(path, "rb") as opened:
        content = opened.read(TEXT_LIMIT + 1)
        if len(content) > TEXT_LIMIT:
            raise _Unfit(f"it has more than {TEXT_LIMIT // 2**20} MiB")
        try:
            decoded = content.decode("utf-8-sig")  # Windows' editors begin with a mark
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise _Unfit(f"line {line} is not UTF-8 text") from None
        return decoded.replace("\r\n", "\n").replace("\r", "\n")


Check = Callable[[dict[str, Declared]], None]


def npy(path: Path, form: Form, name: str, check: Check = lambda declared: None) -> np.ndarray:
    """The array of a `.npy` file, called `name`; see `npz`."""
    with _parsing(path, form), open(path, "rb") as opened:
        header = _header(opened, name, path.stat().st_size)
        check({name: header})
        _check_memory(header.nbytes)
        opened.seek(0)
        return _data(opened)


def npz(
    path: Path,
    form: Form,
    needed: Collection[str],
    optional: Collection[str] = (),
    check: Check = lambda declared: None,
) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file by name; its other members are left alone, whatever they hold.

    Args:
      path: the file.
      form: what it should be.
      needed: names of arrays.
      optional: more of them, read where there are any.
      check: raises `UserError` where the declared types and shapes will not do; it is called before
        any array is read.

    Raises:
      UserError: a needed array is missing, one is not as large as it declares, or all are larger
        than the machine's memory.
    """
    with _parsing(path, form), open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in needed or name in optional:
                if name in members:
                    raise _Unfit(f"it holds {name} twice")
                members[name] = info
        missing = [name for name in needed if name not in members]
        if missing:
            raise _Unfit(f"it lacks {', '.join(missing)}")
        size = path.stat().st_size
        headers = {}
        for name, info in members.items():
            _check_packed(info, name, size)
            with archive.open(info) as stream:
                headers[name] = _header(stream, name, info.file_size)
        check(headers)
        _check_memory(sum(header.nbytes for header in headers.values()))
        arrays = {}
        for name, info in members.items():
            with archive.open(info) as stream:
                arrays[name] = _data(stream)
        return arrays


def tar_gz(path: Path, form: Form, names: str) -> dict[str, bytes]:
    """The members of a `.tar.gz` whose names without folders match the expression `names`.

    No more than `ARCHIVE_LIMIT` bytes are unpacked, and the file's checksum is verified.
    """
    found: dict[str, bytes] = {}
    with (
        _parsing(path, form),
        open(path, "rb") as opened,
        gzip.GzipFile(fileobj=opened) as unpacked,
    ):
        stream = _Bounded(unpacked, ARCHIVE_LIMIT)
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                name = member.name.rpartition("/")[2]
                if not re.fullmatch(names, name):
                    continue
                if name in found:
                    raise _Unfit(f"it holds {name} twice")
                if not member.isreg() or member.issparse():
                    raise _Unfit(f"its {name} is a link or no plain file")
                if member.size > ARCHIVE_LIMIT:
                    raise _Unfit(f"its {name} declares {gib(member.size)}")
                found[name] = tar.extractfile(member).read()
                if len(found[name]) != member.size:
                    raise _Unfit(f"its {name} is cut off")
        # tarfile ends at a damaged header as at the end; gzip checks its sum there.
        while stream.read(2**20):
            pass
    return found


class _Bounded:
    """A stream to read from that ends in an error once it gives more than `most` bytes."""

    def __init__(self, stream: gzip.GzipFile, most: int):
        self.stream, self.most, self.left = stream, most, most

    def read(self, size: int) -> bytes:
        # In pieces: a damaged header asks for any number of bytes at once.
        pieces, wanted = [], size
        while wanted and (piece := self.stream.read(min(wanted, 2**20))):
            pieces.append(piece)
            wanted -= len(piece)
            self.left -= len(piece)
            if self.left < 0:
                raise _Unfit(f"it unpacks to more than {gib(self.most)}")
        return b"".join(pieces)


@contextlib.contextmanager
def _parsing(path: Path, form: Form) -> Iterator[None]:
    """Turns whatever goes wrong with the content of a file into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old header's spelling, or a damaged one's
            yield
    except UserError:
        raise
    # Exception: given any bytes, zipfile, tarfile and NumPy's header raise all sorts of them.
    except Exception as error:
        reason = f"it is damaged or of another kind ({one_line(error)[:80]})"
        if isinstance(error, _Unfit):
            reason = str(error)
        elif isinstance(error, PermissionError | FileNotFoundError):
            reason = str(error.strerror)
        raise UserError(
            f"{named(path)} cannot be read as {form.kind}: {reason}; {form.advice}"
        ) from error


def _header(stream: IO[bytes], name: str, size: int) -> Declared:
    """The header of an array that has `size` bytes in all."""
    start = io.BytesIO(stream.read(_HEADER_LIMIT))
    version = npy_format.read_magic(start)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in read:
        raise _Unfit(f"{name} is .npy of version {version}; readable: (1, 0) and (2, 0)")
    header = Declared(*read[version](start), start.tell())
    if header.dtype.hasobject:
        raise _Unfit(f"{name} holds pickled Python objects, which are never loaded")
    if header.dtype.itemsize == 0 or min(header.shape, default=0) < 0:
        raise _Unfit(f"{name} declares {header.dtype} {list(header.shape)}")
    if header.start + header.nbytes != size:
        raise _Unfit(f"{name} declares {header.nbytes} bytes and has {size - header.start}")
    return header


def _data(stream: IO[bytes]) -> np.ndarray:
    """The array of a `.npy`; at its end, a member of an archive is checked against its sum."""
    array = npy_format.read_array(stream, allow_pickle=False)
    stream.read(1)
    return array


def _check_packed(info: zipfile.ZipInfo, name: str, size: int) -> None:
    """Raises unless a member is packed as NumPy does, and can be as large as it declares."""
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE}.get(info.compress_type)
    if most is None:  # other packings unpack without a bound on memory
        raise _Unfit(f"{name} is packed in a way that NumPy does not use")
    if info.compress_size > size or info.file_size > most * max(info.compress_size, 1):
        raise _Unfit(
            f"{name} declares {info.file_size} bytes, more than {size} bytes of file can hold"
        )


def _check_memory(needed: int) -> None:
    """Raises where arrays are larger than this machine's memory."""
    if needed > memory():
        raise _Unfit(f"its arrays have {gib(needed)}; this machine's memory: {gib(memory())}")
