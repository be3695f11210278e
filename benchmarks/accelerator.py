"""What XLA makes of our programs for a TPU or GPU without one: `python benchmarks/accelerator.py`.

Compiles augmentations and training steps for the chips of a topology, on any Linux machine, and
prints what the compiler says of each program: arithmetic, bytes moved, in the chip's fast memory
too, the least time that these take at the chip's published peaks, the time that a TPU's compiler
reckons with (the sum of the cycles that it gives each kernel; of steps, one round of their loop),
memory beside the arguments, and the exchanges between chips. Per chip. Nothing is run: these are a
compiler's estimates, which leave out what waits for what. A GPU's compiler, which does not try out
its kernels here, tells memory and exchanges alone. It takes JAX 0.7 or newer.

    pip install -e '.[tpu]'  && python benchmarks/accelerator.py --topology=v5e:2x4 --chips=8
    pip install -e '.[cuda]' && python benchmarks/accelerator.py --topology=h100:4 --chips=4

With --topology=here the programs are compiled for the devices that are here, and run: the time of a
call (of steps: a step), images a second, and the share of the chip's peak arithmetic. On a GPU with
PyTorch, --part=pytorch adds its step beside ours, eager and compiled.
"""

import collections
import concurrent.futures
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Before JAX is loaded. libtpu then asks nobody what machine this is, and locks no chip; XLA looks
# for no GPU, and tries out no kernels.
if "--topology=here" not in sys.argv:
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        CUDA_VISIBLE_DEVICES="",
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0",
    )

import jax
import jax.numpy as jnp
import numpy as np
import torch_resnet
from absl import app, flags, logging
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measuring import show

from jaxunlearn import augment, devices, models, training
from jaxunlearn.jaxprs import equations
from jaxunlearn.training.step import Epoch, Kind, TrainState, make_whole_epoch, optimizer

TOPOLOGY = flags.DEFINE_string(
    "topology",
    "v5e:2x2",
    "Chips, as libtpu names them; h100:N, t4:N, that many GPUs of a host; or here.",
)
CHIPS = flags.DEFINE_multi_integer("chips", [1], "How many of them to split the batch over.")
POLICIES = flags.DEFINE_multi_string(
    "policy", list(augment.SCENARIOS), "Augmentations: scenarios, or policies joined by commas."
)
WIDTH = flags.DEFINE_integer("width", 64, "Of the ResNet-18.")
SIZE = flags.DEFINE_integer("size", 32, "Of the images, in pixels.")
BATCH = flags.DEFINE_integer("batch", 256, "Over all chips.")
EXAMPLES = flags.DEFINE_integer("examples", 45_000, "Training images, which lie on every chip.")
MODELS = flags.DEFINE_integer("models", 1, "How many to train in one step, by vmap.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "To compute in.")
PARTS = flags.DEFINE_multi_enum(
    "part", ["augment", "step"], ["augment", "step", "pytorch"], "Of the table."
)
JOBS = flags.DEFINE_integer("jobs", 1, "How many programs to compile at a time.")
DUMP = flags.DEFINE_string("dump", "", "A folder for the compiled programs as text.")
CLASSES = 10
# TFLOP/s in bfloat16 (of a T4: float16) and GB/s of a chip, by
# https://cloud.google.com/tpu/docs/system-architecture and NVIDIA's data sheets.
PEAKS = {
    **{"v4": (275, 1228), "v5e": (197, 819), "v5p": (459, 2765), "v6e": (918, 1640)},
    **{"h100": (989, 3352), "h200": (989, 4800), "t4": (65, 320)},
}
# GHz, by which the peaks are 2¹⁶, 2¹⁷ or 2¹⁸ products and sums a cycle.
CLOCKS = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}
# As JAX names them.
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
# What XLA asks of a GPU, by its own list and NVIDIA's data sheets:
# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 core_count: {cores} fpus_per_core: {units}
  threads_per_core_limit: {threads} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_by_block} l2_cache_size: {cache} clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}
"""
GPUS: dict[str, dict[str, Any]] = {
    "h100": {
        **{"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "cores": 132, "units": 128},
        **{"threads": 2048, "shared": 233472, "shared_by_block": 232448, "cache": 52428800},
        **{"clock": 1.98, "bandwidth": 3352320000000, "memory": 84929347584},
    },
    "t4": {
        **{"name": "Tesla T4", "major": 7, "minor": 5, "cores": 40, "units": 64},
        **{"threads": 1024, "shared": 65536, "shared_by_block": 65536, "cache": 4194304},
        **{"clock": 1.59, "bandwidth": 320064000000, "memory": 15843721216},
    },
}
EXCHANGES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
CALLS = 3  # of which the fastest counts
STEPS = 50  # of a call, at most
LR = 0.01
HEADER = ["program", "chips", "GFLOP", "GB", "at peak ms", "compiler's ms", "temporary MiB"]


class Compiled(NamedTuple):
    """A program, and what there is to know of it.

    Attributes:
      program: the compiler's.
      args: the shapes of its arguments.
      uncounted: operations of which the compiler has no count.
    """

    program: Any
    args: Any
    uncounted: float


def compiled(function: Callable, mesh: Mesh, *args: Any, donate: tuple[int, ...] = ()) -> Compiled:
    """The function compiled for the mesh, its results on every chip, as `Programs` does it."""
    whole: Any = NamedSharding(mesh, PartitionSpec())
    if not donate:  # in the compiler's own layout, as within a step: another may take a copy
        whole = Format(Layout.AUTO, whole)
    jitted = jax.jit(function, donate_argnums=donate, out_shardings=whole)
    with devices.full_precision(mesh):
        traced = jitted.trace(*args)
    # To a GPU's compiler convolutions are calls of cuDNN.
    cudnn = mesh.devices.flat[0].platform in ("cuda", "gpu")
    uncounted = convolutions(traced.jaxpr.jaxpr) / mesh.size if cudnn else 0.0
    return Compiled(traced.lower().compile(), args, uncounted)


def convolutions(jaxpr: Any) -> float:
    """Operations of all convolutions, those of gradients too; of a loop, of one round.

    As XLA counts: products with what pads an image, or lies between its rows, are left out.
    """
    total = 0
    for equation in equations(jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            how, out = equation.params, equation.outvars[0].aval.shape
            image, kernel = (operand.aval.shape for operand in equation.invars)
            numbers = how["dimension_numbers"]
            count = out[numbers.out_spec[0]] * math.prod(kernel[i] for i in numbers.rhs_spec[:2])
            for axis, stride in enumerate(how["window_strides"]):
                length = image[numbers.lhs_spec[2 + axis]]
                outs, taps = out[numbers.out_spec[2 + axis]], kernel[numbers.rhs_spec[2 + axis]]
                apart = how["lhs_dilation"][axis]
                at = np.arange(outs)[:, None] * stride - how["padding"][axis][0]
                at = at + np.arange(taps) * how["rhs_dilation"][axis]
                count *= np.sum((at >= 0) & (at <= (length - 1) * apart) & (at % apart == 0))
            total += 2 * int(count)
    return float(total)


def shape(mesh: Mesh, dims: tuple[int, ...], dtype: Any, split: int | None = None) -> Any:
    """An array's shape on the mesh, with the axis that is split over it."""
    axes: list[str | None] = [None] * len(dims)
    if split is not None:
        axes[split] = "data"
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def on(mesh: Mesh, tree: Any) -> Any:
    """Shapes on every chip of the mesh."""
    return jax.tree.map(lambda leaf: shape(mesh, leaf.shape, leaf.dtype), tree)


def augmentation(policy: str, mesh: Mesh) -> Compiled:
    """The augmentation of a batch."""
    key = on(mesh, jax.eval_shape(lambda: jax.random.key(0)))
    images = shape(mesh, (BATCH.value, SIZE.value, SIZE.value, 3), jnp.uint8, 0)
    targets = shape(mesh, (BATCH.value, CLASSES), jnp.float32, 0)
    return compiled(augment.build(policy), mesh, images, targets, key)


def step(policy: str, mesh: Mesh) -> Compiled:
    """A whole epoch as one program.

    Of its loop the compiler counts one round, which is a step.
    """
    setup = training.Setup(
        model=models.build("resnet18", num_classes=CLASSES, width=WIDTH.value, dtype=DTYPE.value),
        augment=augment.build(policy),
        mean=(0.5,),
        std=(0.5,),
        batch_size=BATCH.value,
        weight_decay=5e-4,
    )

    def start(key: jax.Array, sample: jax.Array) -> TrainState:
        variables = setup.model.init(key, sample)
        params = variables.pop("params")
        return TrainState(params, variables, optimizer(setup).init(params), jnp.int32(0))

    key = jax.eval_shape(lambda: jax.random.key(0))
    sample = jax.ShapeDtypeStruct((1, SIZE.value, SIZE.value, 3), jnp.float32)
    steps = -(-EXAMPLES.value // BATCH.value)
    several = (MODELS.value,) if MODELS.value > 1 else ()
    rows = (*several, steps, 1, BATCH.value)
    epoch = Epoch(
        shape(mesh, rows, jnp.int32, len(rows) - 1),
        shape(mesh, rows, jnp.float32, len(rows) - 1),
        shape(mesh, (), jnp.int32),
        shape(mesh, (EXAMPLES.value,), jnp.int32),
        shape(mesh, (), jnp.float32),
        on(mesh, each(several, key)),
        *({}, (), None, (), ()),
    )
    size = (EXAMPLES.value, SIZE.value, SIZE.value, 3)
    images = on(mesh, training.Images.of(jax.ShapeDtypeStruct(size, jnp.uint8), aligned=True))
    kind = Kind.of(training.Pass(training.cross_entropy, np.arange(1), np.zeros(1, np.int32), 0.1))
    state = on(mesh, each(several, jax.eval_shape(start, key, sample)))
    train = make_whole_epoch(setup, kind)
    if several:
        own: Any = dict.fromkeys(Epoch._fields) | dict.fromkeys(("order", "weight", "key"), 0)
        train = jax.vmap(train, in_axes=(0, None, Epoch(**own)))
    return compiled(train, mesh, state, images, epoch, donate=(0,))


def each(several: tuple[int, ...], tree: Any) -> Any:
    """Shapes with an axis for the models before the others."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*several, *s.shape), s.dtype), tree)


def measure(program: Any, args: Any) -> float:
    """Seconds of a call; of an epoch, of one of its steps. At random: a chip is faster at zeros."""
    rng = np.random.default_rng(0)

    def made(s: Any) -> Any:
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jax.device_put(jnp.broadcast_to(jax.random.key(0), s.shape), s.sharding)
        values: Any = np.ones(s.shape)
        if s.dtype == jnp.uint8:
            values = rng.integers(256, size=s.shape, dtype=np.uint8)
        elif jnp.issubdtype(s.dtype, jnp.integer):
            values = np.zeros(s.shape)
        elif len(s.shape) > 1:
            values = rng.normal(0, 0.05, s.shape)
        return jax.device_put(values.astype(s.dtype), s.sharding)

    first, *rest = jax.tree.map(made, args)
    steps, trains = 1, isinstance(rest[-1], Epoch)
    if trains:
        epoch, shapes = rest[-1], args[-1]
        steps = min(STEPS, epoch.order.shape[-3])
        own = {
            "steps": np.int32(steps),
            "lr": np.float32(LR),
            "weight": np.ones(shapes.weight.shape, np.float32),
            "order": rng.integers(EXAMPLES.value, size=shapes.order.shape, dtype=np.int32),
            "labels": rng.integers(CLASSES, size=shapes.labels.shape, dtype=np.int32),
        }
        rest[-1] = epoch._replace(
            **{name: jax.device_put(own[name], getattr(shapes, name).sharding) for name in own}
        )
    best = float("inf")
    for _ in range(1 + CALLS):
        jax.block_until_ready((first, rest))
        start = time.perf_counter()
        out = jax.block_until_ready(program(first, *rest))
        best = min(best, time.perf_counter() - start)
        if trains:
            first = out[0]  # the state before is no more
    return best / steps


def pytorch(compiles: bool) -> float:
    """Seconds of a step of the same model in PyTorch, on its GPU; channels last, its fastest."""
    import torch
    from torch import nn

    torch.backends.cudnn.benchmark = True
    model: Any = torch_resnet.build(3, WIDTH.value, CLASSES).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=5e-4)
    size = (EXAMPLES.value, 3, SIZE.value, SIZE.value)
    images = torch.randint(256, size, dtype=torch.uint8).cuda()
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, size[:1]).cuda()
    bfloat16 = DTYPE.value == "bfloat16"

    def loss_of(x: Any, y: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
            return nn.functional.cross_entropy(model(x.float() / 127.5 - 1), y)

    loss_of = torch.compile(loss_of) if compiles else loss_of
    best = float("inf")
    for _ in range(1 + CALLS):
        rows = torch.randint(EXAMPLES.value, (STEPS, BATCH.value)).cuda()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for row in rows:
            loss = loss_of(images[row], labels[row])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / STEPS


def chip() -> str:
    """Its name in `PEAKS`, where it is there."""
    if TOPOLOGY.value == "here":
        kind = jax.devices()[0].device_kind
        gpu = re.search("H100|H200|T4", kind)
        return gpu[0].lower() if gpu else KINDS.get(kind, kind)
    return TOPOLOGY.value.partition(":")[0]


def cycles(text: str, of_round: bool = False) -> float:
    """The sum of the cycles in the text of a program compiled for a TPU.

    Loops count as often as they go round where that is a constant, and once where it is not.

    Args:
      text: the program's.
      of_round: only one round of the largest loop of rounds that are not known, as an epoch's.
    """
    blocks = re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    lines = {name: body.splitlines() for name, body in blocks}

    def rounds(condition: str) -> int:
        """0: as many as an argument says."""
        numbers = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(lines[condition]))
        return int(numbers[0]) if len(numbers) == 1 else 0

    def of(name: str) -> tuple[float, float]:
        """All cycles, and those of its largest loop of rounds that are not known."""
        total, largest = 0.0, 0.0
        for line in lines[name]:
            if loop := re.search(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", line):
                inner, _ = of(loop[2])
                number = rounds(loop[1])
                total += max(number, 1) * inner
                largest = max(largest, 0.0 if number else inner)
            elif branches := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                total += max(of(each.strip(" %"))[0] for each in branches[1].split(","))
            elif found := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(found[1])
        return total, largest

    (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", text, re.M)
    return of(entry)[of_round]


def describe(made: Compiled, is_step: bool) -> list[Any]:
    """The row of a compiled program."""
    program = made.program
    cost, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    counts: list[Any] = ["", "", ""]
    if cost is not None:
        flops, moved = cost.get("flops", 0.0) + made.uncounted, cost["bytes accessed"]
        least: Any = ""
        if chip() in PEAKS:
            tera, giga = PEAKS[chip()]
            least = float(1000 * max(flops / (tera * 1e12), moved / (giga * 1e9)))
        counts = [float(flops / 1e9), float(moved / 1e9), least]
    reckoned = cycles(text, is_step) / (CLOCKS[chip()] * 1e6) if chip() in CLOCKS else ""
    names = collections.Counter(re.findall(rf" ({'|'.join(EXCHANGES)})(?:-start)?\(", text))
    return [
        *counts,
        reckoned,
        float(memory.temp_size_in_bytes / 2**20),
        ", ".join(f"{count} {name}" for name, count in names.items()),
    ]


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    kind, _, count = TOPOLOGY.value.partition(":")
    if kind == "here":
        devices = jax.devices()
    elif kind in GPUS:
        described = topologies.get_topology_desc(
            platform="cuda", target_config=GPU.format(**GPUS[kind]), topology=f"1x1x{count or 1}"
        )
        devices = described.devices
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value)
        devices = described.devices
    print(
        f"{TOPOLOGY.value}, jax {jax.__version__}; batch {BATCH.value} of {SIZE.value} px; steps: "
        f"ResNet-18 of width {WIDTH.value}, {DTYPE.value}, {EXAMPLES.value} images\n"
    )
    if max(CHIPS.value) > len(devices):
        raise app.UsageError(f"--chips={max(CHIPS.value)}: {TOPOLOGY.value} has {len(devices)}")
    programs = [
        (part, policy, chips)
        for chips in CHIPS.value
        for part in PARTS.value
        if part != "pytorch"
        for policy in POLICIES.value
    ]

    def compile_one(part: str, policy: str, chips: int) -> tuple[Compiled, float]:
        start = time.perf_counter()
        mesh = Mesh(np.array(devices[:chips]), ("data",))
        made = {"augment": augmentation, "step": step}[part](policy, mesh)
        return made, time.perf_counter() - start

    rows = []

    def tell(title: str, row: list[Any], seconds: float | None, models: int) -> None:
        """Adds a row, with what was measured."""
        if seconds is not None:
            tera, _ = PEAKS.get(chip(), (0, 0))
            share = f"{row[1] / seconds / tera / 1000:.0%}" if row[1] and tera else ""
            row = [*row, 1000 * seconds, float(models * BATCH.value / seconds), share]
        rows.append([title, *row])
        print(f"… {title}: {row[1:]}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        results = pool.map(lambda names: compile_one(*names), programs)
        if kind == "here" and JOBS.value > 1:
            results = iter(list(results))  # nothing compiles while others are timed
        for (part, policy, chips), (made, compiling) in zip(programs, results, strict=True):
            title = policy if part == "augment" else f"step, {policy}"
            row = [chips, *describe(made, part == "step"), float(compiling)]
            seconds = measure(made.program, made.args) if kind == "here" else None
            tell(title, row, seconds, MODELS.value if part == "step" else 1)
            if DUMP.value:
                os.makedirs(DUMP.value, exist_ok=True)
                with open(f"{DUMP.value}/{title}-{chips}.txt", "w", encoding="utf-8") as file:
                    file.write(made.program.as_text())
    for compiles in (False, True) if "pytorch" in PARTS.value else ():
        title = f"PyTorch's step, {'compiled' if compiles else 'eager'}"
        tell(title, [1, *[""] * (len(HEADER))], pytorch(compiles), 1)
    print()
    measured = ["ms", "images/s", "of peak"] if kind == "here" else []
    show([*HEADER, "exchanges", "compile s", *measured], rows)


if __name__ == "__main__":
    app.run(main)
