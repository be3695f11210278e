import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from process import environment

from jaxunlearn import files, locks, store, workdir
from jaxunlearn.errors import Stopped, UserError
from jaxunlearn.training import Point

TREE = {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float32(3)}}


@pytest.fixture
def notices():
    return []


@pytest.fixture
def shelf(tmp_path, notices):
    return store.Store(tmp_path / "store", notices.append)


def put(shelf, key="k", seconds=1.5):
    arrays = {"logits": {"test": np.ones((4, 2), np.float32)}}
    return shelf.put(key, meta={"seconds": seconds}, trees={"variables": TREE}, arrays=arrays)


def test_what_is_put_comes_back(shelf):
    assert shelf.get("k") is None
    assert put(shelf) == shelf.get("k")
    entry = shelf.get("k")
    tree = store.load_tree(entry / "variables")
    np.testing.assert_array_equal(tree["params"]["w"], TREE["params"]["w"])
    assert tree["params"]["b"].dtype == np.float32
    assert store.read_meta(entry)["seconds"] == 1.5
    assert store.read_npz(entry / "logits.npz")["test"].shape == (4, 2)


def test_lists_of_leaves_keep_their_order(shelf):
    leaves = [np.full(2, i) for i in range(12)]  # more than ten: "10" sorts before "2"
    entry = shelf.put("list", meta={}, trees={"state": leaves})
    for i, leaf in enumerate(store.load_tree(entry / "state")):
        assert (leaf == i).all()


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(shelf):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, name, digits = files.host(), "a" * 32, "0" * 32
    gone = [
        shelf.root / f".{name}.pass-000002.tmp-{here}-{dead.pid}-{digits}",
        shelf.root / f".{name}.tmp-elsewhere-1-{digits}",
        shelf.root / f".{name}.lock",
        shelf.root / f".{name}.holder",
    ]
    kept = [
        shelf.root / f".{name}.tmp-{here}-{os.getpid()}-{digits}",  # still being written
        shelf.root / f".{name}.tmp-elsewhere-2-{digits}",  # perhaps
        shelf.root / ".ssh",  # the store may be a folder that others use too
        shelf.root / ".other.lock",
    ]
    for path in (*gone, *kept):
        path.touch() if path.suffix in (".lock", ".holder") else path.mkdir()
    for path in (*gone[1:], kept[2], kept[3]):
        os.utime(path, (0, 0))
    put(shelf)
    again = store.Store(shelf.root, print)
    assert again.get("k") and not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def damage_a_file(entry):
    file = max((f for f in entry.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def lose_a_file(entry):
    (entry / "logits.npz").unlink()


def cut_the_meta(entry):
    (entry / "meta.json").write_text('{"files": ')


def empty_meta(entry):
    (entry / "meta.json").write_text("{}")


def change_the_seconds(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "seconds": 0.1}))


def add_a_file(entry):
    (entry / "variables" / "more").write_text("")


def link_a_file(entry):
    (entry / "logits.npz").rename(entry.parent / "elsewhere.npz")
    (entry / "logits.npz").symlink_to(entry.parent / "elsewhere.npz")


def pipe_for_meta(entry):
    (entry / "meta.json").unlink()
    os.mkfifo(entry / "meta.json")


def move_here_from_another_key(entry):
    shutil.rmtree(entry)
    other = store.Store(entry.parent, print)
    os.rename(put(other, "other", seconds=9.0), entry)


def dangling_link(entry):
    shutil.rmtree(entry)
    entry.symlink_to(entry.parent / "nowhere")


def link_to_an_entry(entry):
    os.rename(entry, entry.parent.parent / "moved")
    entry.symlink_to(entry.parent.parent / "moved")


def pipe(entry):
    shutil.rmtree(entry)
    os.mkfifo(entry)


def file(entry):
    shutil.rmtree(entry)
    entry.write_text("")


HARMS = [
    damage_a_file,
    lose_a_file,
    cut_the_meta,
    empty_meta,
    change_the_seconds,
    add_a_file,
    link_a_file,
    pipe_for_meta,
    move_here_from_another_key,
    dangling_link,
    link_to_an_entry,
    pipe,
    file,
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_entry_is_set_aside_and_can_be_made_anew(shelf, notices, harm):
    harm(put(shelf))
    assert shelf.get("k") is None
    assert "was damaged: set aside as k.damaged-" in notices[0] and len(notices) == 1
    assert any(path.name.startswith("k.damaged-") for path in shelf.root.iterdir())
    put(shelf)
    assert store.read_meta(shelf.get("k"))["seconds"] == 1.5


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EACCES, errno.EIO])
def test_an_entry_that_cannot_be_read_just_now_is_left_alone(shelf, notices, monkeypatch, number):
    put(shelf)
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256", lambda path: raised(OSError(number, os.strerror(number))))
        with pytest.raises(UserError, match=r"k cannot be read \(.*\): make it readable, or give"):
            shelf.get("k")
    assert shelf.get("k") is not None and notices == []


def raised(error):
    raise error


def test_two_runs_that_start_at_once_do_not_share_a_folder(tmp_path, monkeypatch):
    from jaxunlearn import config as config_lib

    mine, theirs = config_lib.default(), config_lib.default()
    theirs.seeds = (7,)
    workdir.claim(tmp_path / "a", mine)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.json"]
    link = os.link

    def after_another(source, target):
        monkeypatch.setattr(os, "link", link)
        workdir.claim(tmp_path / "b", theirs)
        return link(source, target)

    monkeypatch.setattr(os, "link", after_another)
    with pytest.raises(UserError, match=r"b holds a run with another config \(seeds differ\)"):
        workdir.claim(tmp_path / "b", mine)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["seeds"] == [7]
    # Where there are no links a folder can be claimed all the same.
    monkeypatch.setattr(os, "link", lambda *args: raised(OSError(errno.EPERM, "no links")))
    workdir.claim(tmp_path / "c", mine)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["config.json"]


def test_a_point_moved_to_another_model_or_pass_is_not_resumed_from(shelf, notices):
    def point(passes):
        history = [{"loss": 1.0, "accuracy": 0.5}] * passes
        return Point(passes, [np.arange(3.0)], history, 2.0, [], {})

    mine = store.Checkpoints(shelf, "a" * 32, 1, [{"device": "one"}])
    mine.save(point(2))
    assert len(mine.latest().history) == 2
    for target in (f"{'b' * 32}.pass-000002", f"{'a' * 32}.pass-000009"):
        shutil.copytree(shelf.root / f"{'a' * 32}.pass-000002", shelf.root / target)
    assert store.Checkpoints(shelf, "b" * 32, 1, []).latest() is None
    assert len(mine.latest().history) == 2
    assert len(notices) == 2


def test_a_point_that_was_not_its_turn_is_kept_when_the_run_is_stopped(shelf):
    checkpoints = store.Checkpoints(shelf, "a" * 32, 10, [{"device": "one"}])
    checkpoints.save(Point(1, [np.arange(3.0)], [{"loss": 1.0}], 2.0, [], {}))
    assert checkpoints.latest() is None
    checkpoints.flush()
    later = store.Checkpoints(shelf, "a" * 32, 10, [{"device": "two"}])
    assert later.latest().seconds == 2.0
    assert later.made_on == [{"device": "one"}, {"device": "two"}]


def test_a_point_that_was_being_written_when_the_run_was_stopped_is_tried_again(shelf, monkeypatch):
    checkpoints = store.Checkpoints(shelf, "a" * 32, 1, [])
    put, stopped = shelf.put, []

    def stop_once(*args, **kwargs):
        if not stopped:
            stopped.append(True)
            raise Stopped
        return put(*args, **kwargs)

    monkeypatch.setattr(shelf, "put", stop_once)
    with pytest.raises(Stopped):
        checkpoints.save(Point(1, [np.arange(3.0)], [{"loss": 1.0}], 2.0, [], {}))
    checkpoints.flush()
    assert checkpoints.latest().seconds == 2.0


def test_a_store_that_cannot_be_written_is_used_for_what_it_has(shelf, notices, monkeypatch):
    put(shelf), put(shelf, "bad")
    damage_a_file(shelf.root / "bad")
    monkeypatch.setattr(store.os, "access", lambda *args: False)
    fixed = store.Store(shelf.root, notices.append)
    assert fixed.get("k") and fixed.get("bad") is None
    assert "stays and is not used" in notices[0] and (shelf.root / "bad").exists()
    with pytest.raises(UserError, match=r"cannot be written and has no model for salun; set store"):
        fixed.making("new", "salun").__enter__()


def test_a_full_disk_is_one_line_and_leaves_nothing(shelf, monkeypatch):
    def full(path, tree):
        path.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_tree", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free"):
        put(shelf)
    assert not list(shelf.root.iterdir())


HOLD = """
import sys
from pathlib import Path
from jaxunlearn import store
shelf = store.Store(Path(sys.argv[1]), print)
with shelf.making("a" * 32, "original"):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(shelf, notices, until):
    """A process that makes a model until so many notices have come."""
    command = [sys.executable, "-c", HOLD, str(shelf.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        assert process.stdout.readline() == "holding\n"

        def notice(text):
            notices.append(text)
            if len(notices) == until:
                process.stdin.close()

        shelf.notice = notice
        yield process


def test_a_model_in_the_making_is_waited_for_and_a_killed_makers_lock_is_free(shelf, notices):
    with holder(shelf, notices, until=1) as process, shelf.making("a" * 32, "original"):
        assert process.wait() == 0
    assert notices == [
        f"original: waiting for process {process.pid} on {socket.gethostname()}, which is "
        "training it"
    ]
    assert not list(shelf.root.iterdir())
    with holder(shelf, notices, until=99) as process:
        process.kill()
        with shelf.making("a" * 32, "original"):
            pass
    assert not list(shelf.root.iterdir())


def test_a_maker_that_hangs_is_told_of(shelf, notices, monkeypatch):
    monkeypatch.setattr(locks, "SILENT", 1.0)
    monkeypatch.setattr(locks, "PATIENCE", 1.5)
    with holder(shelf, notices, until=2), shelf.making("a" * 32, "original"):
        pass
    assert "has made no progress for" in notices[1] and "stop it" in notices[1]


def test_a_file_system_without_locks_is_told_of(shelf, notices, monkeypatch):
    def none(*args, **kwargs):
        raise NotImplementedError("no flock")

    monkeypatch.setattr(locks.filelock.FileLock, "acquire", none)
    with shelf.making("a" * 32, "original") as alive:
        alive()
    assert "may train original twice" in notices[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_no_file_takes_a_locks_place(shelf, notices, monkeypatch):
    """It would stay for ever where its holder's machine dies."""
    import fcntl

    def none(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with shelf.making("a" * 32, "original"), shelf.making("a" * 32, "original"):
        pass  # nobody waits
    assert len(notices) == 2 and "may train original twice" in notices[0]


def test_a_point_is_kept_whole_though_sigterm_comes(shelf, monkeypatch):
    def put_and_stop(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        done.append("put")

    done = []
    before = signal.signal(signal.SIGTERM, lambda *_: done.append("stopped"))
    try:
        points = store.Checkpoints(shelf, "a" * 32, 10, [])
        monkeypatch.setattr(type(shelf), "put", put_and_stop)
        points.save(Point(*[None] * len(Point._fields))._replace(history=[{}], state={}))
        points.flush()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["put", "stopped"]


def test_orbax_ends_what_it_does_though_sigterm_comes(tmp_path, monkeypatch):
    """Its event loop would swallow what the signal's handler raises, or wait for ever."""

    class Stopping:
        def save(self, path, tree):
            signal.raise_signal(signal.SIGTERM)
            done.append("saved")

        def metadata(self, path):
            signal.raise_signal(signal.SIGTERM)
            done.append("read")
            return SimpleNamespace(item_metadata=SimpleNamespace(tree={}))

        def restore(self, path, args):
            done.append("restored")

    done = []
    monkeypatch.setattr(store, "_checkpointer", lambda: contextlib.nullcontext(Stopping()))
    before = signal.signal(signal.SIGTERM, lambda *_: done.append("stopped"))
    try:
        store.save_tree(tmp_path / "tree", {})
        store.load_tree(tmp_path / "tree")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["saved", "stopped", "read", "restored", "stopped"]


def test_a_half_written_entry_is_never_seen(shelf, monkeypatch):
    def die(path, tree):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_tree", die)
    with pytest.raises(KeyboardInterrupt):
        put(shelf)
    assert shelf.get("k") is None and not list(shelf.root.iterdir())


def test_two_runs_may_put_the_same_entry_at_once(shelf):
    threads = [threading.Thread(target=put, args=(shelf,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shelf.get("k") is not None
    assert [p.name for p in shelf.root.iterdir()] == ["k"]


def test_the_key_depends_on_every_field_and_on_no_order():
    a = store.make_key({"x": 1, "y": (1, 2)})
    assert a == store.make_key({"y": [1, 2], "x": 1})
    assert a != store.make_key({"x": 1, "y": (2, 1)})


def test_files_are_written_whole_or_not_at_all(tmp_path):
    files.write_text(tmp_path / "a.json", "one")
    files.write_text(tmp_path / "a.json", "two")
    files.write_npz(tmp_path / "b.npz", {"x": np.arange(3)})
    assert (tmp_path / "a.json").read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.npz"]


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.read_npz(tmp_path / "evil.npz")


def test_a_store_that_cannot_be_made_is_a_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made .*; set store"):
        store.Store(tmp_path / "file" / "store", print)


def test_meta_is_plain_json(shelf):
    assert json.loads((put(shelf) / "meta.json").read_text())["files"].keys() >= {"logits.npz"}


def test_a_damaged_copy_in_the_results_is_made_anew(shelf, tmp_path):
    entry = put(shelf)
    workdir.link_model(entry, tmp_path, "salun-seed0")
    copy = tmp_path / "models" / "salun-seed0"
    assert os.path.samefile(copy / "logits.npz", entry / "logits.npz")  # a link, not 45 MB more
    (copy / "logits.npz").unlink()
    (copy / "logits.npz").write_bytes(b"other")
    workdir.link_model(entry, tmp_path, "salun-seed0")
    assert store.is_intact(copy, entry.name)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["salun-seed0"]
