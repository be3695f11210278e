"""Times the training step of ResNet-18 on a CPU: `python benchmarks/step.py`.

Every candidate is a process of its own: our step with convolutions by oneDNN, with those that we
have without it, and with XLA's plain ones; and, where PyTorch is installed (`pip install -e
'.[bench]'`), the same step there (channels_last). They take turns round after round, so that a
machine whose speed drifts does not favour one. First they run on one core, then on all. Most
of the time goes to PyTorch's bfloat16 where the processor has no arithmetic for it, which
`--dtype=float32` leaves out.

Prints milliseconds a step, by the clock and of all cores together, which hardly grow while the
machine is busy with something else too; and PyTorch's of the same round divided by these: above 1
is faster than PyTorch. Medians, the lowest and the highest. Ours run under the allocator settings
that the command line gives itself; `GLIBC_TUNABLES= python benchmarks/step.py` runs them without.
"""

import contextlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch_resnet
from absl import app, flags, logging
from measuring import Row, load, machine, ratios, show, spread

from jaxunlearn import allocator
from jaxunlearn.errors import UserError

WIDTHS = flags.DEFINE_multi_integer("width", [16, 64], "Widths of the ResNet-18.")
BATCHES = flags.DEFINE_multi_integer("batch", [128, 64], "Batch sizes, one a width.")
CORES = flags.DEFINE_multi_enum("cores", ["one", "all"], ["one", "all"], "How many to run on.")
SIZE = flags.DEFINE_integer("size", 28, "Image size in pixels.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each candidate.")
STEPS = flags.DEFINE_integer("steps", 3, "Steps a timing.")
CHILD = flags.DEFINE_string("child", "", "Used by the benchmark itself: a candidate.")
LR = 0.01
# By type: without oneDNN the library computes in float32 whatever the type.
CANDIDATES = {
    "float32": ("onednn", "xla", "plain", "pytorch"),
    "bfloat16": ("onednn", "pytorch"),
}
DTYPES = flags.DEFINE_multi_enum("dtype", list(CANDIDATES), list(CANDIDATES), "To compute in.")


def ours(name: str, dtype: str, images: np.ndarray, labels: np.ndarray, width: int):
    """Our step, and what there is to know of it."""
    import jax

    from jaxunlearn import augment, devices, models, training
    from jaxunlearn.training.loop import make_epoch
    from jaxunlearn.training.step import Kind, make_step, start_state

    programs = training.Programs(devices.make_mesh(1), "onednn" if name == "onednn" else "xla")
    title = f"jaxunlearn, {programs.convolution.name}"
    if name == "plain":
        programs.convolution = programs.convolution._replace(choose=None)
        title = "jaxunlearn, plain XLA"
    if not programs.convolution.bfloat16:  # as the library does
        dtype = "float32"
    setup = training.Setup(
        model=models.build("resnet18", num_classes=10, width=width, dtype=dtype),
        augment=augment.build(()),
        mean=(0.5,),
        std=(0.5,),
        batch_size=len(images),
        weight_decay=5e-4,
    )
    on_device = devices.replicate(training.Images.of(images), programs.mesh)
    bench = training.Bench(setup, on_device, programs)
    state = start_state(training.fresh(bench, 0), setup, programs.mesh)
    action = training.Pass(training.cross_entropy, np.arange(len(images)), labels, LR)
    epoch = make_epoch(bench, action, stage="bench", seed=0, number=0)
    before = programs.seconds
    step = programs(make_step(setup, Kind.of(action)), state, on_device, epoch, donate=(0,))

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = step(state, on_device, epoch)
        jax.block_until_ready(state)

    return steps, {"title": title, "dtype": dtype, "compile": programs.seconds - before}


def torchs(dtype: str, images: np.ndarray, labels: np.ndarray, width: int):
    """The same step in PyTorch, and what there is to know of it."""
    if not importlib.util.find_spec("torch"):
        raise UserError("not installed: pip install -e '.[bench]'")
    import torch
    from torch import nn

    model = torch_resnet.build(images.shape[-1], width, 10)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=5e-4)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels.astype(np.int64))

    def steps(count: int) -> None:
        for _ in range(count):
            batch_x = x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = nn.functional.cross_entropy(model(batch_x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps, {"title": f"PyTorch {torch.__version__}", "dtype": dtype, "compile": ""}


@contextlib.contextmanager
def on(cores: str) -> Iterator[None]:
    """Processes that start in the context run on one core, or on all."""
    if cores == "all":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def child(name: str, dtype: str, width: int, batch: int) -> None:
    """Answers every line of the input with the time of some steps."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, SIZE.value, SIZE.value, 3), dtype=np.uint8)
    data = (dtype, images, rng.integers(0, 10, batch).astype(np.int32), width)
    try:
        steps, facts = torchs(*data) if name == "pytorch" else ours(name, *data)
    except UserError as error:
        print(json.dumps({"absent": str(error)}))
        return
    steps(2)
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        steps(STEPS.value)
        row = {
            "ms": 1000 * (time.perf_counter() - wall) / STEPS.value,
            "CPU ms": 1000 * (time.process_time() - processor) / STEPS.value,
            "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        }
        print(json.dumps(row), flush=True)


def start(name: str, *numbers: Any) -> subprocess.Popen:
    """The process of a candidate, on the cores that this one may run on."""
    own = {"OMP_WAIT_POLICY": "passive"}
    if name != "pytorch":
        tunables = os.environ.get("GLIBC_TUNABLES", allocator.TUNABLES)
        own = {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": tunables}
    flagged = [f"--{flag.name}={flag.value}" for flag in (SIZE, STEPS)]
    command = [sys.executable, __file__, *flagged, f"--child={json.dumps([name, *numbers])}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | own, text=True, stdin=pipe, stdout=pipe)


def answer(process: Any) -> Row:
    """The next line that a candidate prints."""
    line = process.stdout.readline()
    return json.loads(line) if line else sys.exit("a candidate has failed")


def compare(dtype: str, width: int, batch: int) -> None:
    """Times the candidates in turn, and prints a row for each."""
    found: dict[str, tuple[Any, Row, list[Row]]] = {}
    with contextlib.ExitStack() as running:
        for name in CANDIDATES[dtype]:
            process = running.enter_context(start(name, dtype, width, batch))
            facts = answer(process)
            if "absent" in facts:
                print(f"{name} is left out: {facts['absent']}\n")
                continue
            found[name] = (process, facts, [])
            if facts["dtype"] != dtype:
                print(
                    f"{facts['title']}: {dtype} saves no time here; {facts['dtype']} is computed\n"
                )
        for _ in range(ROUNDS.value):
            for process, _, times in found.values():
                process.stdin.write("\n")
                process.stdin.flush()
                times.append(answer(process))
    rows = []
    for _, facts, times in found.values():
        row = [facts["title"]]
        for part in ("ms", "CPU ms"):
            values = [time[part] for time in times]
            row.append(spread(values))
            if "pytorch" in found:
                row.append(ratios([time[part] for time in found["pytorch"][2]], values))
        cores = statistics.median(time["CPU ms"] / time["ms"] for time in times)
        rows.append([*row, cores, facts["compile"], times[-1]["MiB"]])
    ratio = ["PyTorch's / these"] * ("pytorch" in found)
    header = ["ms a step", *ratio, "CPU ms a step", *ratio]
    show(["", *header, "CPU s per s", "compile s", "peak MiB"], rows)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if CHILD.value:
        child(*json.loads(CHILD.value))
        return
    print(f"ResNet-18, {SIZE.value} px, RGB, on {machine()}")
    print(f"{load()}; rounds of {STEPS.value} steps: {ROUNDS.value}\n")
    if len(WIDTHS.value) != len(BATCHES.value):
        raise app.UsageError("give one --batch for each --width")
    for width, batch in zip(WIDTHS.value, BATCHES.value, strict=True):
        for dtype in DTYPES.value:
            for cores in CORES.value:
                print(f"width {width}, batch {batch}, {dtype}, cores: {cores}\n", flush=True)
                with on(cores):
                    compare(dtype, width, batch)
    print(load())


if __name__ == "__main__":
    app.run(main)
