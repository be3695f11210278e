r"""Submits a grid's jobs to SLURM, by submitit: one for each cell and seed, on one shared store.

    python -m launch.slurm --config=configs/cifar10_augmentation.py --device=h100 --gpus=1 --dry-run
    python -m launch.slurm --config=configs/cifar10_augmentation.py --device=h100 --gpus=1 \
        --slurm=partition=gpu --slurm=account=medical
    python -m launch.jobs --config=configs/cifar10_augmentation.py --gather     # when they are done

What is in the store is not submitted again, so the same command after a failure goes on. A job near
its time limit keeps its last epoch and is submitted again by itself.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import main as cli
from jaxunlearn.allocator import TUNABLES
from jaxunlearn.errors import UserError
from launch import jobs

DRY_RUN = flags.DEFINE_bool("dry-run", False, "List the jobs and submit none.")
CLUSTER = flags.DEFINE_enum("cluster", "slurm", ["slurm", "local"], "local: processes here.")
NODES = flags.DEFINE_integer("nodes", 1, "Nodes of each job.", lower_bound=1)
GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of each node; 0: the jobs run on CPUs.", lower_bound=0)
CPUS = flags.DEFINE_integer("cpus", 8, "Cores of each task.", lower_bound=1)
SLURM = flags.DEFINE_multi_string("slurm", [], "An option of sbatch: partition=gpu, say.")


@dataclasses.dataclass(frozen=True)
class Work:
    """A job as submitit runs it."""

    config: ConfigDict
    folder: str
    job: jobs.Job

    def __call__(self) -> None:
        """Makes the models; a user's error is one line of its log."""
        with cli.ending():
            from jaxunlearn import processes

            processes.connect()
            jobs.run_job(self.config, self.folder, self.job)
            processes.disconnect()

    def checkpoint(self) -> Any:
        """Submitted again near the time limit: the store has what was done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


MINUTES = ("time", "timeout_min")


def options(given: list[str]) -> dict[str, str | int]:
    """Sbatch's options by name; submitit reckons with those that are numbers.

    Raises:
      UserError: one is not NAME=VALUE, or a time limit is not in minutes.
    """
    pairs = [one.partition("=") for one in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UserError(f"--slurm must be NAME=VALUE, got {name + equals + value!r}")
        if name.replace("-", "_") in MINUTES and not value.isdecimal():
            raise UserError(f"--slurm={name} must be whole minutes, got {value!r}")
    return {
        f"slurm_{name.replace('-', '_')}": value
        if not value.isdecimal() or value != str(int(value))  # an account may be 00123
        else int(value)
        for name, _, value in pairs
    }


def submit(
    config: ConfigDict,
    folder: str,
    todo: list[jobs.Job],
    device: jobs.Device,
    *,
    cluster: str = "slurm",
    nodes: int = 1,
    gpus: int = 0,
    cpus: int = 8,
    slurm: Mapping[str, str | int] | None = None,
) -> dict[int, Any]:
    """Submits the jobs that have something to make.

    Args:
      config: the experiment's, or the grid's.
      folder: of its results; the jobs' logs go into `jobs/` there.
      todo: what `jobs.make_jobs` gave.
      device: what they run on, for what they ask for.
      cluster: "slurm", or "local": processes of this machine, all at once.
      nodes: of each job.
      gpus: of each node.
      cpus: of each task.
      slurm: more options, as submitit names them.

    Returns:
      submitit's jobs by number in `todo`.

    Raises:
      UserError: submitit or sbatch is not here, or does not take an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("submitting needs submitit: pip install 'jaxunlearn[slurm]'") from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here; start this where SLURM is, or --cluster=local")
    submitted: dict[int, Any] = {}
    # JAX gives each of several processes a GPU of its own.
    tasks = gpus if gpus and nodes > 1 else 1
    for number, job in enumerate(todo):
        if not job.flops:
            continue
        executor = submitit.AutoExecutor(Path(folder) / "jobs", cluster=cluster)
        extra: dict[str, Any] = dict(slurm or {})
        if job.after in submitted:
            asked = (extra.get("slurm_dependency"), f"afterany:{submitted[job.after].job_id}")
            extra["slurm_dependency"] = ",".join(filter(None, asked))
        try:
            executor.update_parameters(
                name=f"{config.name}-{number}"[:60],
                timeout_min=job.minutes_asked(device),
                mem_gb=tasks * job.memory_asked(on_cpu=not gpus),
                nodes=nodes,
                tasks_per_node=tasks,
                gpus_per_node=gpus,
                cpus_per_task=cpus,
                slurm_setup=[] if gpus else [f"export GLIBC_TUNABLES={TUNABLES}"],
                **extra,
            )
            submitted[number] = executor.submit(Work(config, folder, job))
        except (NameError, ValueError, TypeError, submitit.core.utils.FailedJobError) as error:
            raise UserError(f"job {number} cannot be submitted: {error}") from error
    return submitted


def main(argv: list[str]) -> None:
    """Lists the jobs, and submits them."""
    cli.no_more(argv)
    config = flags.FLAGS.config
    folder = cli.WORKDIR.value or str(Path("runs") / config.name)
    with cli.ending():
        if jobs.GATHER.value or jobs.JOB.value != -1:
            raise UserError("--gather and --job are of launch.jobs; this submits all jobs")
        console, extra = Console(), options(SLURM.value)
        on_cpu = not GPUS.value
        device = jobs.device("laptop" if on_cpu else "")
        if on_cpu and device is not jobs.DEVICES["laptop"]:
            raise UserError(
                f"--device={jobs.DEVICE.value} has no part in jobs on CPUs; give --gpus=1, or "
                "leave it out"
            )
        todo = jobs.make_jobs(config, folder, bfloat16=None if on_cpu else True)
        jobs.print_jobs(todo, device, on_cpu, console)
        if DRY_RUN.value or cli.DRY_RUN.value:
            return
        submitted = submit(
            config,
            folder,
            todo,
            device,
            cluster=CLUSTER.value,
            nodes=NODES.value,
            gpus=GPUS.value,
            cpus=CPUS.value,
            slurm=extra,
        )
        console.print(
            f"{len(submitted)} jobs submitted, {len(todo) - len(submitted)} had nothing to do. "
            f"Logs: {Path(folder) / 'jobs'}. When they are done: python -m launch.jobs --gather "
            "with the same --config and --workdir.",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
