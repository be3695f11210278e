"""Tries what goes wrong on users' machines: `python benchmarks/faults.py`.

Kills, damaged entries, runs at once, malformed settings, mutated files and full disks, each as
often as its flag says, from one seed. It prints how often the library was silent where it should
not have been, ended in a traceback, hung, left something over or gave other bits; each should be 0.
Full disks need the right to mount a tmpfs.
"""

import collections
import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mutate  # noqa: E402
import process  # noqa: E402
import toy  # noqa: E402

from jaxunlearn import config as config_lib  # noqa: E402
from jaxunlearn import data, experiment, files, plan  # noqa: E402
from jaxunlearn.errors import LONGEST, UserError  # noqa: E402

KILLS = flags.DEFINE_integer("kills", 50, "Runs killed at a random moment, then started again.")
DAMAGES = flags.DEFINE_integer("damages", 100, "Damaged entries and points.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds of runs at once.")
AT_ONCE = flags.DEFINE_integer("at_once", 8, "Runs in a round.")
INPUTS = flags.DEFINE_integer("inputs", 500, "Malformed settings.")
FILES = flags.DEFINE_integer("files", 10_000, "Mutated files.")
DISKS = flags.DEFINE_integer("disks", 10, "Sizes of disk that fill up.")
SEED = flags.DEFINE_integer("seed", 0, "Of every draw.")

HANG = 600  # seconds
FINE = ("tried", "refused", "not mounted", "no damage")  # of the counts, those that may be above 0
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import toy

def get_config():
    config = toy.experiment_config({data!r})
    config.train.epochs = 60
    return config
"""
Counts = collections.Counter[str]


def bits(workdir: Path) -> dict[str, bytes]:
    """The predictions of a run, by file."""
    return {file.name: file.read_bytes() for file in sorted((workdir / "predictions").iterdir())}


def leftovers(*folders: Path) -> int:
    """Temporary files, locks and points that nobody needs any more."""
    names = [path.name for folder in folders if folder.exists() for path in folder.rglob("*")]
    return sum(
        bool(files.TEMPORARY.fullmatch(name)) or ".pass-" in name or name.endswith(".holder")
        for name in names
        if ".damaged-" not in name
    )


def judge(counts: Counts, code: int | None, err: str, allowed: tuple[int, ...]) -> None:
    """Counts how a command ended."""
    counts["tracebacks"] += "Traceback" in err
    counts["hangs"] += code is None
    lines = err.strip().splitlines()
    counts["other ends"] += code not in allowed or len(lines) > 1


def finish(child: subprocess.Popen) -> tuple[int | None, str, str]:
    """Exit code (None where it hangs), stdout and stderr of a command."""
    try:
        out, err = child.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        return None, out, err
    return child.returncode, out, err


def kills(folder: Path, command: list[str], expected: dict[str, bytes], seconds: float) -> Counts:
    """Kills a run at a random moment until one comes through; as many kills as asked for."""
    counts: Counts = Counts()
    rng, workdir = np.random.default_rng([SEED.value, 0]), folder / "run"
    while counts["tried"] < KILLS.value:
        shutil.rmtree(folder, ignore_errors=True)
        for _ in range(5):
            if counts["tried"] == KILLS.value:
                break
            child = process.start(*command, f"--workdir={workdir}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0, 1.2 * seconds))
            child.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            code, _, err = finish(child)
            # Python itself answers a signal of its first tenth of a second.
            judge(counts, code, err if code != 1 else "", (0, 1, 130, 143, -2, -9, -15))
            counts["tried"] += 1
        code, _, err = finish(process.start(*command, f"--workdir={workdir}"))
        judge(counts, code, err, (0,))
        counts["other bits"] += code == 0 and bits(workdir) != expected
        counts["left over"] += leftovers(folder)
    return counts


def damages(folder: Path, config_file: Path, expected: dict[str, bytes]) -> Counts:
    """Damages a stored model or a point, and runs again."""
    counts: Counts = Counts()
    rng = np.random.default_rng([SEED.value, 1])
    config = toy.experiment_config(str(config_file.with_name("data.npz")))
    config.train.epochs = 60
    workdir, shelf = folder / "run", folder / "store"
    if DAMAGES.value == 0:
        return counts
    experiment.run(config, workdir, Console(file=io.StringIO()))
    for number in range(DAMAGES.value):
        entries = sorted(path for path in shelf.iterdir() if ".damaged-" not in path.name)
        entry = entries[rng.integers(len(entries))]
        how = ["bytes", "lose", "swap", "meta", "pipe"][number % 5]
        inside = sorted(file for file in entry.rglob("*") if file.is_file())
        file = inside[rng.integers(len(inside))]
        if how == "bytes":
            content = mutate.mutate(file.read_bytes(), rng)
            if content == file.read_bytes():
                counts["no damage"] += 1
                continue
            replace(file, content)
        elif how == "lose":
            file.unlink()
        elif how == "meta":
            text = (entry / "meta.json").read_text("utf-8")
            replace(entry / "meta.json", text.replace('"seconds": ', '"seconds": 1').encode())
        elif how == "swap":
            other = next(path for path in entries if path != entry)
            shutil.rmtree(entry)
            shutil.copytree(other, entry)
        else:
            shutil.rmtree(entry)
            os.mkfifo(entry)
        out = io.StringIO()
        experiment.run(config, workdir, Console(file=out, width=200))
        counts["tried"] += 1
        counts["silent"] += "was damaged: set aside" not in out.getvalue()
        counts["other bits"] += bits(workdir) != expected
        counts["left over"] += leftovers(folder)
        for aside in shelf.glob("*.damaged-*"):
            files.discard(aside)
    return counts


def replace(file: Path, content: bytes) -> None:
    """New content in a new file: results have links to the old one."""
    file.unlink()
    file.write_bytes(content)


def at_once(folder: Path, command: list[str], expected: dict[str, bytes]) -> Counts:
    """Starts runs together on one store."""
    counts: Counts = Counts()
    for number in range(ROUNDS.value):
        shutil.rmtree(folder, ignore_errors=True)
        runs = [folder / f"run{i // 2}" for i in range(AT_ONCE.value)]  # by twos in one folder
        children = [process.start(*command, f"--workdir={run}") for run in runs]
        trained = 0
        for child in children:
            code, out, err = finish(child)
            judge(counts, code, err, (0,))
            trained += len(re.findall(r": 100%", out))
            counts["false alarms"] += "damaged" in out
        counts["tried"] += 1
        counts["trained twice"] += trained != len(expected)
        counts["other bits"] += any(bits(run) != expected for run in set(runs))
        counts["left over"] += leftovers(folder)
        print(f"  round {number + 1}: {dict(counts)}", flush=True)
    return counts


VALUES = (
    *(None, True, -1, 0, 1e300, -1e300, float("inf"), float("nan"), 10**12, 2**32, 0.5, "", "x"),
    *("x" * 1000, "a/b", "\0", "~nosuchuser", "gs://a/b", "/dev/zero", (), (1,), (-1, 2), ((),)),
    *((1e400, 1.0), ("a", "b"), [3, 4], {"a": 1}, np.int64(3), np.arange(3), b"x", lambda: 0),
)


def inputs(folder: Path, config_file: Path) -> Counts:
    """Sets one setting to what it should not be."""
    counts: Counts = Counts()
    rng = np.random.default_rng([SEED.value, 2])
    names = ("finetune", "salun", "salun_cra", "scrub", "ssd", "neggrad_plus")
    fields = sorted(config_lib.default())
    for _ in range(INPUTS.value):
        config = toy.experiment_config(str(config_file.with_name("data.npz")))
        config.methods = config_lib.methods(**{name: {} for name in names})
        section, field = config, str(rng.choice(fields))
        while isinstance(section[field], ConfigDict) and section[field] and rng.random() < 0.95:
            section = section[field]
            field = str(rng.choice(sorted(section)))
        value = VALUES[rng.integers(len(VALUES))]
        counts["tried"] += 1
        try:
            with section.unlocked(), section.ignore_type():
                section[field] = value
            plan.make(config_lib.plain(config), 1)
        except UserError as error:
            counts["refused"] += 1
            counts["other ends"] += "\n" in str(error) or len(str(error)) > LONGEST
        except Exception as error:
            counts["tracebacks"] += 1
            print(f"  {field}={value!r}: {type(error).__name__}: {error}"[:200])
    return counts


def mutated_files(folder: Path, config_file: Path) -> Counts:
    """Reads damaged data files."""
    counts: Counts = Counts()
    rng = np.random.default_rng([SEED.value, 3])
    original = config_file.with_name("data.npz").read_bytes()
    path = folder / "mutated.npz"
    folder.mkdir(parents=True, exist_ok=True)
    config = ConfigDict({**config_lib.DATA, "name": "npz", "path": str(path)})
    for _ in range(FILES.value):
        path.write_bytes(mutate.mutate(original, rng))
        counts["tried"] += 1
        try:
            data.load(config)
        except UserError as error:
            counts["refused"] += 1
            counts["other ends"] += "\n" in str(error) or len(str(error)) > LONGEST
        except Exception as error:
            counts["tracebacks"] += 1
            print(f"  {type(error).__name__}: {error}"[:200])
    return counts


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A small file system at the folder; whether it could be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disks(folder: Path, command: list[str], expected: dict[str, bytes]) -> Counts:
    """Runs on disks that are too small, from none to enough."""
    counts: Counts = Counts()
    for number in range(DISKS.value):
        with disk(folder / "disk", 16 + number * 160) as mounted:
            if not mounted:
                counts["not mounted"] += 1
                continue
            workdir = folder / "disk" / "run"
            code, _, err = finish(process.start(*command, f"--workdir={workdir}"))
            judge(counts, code, err, (0, 2))
            counts["tried"] += 1
            counts["refused"] += code == 2
            counts["other bits"] += code == 0 and bits(workdir) != expected
            names = [path.name for path in (folder / "disk").rglob("*")]
            counts["left over"] += sum(bool(files.TEMPORARY.fullmatch(name)) for name in names)
    return counts


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        config_file = root / "config.py"
        source = toy.write_npz(root / "data.npz")
        config_file.write_text(CONFIG.format(tests=str(ROOT / "tests"), data=source), "utf-8")
        command = [f"--config={config_file}"]
        seconds, expected = 0.0, {}
        if KILLS.value or DAMAGES.value or ROUNDS.value or DISKS.value:
            start = time.monotonic()
            code, _, err = finish(process.start(*command, f"--workdir={root / 'straight' / 'run'}"))
            if code != 0:
                sys.exit(err)
            seconds, expected = time.monotonic() - start, bits(root / "straight" / "run")
        parts = {
            "mutated files": lambda: mutated_files(root / "files", config_file),
            "malformed settings": lambda: inputs(root / "inputs", config_file),
            "full disks": lambda: full_disks(root / "disks", command, expected),
            "damaged entries": lambda: damages(root / "damages", config_file, expected),
            "kills": lambda: kills(root / "kills", command, expected, seconds),
            f"{AT_ONCE.value} runs at once": lambda: at_once(root / "once", command, expected),
        }
        found = Counts()
        for part, run in parts.items():
            counts = run()
            found += counts
            print(f"{part}: {dict(counts)}", flush=True)
        sys.exit(any(found[name] for name in found if name not in FINE))


if __name__ == "__main__":
    app.run(main)
