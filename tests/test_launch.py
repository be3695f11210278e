"""A grid as jobs on one store: nothing trained twice, a dead job taken over, one table."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import process
import pytest
import toy
import yaml
from rich.console import Console

from jaxunlearn import devices, experiment
from jaxunlearn.convolution import paths
from jaxunlearn.errors import UserError
from launch import jobs, slurm

ROOT = process.ROOT
FAST = {"epochs": 1, "batch_size": 16}
T4 = jobs.DEVICES["t4"]


def grid(path, lrs=(0.01, 0.02), **changes):
    config = toy.experiment_config(path, finetune=FAST)
    config.axes = (("methods.finetune.lr", tuple(lrs)),)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return toy.write_npz(tmp_path_factory.mktemp("launch") / "data.npz")


def test_cells_and_seeds_are_jobs_and_a_shared_original_is_one_before_them(path, tmp_path):
    made = jobs.make_jobs(grid(path, seeds=(0, 1)), str(tmp_path / "run"))
    names = [(job.values, job.seed, job.models, job.after) for job in made]
    rest = ("retrained", "finetune")
    assert names == [
        ("0.01", 0, ("original",), None),
        ("0.01", 0, rest, 0),
        ("0.01", 1, ("original",), None),
        ("0.01", 1, rest, 2),
        ("0.02", 0, rest, 0),
        ("0.02", 1, rest, 2),
    ]
    # The second cell's retrained is the first's.
    assert 0 < made[4].flops < made[1].flops
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()
    config = grid(path, seeds=(0, 1))
    experiment.make_models(
        config, tmp_path / "run", made[0].cell, 0, made[0].models, Console(quiet=True)
    )
    again = jobs.make_jobs(config, str(tmp_path / "run"))
    # A job's number stays what it is.
    assert again == [made[0]._replace(flops=0.0, device_bytes=0.0), *made[1:]]


def test_without_axes_a_seed_is_a_job_of_its_own_original(path, tmp_path):
    config = toy.experiment_config(path, finetune=FAST)
    config.seeds = (3, 4)
    made = jobs.make_jobs(config, str(tmp_path / "run"))
    assert [(job.cell, job.seed, job.after) for job in made] == [("", 3, None), ("", 4, None)]
    assert made[0].models == ("original", "retrained", "finetune")
    experiment.make_models(config, tmp_path / "run", "", 3, made[0].models, Console(quiet=True))
    made = jobs.make_jobs(config, str(tmp_path / "run"))
    assert made[0].flops == 0 < made[1].flops
    with pytest.raises(
        UserError, match=r"models of 1 jobs are not made yet, .*'seed 4 · 3 models'"
    ):
        jobs.gather(config, str(tmp_path / "run"))


def test_a_method_that_diverges_ends_no_job_and_is_not_waited_for(path, tmp_path):
    lost = {**FAST, "lr": 1e9}
    config = toy.experiment_config(path, finetune=lost, random_label=FAST)
    folder, quiet = tmp_path / "run", Console(quiet=True)
    (job,) = jobs.make_jobs(config, str(folder))
    experiment.make_models(config, folder, "", 0, job.models, quiet)
    (job,) = jobs.make_jobs(config, str(folder))
    assert job.flops == 0  # random_label, after it, was made
    assert list(experiment.run(config, folder, quiet)["models"]) == [
        *("original", "retrained", "random_label"),
    ]


@pytest.mark.parametrize(
    "cell, seed, message", [("lr=1", 0, "unknown cell 'lr=1'"), ("", 7, "unknown seed 7")]
)
def test_a_cell_or_seed_that_is_not_there_is_told(path, tmp_path, cell, seed, message):
    config = toy.experiment_config(path, finetune=FAST)
    with pytest.raises(UserError, match=message):
        experiment.make_models(config, tmp_path, cell, seed, ("original",), Console(quiet=True))


def test_what_a_job_asks_for_follows_from_its_arithmetic_and_bytes():
    job = jobs.Job("", "", 0, ("original",), None, 3.24e12 * 3600, 2 * 2**30, 2**30)
    assert job.seconds(T4) == 3600  # at 40% of 8.1 TFLOP/s
    assert job.minutes_asked(T4) == 2 * 60 + 15
    assert job.memory_asked(on_cpu=False) == 4 + 2 * 4
    assert job.memory_asked(on_cpu=True) == 4 + 2 * (4 + 2)
    console = Console(width=100, file=io.StringIO(), record=True)
    jobs.print_jobs([job, job._replace(flops=0.0, after=0)], T4, False, console)
    text = console.export_text()
    assert re.search(r"0 +0 +original +11\.7 +1\.0 hours +135 min, 12 GiB", text)
    assert "2 jobs, 11.7 PFLOP: 1.0 hours on one NVIDIA T4 at 40% of its peak (assumed)." in text
    assert "about 2.0 GiB on the device, of 16." in text


def test_options_of_sbatch_are_pairs():
    given = ["partition=gpu", "mail-type=END", "comment=a=b", "time=600", "account=00123"]
    assert slurm.options(given) == {
        "slurm_account": "00123",
        "slurm_partition": "gpu",
        "slurm_mail_type": "END",
        "slurm_comment": "a=b",
        "slurm_time": 600,  # submitit reckons with it
    }
    with pytest.raises(UserError, match=r"--slurm=time must be whole minutes, got '1-00:00:00'"):
        slurm.options(["time=1-00:00:00"])
    with pytest.raises(UserError, match=r"--slurm must be NAME=VALUE, got 'partition'"):
        slurm.options(["partition"])


SBATCH = """#!/bin/sh
# What SLURM would answer; the script that it was given is kept.
cp "$1" "$SUBMISSIONS/$(ls "$SUBMISSIONS" | wc -l).sh"
echo "Submitted batch job 10$(ls "$SUBMISSIONS" | wc -l)"
"""


def test_slurm_is_asked_for_what_the_job_needs_after_its_original(path, tmp_path, monkeypatch):
    for name, text in {"sbatch": SBATCH, "srun": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "submissions").mkdir()
    monkeypatch.setenv("SUBMISSIONS", str(tmp_path / "submissions"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config, folder = grid(path), str(tmp_path / "run")
    todo = jobs.make_jobs(config, folder)
    extra = slurm.options(["partition=gpu", "dependency=singleton"])
    submitted = slurm.submit(config, folder, todo, T4, nodes=2, gpus=4, cpus=6, slurm=extra)
    assert [job.job_id for job in submitted.values()] == ["101", "102", "103"]
    first, second, _ = (
        (tmp_path / "submissions" / f"{i}.sh").read_text().splitlines() for i in range(3)
    )
    asked = {
        "#SBATCH --partition=gpu",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=6",
        f"#SBATCH --mem={4 * todo[0].memory_asked(False)}GB",  # of four processes a node
        f"#SBATCH --time={todo[0].minutes_asked(T4)}",
    }
    assert asked | {"#SBATCH --dependency=singleton"} <= set(first)
    assert "#SBATCH --dependency=singleton,afterany:101" in second
    with pytest.raises(UserError, match=r"cannot be submitted: .*nonsense"):
        slurm.submit(config, folder, todo, T4, slurm={"slurm_nonsense": "1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, flags, code, message",
    [
        ("launch.slurm", ["--dry_run"], 0, "on one laptop CPU, 8 cores"),
        ("launch.slurm", ["--dry_run", "--gpus=1"], 0, "on one NVIDIA T4"),
        ("launch.slurm", ["--dry_run", "--device=h100"], 2, "give --gpus=1, or leave it out"),
        ("launch.slurm", ["--gather"], 2, "--gather and --job are of launch.jobs"),
        ("launch.slurm", ["--job=0"], 2, "--gather and --job are of launch.jobs"),
        ("launch.jobs", ["--job=0", "--dry_run"], 0, "1 jobs, "),
        ("launch.jobs", ["--config.requests=(5,)"], 2, "config.requests"),
    ],
)
def test_flags_of_jobs(path, tmp_path, module, flags, code, message):
    small = ["--config.data.count=40", "--config.model.width=4", "--config.train.epochs=1"]
    config = [f"--config={ROOT}/configs/quickstart.py", *small, "--config.seeds=0,"]
    folder = tmp_path / "run"
    status, out, err = process.finish(*config, *flags, f"--workdir={folder}", module=module)
    assert status == code, err
    assert message in " ".join((err if code else out).split())
    assert not folder.exists() and not (tmp_path / "store").exists()


def test_what_was_computed_in_bfloat16_elsewhere_is_gathered_here(path, tmp_path, monkeypatch):
    """A machine that has it makes the models; one that has not finds them."""
    config, folder = grid(path, lrs=[0.01]), str(tmp_path / "run")
    config.model.dtype = "bfloat16"
    with_it = paths.find("xla", devices.make_mesh(1))._replace(bfloat16=True)
    without = with_it._replace(bfloat16=False)
    monkeypatch.setattr(paths, "find", lambda *_: with_it)
    todo = jobs.make_jobs(config, folder)
    for job in todo:
        jobs.run_job(config, folder, job)
    monkeypatch.setattr(paths, "find", lambda *_: without)
    assert all(job.flops for job in jobs.make_jobs(config, folder))
    before = set((tmp_path / "store").iterdir())
    jobs.gather(config, folder)
    assert set((tmp_path / "store").iterdir()) == before
    shutil.rmtree(min(before))
    with pytest.raises(UserError, match="not made yet"):
        jobs.gather(config, folder)


def test_without_sbatch_the_user_is_told(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        slurm.submit(grid(path), str(tmp_path / "run"), [], T4)


def wait(condition, seconds=200):
    late = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < late
        time.sleep(0.05)
    return found


def lines(logs, ending):
    return [line for log in sorted(logs.glob(f"*{ending}")) for line in log.read_text().split("\n")]


@pytest.mark.slow
def test_eight_jobs_at_once_train_each_model_once_though_the_first_holder_is_killed(
    path, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")
    config = grid(path, lrs=[0.01 * i for i in range(1, 8)], checkpoint_every=1)
    config.train.epochs = 40
    folder, store = str(tmp_path / "run"), tmp_path / "store"
    todo = jobs.make_jobs(config, folder)
    original = todo[0]
    assert len(todo) == 8 and original.models == ("original",)
    submitted = slurm.submit(config, folder, todo, T4, cluster="local")
    # Killed while it trains the original or retrained, for which the others wait.
    key, _, _ = wait(lambda: list(store.glob("[0-9a-f]*.pass-*")))[0].name.partition(".")
    holder = store / f".{key}.holder"
    os.kill(json.loads(holder.read_text())["pid"], signal.SIGKILL)
    wait(lambda: all(job.done() for job in submitted.values()))
    again = [job for job in jobs.make_jobs(config, folder) if job.flops]
    assert len(again) <= 1  # what the killed job alone would have made
    slurm_again = slurm.submit(config, folder, again, T4, cluster="local")
    wait(lambda: all(job.done() for job in slurm_again.values()))

    models = [found for found in store.glob("[0-9a-f]*") if "." not in found.name]
    assert len(models) == 1 + 1 + 7  # original, retrained, and a finetune of each cell
    told = lines(tmp_path / "run" / "jobs", ".out")
    trained = [line for line in told if re.search(r"seed 0 · \w+: +100%", line)]
    assert len(trained) == len(models)
    assert any(line.startswith("resumed after epoch ") for line in told)
    assert any("waiting for process" in line for line in told)
    assert not [line for line in lines(tmp_path / "run" / "jobs", ".err") if "Traceback" in line]

    before = {path: path.stat().st_mtime_ns for path in store.glob("[0-9a-f]*")}
    jobs.gather(config, folder)
    assert {path: path.stat().st_mtime_ns for path in store.glob("[0-9a-f]*")} == before
    # What the killed one was writing is swept.
    assert not [path for path in store.iterdir() if ".tmp-" in path.name]
    report = json.loads(Path(folder, "metrics.json").read_text())
    assert len(report["cells"]) == 7 and Path(folder, "figure.png").is_file()


def copied(folder):
    """The folder of the Dockerfile's image: what it copies, and .dockerignore lets through."""
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            assert let_through.issuperset(sources)
            for source in sources:
                into = folder / target / ("" if target == "./" else ".")
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                    shutil.copytree(ROOT / source, into, ignore=ignored, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, into)
    return folder


@pytest.mark.slow
def test_what_the_dockerfile_copies_starts_and_builds(tmp_path):
    folder = copied(tmp_path)
    environment = process.environment(PYTHONPATH="", PYTHONDONTWRITEBYTECODE="1")
    code = "import jaxunlearn, launch.slurm, runpy; print(jaxunlearn.__file__); import setuptools"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, f"{folder / 'jaxunlearn' / '__init__.py'}\n")
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info"], cwd=folder, env=environment
    )
    assert built.returncode == 0
    names = (folder / "jaxunlearn.egg-info" / "top_level.txt").read_text().split()
    assert names == ["jaxunlearn"]


@pytest.mark.slow
def test_the_kubernetes_job_is_indexed_and_its_command_is_understood(tmp_path):
    job = yaml.safe_load((ROOT / "launch" / "k8s" / "job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["completionMode"] == "Indexed"
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    module, *given = container["args"]
    assert module == "launch.jobs" and given[-1] == "--job=$(JOB_COMPLETION_INDEX)"
    config, data, *folders, _ = given
    assert config.startswith("--config=") and data.startswith("--config.data.root=")
    for path in (one.partition("=")[2] for one in (data, *folders)):
        assert path.startswith(f"{mount['mountPath']}/")
    folders = [one.replace(mount["mountPath"], str(tmp_path)) for one in folders]
    flags = ("--config=configs/quickstart.py", *folders, "--job=99")
    code, _, err = process.finish(*flags, module=module)
    assert (code, err) == (2, "jaxunlearn: --job must be 0 to 0, got 99\n")


def test_the_tpu_script_installs_on_all_hosts_and_passes_flags_on_whole():
    script = str(ROOT / "launch" / "tpu_pod.sh")
    flags = ["--config=configs/quickstart.py", "--config.name=a b"]
    ended = subprocess.run(
        [script, "pod", "zone-a", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "DRY_RUN": "1"},
    )
    assert ended.returncode == 0
    commands = [
        subprocess.check_output(["bash", "-c", f"printf '%s\\0' {line}"], text=True).split("\0")[
            :-1
        ]
        for line in ended.stdout.splitlines()
    ]
    assert [command[4] for command in commands] == ["scp", "ssh", "ssh"]
    assert all({"--worker=all", "--zone=zone-a"} <= set(command) for command in commands)
    # What the host's shell makes of it.
    last = commands[-1][-1].removeprefix("--command=").split("../venv/bin/")[1]
    assert shlex.split(last) == [
        *("python", "-m", "jaxunlearn.main", "--coordinator=auto"),
        *flags,
    ]
    ended = subprocess.run([script, "pod"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.startswith("usage: ")


@pytest.mark.slow
def test_the_command_lists_the_jobs_and_submits_none(tmp_path):
    flags = ["--config=configs/quickstart.py", "--config.model.width=8", "--device=laptop"]
    command = [sys.executable, "-m", "launch.slurm", "--dry-run", *flags, f"--workdir={tmp_path}/r"]
    environment = process.environment(COLUMNS="100")
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 0 and ended.stderr == ""
    assert "6 models" in ended.stdout and "1 jobs, " in ended.stdout
    assert list(tmp_path.iterdir()) == []
    ended = subprocess.run(
        [*command, "--device=abacus"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "jaxunlearn: unknown device 'abacus': allowed: h100, laptop, t4, v5e-8\n"
    )
