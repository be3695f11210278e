"""Programs kept from run to run: read by the next one, never damaged, never another processor's."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import process
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn import compiled

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxunlearn import compiled

heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
with compiled.kept(Path(sys.argv[1])):
    for size in (8, 9, 10, 11):

        @jax.jit
        def long(x):  # enough to compile to be kept
            for i in range(20):
                x = jnp.sort(jnp.sin(x @ x) + jax.nn.softmax(x * i))
            return x.sum()

        print(long(jnp.ones((size, size))))
print(sum("cache_hits" in event for event in heard), file=sys.stderr)
"""


def run(folder, **changes):
    """What the program prints in a process of its own, and how many programs it found."""
    environment = process.environment(JAX_COMPILATION_CACHE_DIR="", **changes)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_a_second_run_finds_the_programs_unless_they_were_damaged(tmp_path):
    def entries():  # a small program is kept only where compiling it took long
        return sorted(tmp_path.glob("*-cache"))

    first, found, _ = run(tmp_path)
    assert found == 0 and len(entries()) >= 4
    assert len(list(tmp_path.glob("*-cache.sha256"))) == len(entries())
    kept = len(entries())
    second, found, told = run(tmp_path)
    assert second == first and found == kept and told == f"{found}\n"

    # One flipped bit, one cut short, an old one without its hash, one whose time was not written.
    for i, entry in enumerate(entries()):
        data = bytearray(entry.read_bytes())
        if i % 4 == 0:
            data[len(data) // 2] ^= 1
            entry.write_bytes(data)
        elif i % 4 == 1:
            entry.write_bytes(data[: len(data) // 2])
        elif i % 4 == 2:
            entry.with_name(f"{entry.name}.sha256").unlink()
            os.utime(entry, (0, 0))
        else:
            entry.with_name(entry.name.removesuffix("-cache") + "-atime").unlink()
    third, found, told = run(tmp_path)
    assert third == first and found == 0 and told == "0\n"
    kept = len(entries())
    assert run(tmp_path)[:2] == (first, kept) and kept


def test_what_another_run_has_not_signed_yet_stays(tmp_path):
    """A run signs what it has compiled when it ends."""
    for name in ("young-cache", "young-atime", "old-cache", "old-atime"):
        (tmp_path / name).write_bytes(b"program")
    os.utime(tmp_path / "old-cache", (0, 0))
    assert compiled._prepare(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"young-cache", "young-atime"}


def test_what_a_killed_run_has_left_is_not_signed(tmp_path):
    """JAX does not write a file again that is there, though it may hold half of a program."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "")
    (tmp_path / "half-cache").write_bytes(b"prog")
    (tmp_path / "half-atime").write_bytes(b"")
    try:
        with compiled.kept(tmp_path):
            (tmp_path / "whole-cache").write_bytes(b"program")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    assert (tmp_path / "whole-cache.sha256").is_file()
    assert not (tmp_path / "half-cache.sha256").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "inner")[1] == 0


def test_jaxs_settings_are_as_before_and_a_users_own_folder_stays(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "")
    try:
        with pytest.raises(ZeroDivisionError), compiled.kept(tmp_path / "a"):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
            _ = 1 / 0
        assert not jax.config.jax_compilation_cache_dir
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        with compiled.kept(tmp_path / "b"):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
        assert not (tmp_path / "b").exists()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    assert np.isfinite(jnp.ones(3).sum())


def test_without_a_home_folder_nothing_is_kept(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiled.Path, "expanduser", no_home)
    with compiled.kept():
        assert not jax.config.jax_compilation_cache_dir


def test_the_folder_is_of_this_processor(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = compiled.default_folder()
    assert mine.parent == tmp_path / ".cache" / "jaxunlearn" / "compiled"
    assert mine == compiled.default_folder()
    text = "flags\t\t: fpu avx2\nmodel name\t: other\n"
    monkeypatch.setattr(compiled.Path, "read_text", lambda self, encoding: text)
    assert compiled.default_folder() != mine
