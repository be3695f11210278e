"""A grid as jobs: one for each cell and seed, which make the models that the grid's table needs.

    python -m launch.jobs --config=configs/cifar10_augmentation.py              # lists them
    python -m launch.jobs --config=configs/cifar10_augmentation.py --job=3      # runs one of them
    python -m launch.jobs --config=configs/cifar10_augmentation.py --gather     # table and figure

All jobs share one store, on a file system that all of them see, and none trains what another has:
a job that needs a model in the making waits for it. A job that is started again goes on where it
was. `launch.slurm` submits them; any scheduler that numbers its tasks can run them (see k8s/).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxunlearn import main as cli
from jaxunlearn.errors import UserError

JOB = flags.DEFINE_integer("job", -1, "Run the job of this number, from 0.")
GATHER = flags.DEFINE_bool("gather", False, "Make table and figure of what the jobs have made.")
DEVICE = flags.DEFINE_string("device", "t4", "What the jobs run on, for the estimates: see README.")

MARGIN = 2.0  # times the estimate that a job asks for
START = 15 * 60  # seconds besides: imports, data, compiling, evaluation, waiting for a file system
HOST = 4.0  # GiB of a process with JAX and compiled programs, besides its data


class Device(NamedTuple):
    """A machine as estimates see it.

    Attributes:
      title: its name.
      peak: floating-point operations a second, in float32.
      share: of the peak that training reaches.
      memory: GiB on its devices together.
    """

    title: str
    peak: float
    share: float
    memory: float


DEVICES = {
    # AVX2 at 3 GHz: 8 × 3e9 × 32. The share by docs/speed.md: 0.26 at width 16, 0.39 at width 64.
    "laptop": Device("laptop CPU, 8 cores", 768e9, 0.3, 16),
    "t4": Device("NVIDIA T4", 8.1e12, 0.4, 16),
    "h100": Device("NVIDIA H100 SXM", 67e12, 0.38, 80),  # the share of an H200, docs/speed.md
    "v5e-8": Device("TPU v5e-8", 8 * 197e12 / 6, 0.3, 8 * 16),  # six bfloat16 products each
}


class Job(NamedTuple):
    """The models of one cell and seed.

    Attributes:
      cell: the cell's label; "" where there is but one.
      values: of the grid's axes there.
      seed: the seed.
      models: which of its models; the others are another job's.
      after: the number of a job that must have ended first, since it makes what this one starts
        from; None: nothing.
      flops: operations of those models that are not in the store yet.
      device_bytes: memory that its largest step takes on its devices.
      data_bytes: of its images.
    """

    cell: str
    values: str
    seed: int
    models: tuple[str, ...]
    after: int | None
    flops: float
    device_bytes: float
    data_bytes: float

    @property
    def title(self) -> str:
        """What lists call it."""
        return " · ".join(filter(None, (self.values, f"seed {self.seed}", self.what)))

    @property
    def what(self) -> str:
        """What it makes, in short."""
        return self.models[0] if len(self.models) == 1 else f"{len(self.models)} models"

    def seconds(self, device: Device) -> float:
        """How long it takes, by estimate."""
        return self.flops / (device.peak * device.share)

    def minutes_asked(self, device: Device) -> int:
        """The time limit to ask for."""
        return math.ceil((MARGIN * self.seconds(device) + START) / 60)

    def memory_asked(self, on_cpu: bool) -> int:
        """The host's memory to ask for, in GiB."""
        data = 4 * self.data_bytes + (self.device_bytes if on_cpu else 0)
        return math.ceil(HOST + MARGIN * data / 2**30)


def make_jobs(
    config: ConfigDict, folder: str, estimates: bool = True, bfloat16: bool | None = None
) -> list[Job]:
    """The jobs of a config's models, always the same; what is in the store already costs nothing.

    Where several jobs start from one original, a job of its own makes that first: otherwise they
    would all wait for it on machines that they were given. Without `estimates`, which take some
    seconds a method, the jobs have no operations and bytes. `bfloat16` is whether the machines of
    the jobs compute in it where the config says so; None: as this one does.
    """
    from jaxunlearn import estimate, tune
    from jaxunlearn.data.dataset import SETS
    from jaxunlearn.prepared import Prepared
    from jaxunlearn.trained import why_lost

    ready = Prepared(config, folder, Console(quiet=True), bfloat16=bfloat16)
    tune.check_at_once(ready.config)
    made = functools.cache(lambda key: (ready.where / key).is_dir())
    todo = [
        (one, seed, one.recipes(seed))
        for one in ready.experiments
        for seed in one.cell.config.seeds
    ]
    users: dict[str, int] = {}
    for _, _, recipes in todo:
        key = recipes["original"].key
        users[key] = users.get(key, 0) + 1
    jobs: list[Job] = []
    costs_of: dict[tuple[str, str], Any] = {}  # by cell and model: a seed changes none

    def cost(cell: str, name: str, recipes: dict[str, Any]) -> Any:
        if (cell, name) not in costs_of:
            costs_of[cell, name] = estimate.cost_or(recipes[name], recipes["original"])
        return costs_of[cell, name]

    first: dict[str, int] = {}  # jobs that make a shared original, by its key
    before: dict[int, int] = {}  # of a sequence, the job of the last request, by seed
    counted: set[str] = set()  # keys whose cost is in a job already

    def add(one, seed, recipes, names: Iterable[str], after: int | None) -> None:
        names = tuple(names)
        missing = [
            name
            for name in names
            if not made(recipes[name].key)
            and recipes[name].key not in counted
            and not (one.may_lack(name) and why_lost(ready.diverged(one), recipes[name]))
        ]
        counted.update(recipes[name].key for name in missing)
        costs = [cost(one.cell.label, name, recipes) for name in missing if estimates]
        images = sum(getattr(one.dataset, which).images.nbytes for which in SETS)
        jobs.append(
            Job(
                cell=one.cell.label,
                values=", ".join(one.cell.labels.values()),
                seed=seed,
                models=names,
                after=after,
                flops=sum(cost.flops for cost in costs),
                device_bytes=max((cost.device_bytes for cost in costs), default=0.0),
                data_bytes=float(images),
            )
        )

    for one, seed, recipes in todo:
        key = recipes["original"].key
        if users[key] > 1 and key not in first:
            first[key] = len(jobs)
            add(one, seed, recipes, ["original"], None)
        others = [name for name in recipes if name != "original" or key not in first]
        add(one, seed, recipes, others, before.get(seed, first.get(key)))
        if one.request:
            before[seed] = len(jobs) - 1
    return jobs


def print_jobs(jobs: Sequence[Job], device: Device, on_cpu: bool, console: Console) -> None:
    """Prints the jobs, their estimates and the total."""
    from jaxunlearn.estimate import duration

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("job", "cell", "seed", "makes", "after", "PFLOP", "takes", "asks for"):
        text = column in ("cell", "makes")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for number, job in enumerate(jobs):
        asked = f"{job.minutes_asked(device)} min, {job.memory_asked(on_cpu)} GiB"
        after = "" if job.after is None else str(job.after)
        numbers = (f"{job.flops / 1e15:.1f}", duration(job.seconds(device)), asked)
        table.add_row(str(number), Text(job.values), str(job.seed), Text(job.what), after, *numbers)
    console.print(table)
    total = sum(job.seconds(device) for job in jobs)
    needed = max((job.device_bytes for job in jobs), default=0) / 2**30
    console.print(
        f"{len(jobs)} jobs, {sum(job.flops for job in jobs) / 1e15:.1f} PFLOP: {duration(total)} "
        f"on one {device.title} at {device.share:.0%} of its peak (assumed). The largest step "
        f"needs about {needed:.1f} GiB on the device, of {device.memory:g}.",
        highlight=False,
        soft_wrap=True,
    )


def run_job(config: ConfigDict, folder: str, job: Job) -> None:
    """Makes the job's models."""
    from jaxunlearn import experiment

    experiment.make_models(config, folder, job.cell, job.seed, job.models)


def gather(config: ConfigDict, folder: str) -> None:
    """Table and figure, from models that are all in the store.

    They may have been computed in bfloat16 elsewhere where it would be float32 here, or the other
    way round: these are other models.

    Raises:
      UserError: some are not.
    """
    from jaxunlearn import experiment
    from jaxunlearn.prepared import Prepared

    for bfloat16 in (None, True, False):
        missing = [job for job in make_jobs(config, folder, bfloat16=bfloat16) if job.flops]
        if not missing:
            experiment.carry_out(Prepared(config, folder, None, bfloat16=bfloat16))
            return
    raise UserError(
        f"the models of {len(missing)} jobs are not made yet, the first is "
        f"{missing[0].title!r}; run the jobs again: they go on where they were"
    )


def device(default: str = "") -> Device:
    """The flag's; where it is not given, the default's, if there is one.

    Raises:
      UserError: there is none of that name.
    """
    from jaxunlearn.errors import unknown

    name = DEVICE.value if flags.FLAGS["device"].present or not default else default
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def main(argv: list[str]) -> None:
    """Lists the jobs, runs one, or gathers what they have made."""
    cli.no_more(argv)
    config = flags.FLAGS.config
    folder = cli.WORKDIR.value or str(Path("runs") / config.name)
    with cli.ending():
        from jaxunlearn import processes

        processes.connect(cli.COORDINATOR.value, cli.PROCESSES.value, cli.PROCESS.value)
        if GATHER.value and not cli.DRY_RUN.value:
            return gather(config, folder)
        only_list = JOB.value == -1 or cli.DRY_RUN.value
        jobs = make_jobs(config, folder, estimates=only_list)
        if only_list:
            return print_jobs(jobs, device(), device() is DEVICES["laptop"], Console())
        if not 0 <= JOB.value < len(jobs):
            raise UserError(f"--job must be 0 to {len(jobs) - 1}, got {JOB.value}")
        run_job(config, folder, jobs[JOB.value])
        processes.disconnect()


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
