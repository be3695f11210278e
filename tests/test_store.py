import json
import os
import threading

import numpy as np
import pytest

from jaxunlearn import store
from jaxunlearn.errors import UserError

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


def test_what_a_killed_run_left_half_written_is_removed_a_day_later(shelf):
    old = shelf.root / f".{'a' * 32}.pass-000002.{'0' * 32}"
    new = shelf.root / f".{'b' * 32}.{'1' * 32}"
    foreign = shelf.root / ".ssh"  # the store may be a folder that others use too
    for folder in (old, new, foreign):
        folder.mkdir()
    os.utime(old, (0, 0)), os.utime(foreign, (0, 0))
    put(shelf)
    again = store.Store(shelf.root, print)
    assert not old.exists() and new.exists() and foreign.exists() and again.get("k")


def damage_a_file(entry):
    file = max((f for f in entry.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def lose_a_file(entry):
    (entry / "logits.npz").unlink()


def cut_the_meta(entry):
    (entry / "meta.json").write_text('{"files": ')


def empty_meta(entry):
    (entry / "meta.json").write_text("{}")


@pytest.mark.parametrize("harm", [damage_a_file, lose_a_file, cut_the_meta, empty_meta])
def test_a_damaged_entry_is_set_aside_and_can_be_made_anew(shelf, notices, harm):
    harm(put(shelf))
    assert shelf.get("k") is None
    assert "was damaged: set aside as k.damaged-" in notices[0]
    assert next(p.name for p in shelf.root.iterdir()).startswith("k.damaged-")
    put(shelf)
    assert shelf.get("k") is not None


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
    store.write_text(tmp_path / "a.json", "one")
    store.write_text(tmp_path / "a.json", "two")
    store.write_npz(tmp_path / "b.npz", {"x": np.arange(3)})
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
