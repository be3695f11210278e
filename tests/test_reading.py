"""Every file that a user gives: what it may be, and one line for all that it may not."""

import gzip
import io
import os
import socket
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from mutate import mutate

from jaxunlearn import data
from jaxunlearn.data import common, dataset, forget, reading
from jaxunlearn.data.load import DEFAULTS
from jaxunlearn.errors import UserError
from jaxunlearn.files import temporary

FORM = reading.Form("a test file", "give another one")


def settings(name="npz", **fields):
    return ConfigDict(DEFAULTS | {"name": name} | fields)


def request(path):
    return ConfigDict(forget.DEFAULTS | {"kind": "indices", "path": str(path)})


def arrays(**changes):
    """Ten, four and four images of two classes."""
    made = {}
    for seed, (name, n) in enumerate((("train", 10), ("val", 4), ("test", 4))):
        rng = np.random.default_rng(seed)
        made[f"{name}_images"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        made[f"{name}_labels"] = np.arange(n) % 2
    return made | changes


def saved(path, **content):
    np.savez(path, **content)
    return path


TEN = dataset.Dataset(
    "ten",
    *[dataset.Examples(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10, dtype=np.int32) % 2)] * 3,
    ("a", "b"),
)


def error_of(function, *args):
    """The one line that a call ends in."""
    with pytest.raises(UserError) as error:
        function(*args)
    text = str(error.value)
    assert "\n" not in text and len(text) <= 300 and "allow_pickle" not in text
    return text


# What is no file.


@pytest.fixture(
    params=["folder", "pipe", "socket", "device", "no file", "link to no", "levels", "empty"]
)
def no_file(request, tmp_path, monkeypatch):
    """A path that names no file with content, and the word for what it is."""
    path = tmp_path / "it.npz"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("it.npz")
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "link to no":
        path.symlink_to(tmp_path / "nowhere")
    elif request.param == "levels":
        path.symlink_to(path)
    elif request.param == "empty":
        path.touch()
    return path, request.param


@pytest.mark.parametrize("name", ["npz", "bloodmnist", "cifar10"])
def test_data_path_that_is_no_file_is_refused(name, no_file):
    path, word = no_file
    message = error_of(data.load, settings(name, path=str(path)))
    assert str(path) in message and word in message


def test_forget_path_that_is_no_file_is_refused(no_file):
    path, word = no_file
    assert word in error_of(forget.resolve, request(path), TEN)


def test_a_file_taken_for_a_folder_is_refused(tmp_path):
    (tmp_path / "a.npz").touch()
    path = str(tmp_path / "a.npz" / "b.npz")
    assert "there is no file of that name" in error_of(data.load, settings(path=path))


def test_a_pipe_in_the_download_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "bloodmnist.npz")
    message = error_of(data.load, settings("bloodmnist", root=str(tmp_path)))
    assert "it is a named pipe; delete it" in message


@pytest.mark.parametrize("path", ["gs://bucket/a.npz", "a\0b.npz", "~nosuchuser/a.npz", "n" * 300])
def test_paths_that_no_file_system_has_are_refused(path):
    for name in ("npz", "cifar10", "bloodmnist"):
        assert "data.path" in error_of(data.load, settings(name, path=path))
    assert "forget.path" in error_of(forget.resolve, request(path), TEN)
    assert "data.root" in error_of(data.load, settings("bloodmnist", root=path))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", **arrays())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs tests may be root
    assert "no permission" in error_of(data.load, settings(path=str(path)))


def test_a_link_to_a_file_is_read(tmp_path):
    saved(tmp_path / "a.npz", **arrays())
    (tmp_path / "link.npz").symlink_to("a.npz")
    assert len(data.load(settings(path=str(tmp_path / "link.npz"))).train) == 10


# .npz and .npy.


def test_members_that_are_not_needed_are_left_alone(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(notes=np.array([{"a": 1}], dtype=object)))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("readme.txt", b"x" * 1000)
        archive.writestr("huge.npy", header((10**6, 10**6), "<f8"))
    assert len(data.load(settings(path=str(path))).train) == 10


def header(shape, descr, version=(1, 0)):
    """The first bytes of a .npy that declares such an array."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text


def replaced(path, member, content, packing=zipfile.ZIP_STORED):
    """A valid file of which one member has this content."""
    made = {name: array for name, array in arrays().items() if name != member}
    saved(path, **made)
    with zipfile.ZipFile(path, "a", packing) as archive:
        archive.writestr(f"{member}.npy", content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header((2**31,), "|u1"), "train_labels declares 2147483648 bytes and has 0"),
        (header((10,), "<i8") + bytes(81), "declares 80 bytes and has 81"),
        (header((10,), "<i8") + bytes(79), "declares 80 bytes and has 79"),
        (header((-10,), "<i8") + bytes(80), "declares int64 [-10]"),
        (header((2**62,), "<U0"), "declares <U0"),
        (header((10,), "|O") + bytes(80), "holds pickled Python objects, which are never loaded"),
        (header((10,), "<i8", (3, 0)) + bytes(80), "of version (3, 0)"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), "EOF"),
        (b"\x80\x04pickle", "magic"),
    ],
)
def test_an_array_that_is_not_as_large_as_it_declares_is_refused(content, reason, tmp_path):
    path = replaced(tmp_path / "a.npz", "train_labels", content)
    assert reason in error_of(data.load, settings(path=path))
    (tmp_path / "a.npy").write_bytes(content)
    reason = reason.replace("train_labels", "the list")
    assert reason in error_of(forget.resolve, request(tmp_path / "a.npy"), TEN)


def test_arrays_larger_than_the_memory_are_refused_before_any_is_read(tmp_path, monkeypatch):
    zeros = np.zeros((10, 512, 512), np.uint8)  # 2.5 MiB, packed in 3 KiB
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays(train_images=zeros))
    monkeypatch.setattr(reading, "memory", lambda: 10**6)
    tracemalloc.start()
    message = error_of(data.load, settings(path=str(path)))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert "its arrays have 0.00244 GiB; this machine's memory: 0.000931 GiB" in message


def test_a_small_file_that_declares_a_large_member_is_refused(tmp_path, monkeypatch):
    path = Path(replaced(tmp_path / "a.npz", "train_labels", header((2**31,), "|u1") + bytes(9)))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last member's entry in the directory
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31 + 74)
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)  # a long path would cut the message
    assert "can hold" in error_of(data.load, settings(path="a.npz"))


def test_arrays_of_another_shape_are_refused_before_any_is_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays(train_images=np.zeros((10000, 32, 32), np.uint8)))
    tracemalloc.start()
    message = error_of(data.load, settings(path=str(path)))
    assert tracemalloc.get_traced_memory()[1] < 2**20  # of 10 MiB
    tracemalloc.stop()
    assert "train_labels has 10 numbers for the 10000 images of train_images" in message


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_numpy_does_not_use_are_refused(packing, tmp_path):
    content = header((10,), "<i8") + bytes(80)
    path = replaced(tmp_path / "a.npz", "train_labels", content, packing)
    assert "packed in a way that NumPy does not use" in error_of(data.load, settings(path=path))


def test_an_array_that_the_file_holds_twice_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile's own, on writing
        archive.writestr("train_labels.npy", header((10,), "<i8") + bytes(80))
    assert "it holds train_labels twice" in error_of(data.load, settings(path=str(path)))


def test_arrays_come_back_in_every_order_packing_and_byte_order(tmp_path):
    content = {
        "c": np.arange(24, dtype=">i4").reshape(2, 3, 4),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "one": np.array(7),
        "none": np.zeros((0, 3), np.int16),
        "words": np.array(["é", "melanoma"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **content)
        back = reading.npz(tmp_path / "a.npz", FORM, list(content))
        for name, array in content.items():
            assert back[name].dtype == array.dtype and np.array_equal(back[name], array)
    np.save(tmp_path / "a.npy", content["f"])
    assert np.array_equal(reading.npy(tmp_path / "a.npy", FORM, "it"), content["f"])


# .tar.gz.


def archive(path, members):
    """A .tar.gz of pairs (name, content), or of whole members."""
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def test_of_an_archive_only_what_is_needed_is_kept(tmp_path):
    pairs = [("folder/a.bin", b"123"), ("other.txt", b"456"), ("a.bin.old", b"")]
    assert reading.tar_gz(archive(tmp_path / "a", pairs), FORM, r"a\.bin") == {"a.bin": b"123"}


def linked(kind):
    info = tarfile.TarInfo("a.bin")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x/a.bin", b"1"), ("y/a.bin", b"2")], "it holds a.bin twice"),
        ([linked(tarfile.SYMTYPE)], "its a.bin is a link or no plain file"),
        ([linked(tarfile.LNKTYPE)], "its a.bin is a link or no plain file"),
        ([linked(tarfile.FIFOTYPE)], "its a.bin is a link or no plain file"),
    ],
)
def test_members_that_are_no_plain_files_are_refused(members, reason, tmp_path):
    path = archive(tmp_path / "a", members)
    assert reason in error_of(reading.tar_gz, path, FORM, r"a\.bin")


def test_a_member_that_declares_too_much_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("a.bin")
    info.size = 2**40
    (tmp_path / "a").write_bytes(gzip.compress(info.tobuf() + bytes(2**20)))
    message = error_of(reading.tar_gz, tmp_path / "a", FORM, r"a\.bin")
    assert "its a.bin declares 1.02e+03 GiB" in message


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ARCHIVE_LIMIT", 2**20)
    path = archive(tmp_path / "a", [("other", bytes(2**22)), ("a.bin", b"1")])
    assert path.stat().st_size < 2**14
    assert "it unpacks to more than" in error_of(reading.tar_gz, path, FORM, r"a\.bin")
    (tmp_path / "b").write_bytes(gzip.compress(bytes(2**22)))  # after the end of the archive
    assert "it unpacks to more than" in error_of(reading.tar_gz, tmp_path / "b", FORM, r"a\.bin")


def test_a_cut_or_changed_archive_is_refused(tmp_path):
    whole = archive(tmp_path / "a", [("a.bin", os.urandom(3000))]).read_bytes()
    for at in (5, len(whole) // 2, len(whole) - 4):
        (tmp_path / "b").write_bytes(whole[:at])
        error_of(reading.tar_gz, tmp_path / "b", FORM, r"a\.bin")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (tmp_path / "b").write_bytes(changed)
    error_of(reading.tar_gz, tmp_path / "b", FORM, r"a\.bin")


# Text.


@pytest.mark.parametrize("content", [b"0\n3\n", b"\xef\xbb\xbf0\r\n3\r\n", b"0\r3", b" 0\t\n\n003"])
def test_text_of_every_editor_is_read(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert forget.resolve(request(tmp_path / "a.txt"), TEN)[0].forget.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n1.0\n", "line 2: '1.0' is not an index; give one whole number a line"),
        ("１\n".encode(), "line 1: '１' is not an index"),
        (b"1_0\n", "line 1: '1_0' is not an index"),
        (b"+5\n", "line 1: '+5' is not an index"),
        (b"\n-1\n", "line 2: the index -1 is not in train; allowed: 0 to 9"),
        (b"0\n\n10\n", "line 3: the index 10 is not in train; allowed: 0 to 9"),
        (b"0\n1\n0\n", "line 3: the index 0 is listed 2 times"),
        (b"9" * 5000, "…"),
        (b"index\n1\n", "line 1: 'index' is not an index"),
        (b"1,2,3\n", "line 1: '1,2,3' is not an index"),
        (b"1 2\n", "line 1: '1 2' is not an index"),
        (b"1\x0c2\n", "is not an index"),
        (b"1\n2\xe9\n", "line 2 is not UTF-8 text"),
        ("1\n".encode("utf-16"), "line 1 is not UTF-8 text"),
        (b"1\0\n", "line 1: '1\\x00' is not an index"),
        (b"\n \n", "has no index in it"),
    ],
)
def test_a_line_that_is_no_index_is_named(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert message in error_of(forget.resolve, request(tmp_path / "a.txt"), TEN)


def test_a_text_above_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "TEXT_LIMIT", 2**20)
    (tmp_path / "a.txt").write_bytes(b"1\n" * 2**20)
    assert "it has more than 1 MiB" in error_of(forget.resolve, request(tmp_path / "a.txt"), TEN)


# Downloads.


def test_what_a_killed_download_left_is_removed_at_the_next_start(tmp_path, monkeypatch):
    target = tmp_path / "bloodmnist.npz"
    long = temporary(target.with_name("漢" * 84)).name  # of bytes there may be 255
    assert len(long.encode()) <= 255
    dead = temporary(target)
    dead = dead.with_name(dead.name.replace(f"-{os.getpid()}-", "-99999999-"))
    alive, foreign = temporary(target), tmp_path / "tmpab12cd34"
    for folder in (dead, alive, foreign):
        folder.mkdir()
        (folder / "tmpxyz").write_bytes(b"half")

    def retrieve(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(common.pooch, "retrieve", retrieve)
    message = error_of(data.load, settings("bloodmnist", root=str(tmp_path)))
    assert "cannot download bloodmnist.npz (no network): download https://zenodo.org" in message
    assert sorted(tmp_path.iterdir()) == sorted([alive, foreign])


def test_a_download_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def retrieve(url, known_hash, fname, path):
        path.mkdir(parents=True)
        (path / "tmpxyz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(common.pooch, "retrieve", retrieve)
    with pytest.raises(KeyboardInterrupt):
        data.load(settings("bloodmnist", root=str(tmp_path / "new")))
    assert list((tmp_path / "new").iterdir()) == []


# Damage of every kind.


def record(label):
    return bytes([label]) + bytes(range(256)) * 12


def whole_files(folder):
    """A valid file of every form, and what reads it."""
    saved(folder / "data.npz", **arrays(class_names=np.array(["a", "b"])))
    np.savez_compressed(folder / "packed.npz", **arrays(train_groups=np.arange(10)))
    np.savez(folder / "forget.npz", forget=np.arange(3))
    np.save(folder / "forget.npy", np.arange(3))
    (folder / "forget.txt").write_text("1\n2\n3\n")
    batch = b"".join(record(label) for label in [*range(10), *range(10)])
    batches = [("data_batch_1.bin", batch), ("test_batch.bin", record(1))]
    archive(folder / "cifar.tar.gz", batches)
    for name in ("data.npz", "packed.npz", "cifar.tar.gz"):
        source = "cifar10" if name.startswith("cifar") else "npz"
        asked = settings(source, path=str(folder / name), allow_empty_classes=True)
        yield folder / name, lambda asked=asked: dataset.check(data.load(asked), True)
    for name in ("forget.npz", "forget.npy", "forget.txt"):
        yield folder / name, lambda name=name: forget.resolve(request(folder / name), TEN)


def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path):
    outcomes = []
    for path, read in whole_files(tmp_path):
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        read()
        for _ in range(150):
            path.write_bytes(mutate(whole, rng))
            try:
                read()
                outcomes.append("read")
            except UserError as error:
                text = str(error)
                assert "\n" not in text and len(text) <= 300 and "allow_pickle" not in text
                outcomes.append("refused")
    assert outcomes.count("refused") > 600 and outcomes.count("read") > 3
