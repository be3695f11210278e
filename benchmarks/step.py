"""Times the training step of ResNet-18: `python benchmarks/step.py`.

Prints images/s of our step, of the same step with XLA's plain convolution and, where PyTorch is
installed (`pip install -e '.[bench]'`), of the same step in PyTorch (channels_last), taken in turn
in one process so that a machine whose speed drifts does not favour one; the seconds that compiling
took; and the share of an unlearning run's time that evaluation takes. It runs under the allocator
settings that the command line gives itself; `GLIBC_TUNABLES= python benchmarks/step.py` runs it
without.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch_resnet
from absl import app, flags, logging

from jaxunlearn import allocator, augment, devices, models, training
from jaxunlearn.training.loop import make_epoch
from jaxunlearn.training.step import Kind, make_step, start_state

WIDTHS = flags.DEFINE_multi_integer("width", [16, 64], "Widths of the ResNet-18.")
BATCHES = flags.DEFINE_multi_integer("batch", [128, 64], "Batch sizes, one a width.")
SIZE = flags.DEFINE_integer("size", 28, "Image size in pixels.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Timings of each step; the median counts.")
STEPS = flags.DEFINE_integer("steps", 4, "Steps a timing.")
LR = 0.01


def ours(width: int, batch: int, images: np.ndarray, labels: np.ndarray, custom_gradients: bool):
    """Returns a function that does some steps, and the seconds that compiling took."""
    setup = training.Setup(
        model=models.build(
            "resnet18", num_classes=10, width=width, custom_gradients=custom_gradients
        ),
        augment=augment.build(()),
        mean=(0.5,),
        std=(0.5,),
        batch_size=batch,
        weight_decay=5e-4,
    )
    programs = training.Programs(devices.make_mesh(1))
    on_device = devices.replicate(images, programs.mesh)
    bench = training.Bench(setup, on_device, programs)
    variables = training.fresh(bench, 0)
    state = start_state(variables, setup, programs.mesh)
    action = training.Pass(training.cross_entropy, np.arange(len(images)), labels, LR)
    epoch = make_epoch(bench, action, stage="bench", seed=0, number=0)
    before = programs.seconds
    args = (state, on_device, epoch)
    step = programs(make_step(setup, Kind.of(action)), *args, donate=(0,))
    compile_seconds = programs.seconds - before

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = step(state, on_device, epoch)
        jax.block_until_ready(state)

    return steps, compile_seconds


def torchs(width: int, batch: int, images: np.ndarray, labels: np.ndarray):
    """The same step in PyTorch, or None where it is not installed."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return None

    model = torch_resnet.build(images.shape[-1], width, 10)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=5e-4)
    x = torch.from_numpy(images[:batch]).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels[:batch].astype(np.int64))

    def steps(count: int) -> None:
        for _ in range(count):
            batch_x = x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
            loss = nn.functional.cross_entropy(model(batch_x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def in_turn(candidates: dict[str, Callable[[int], None]], batch: int) -> dict[str, list[float]]:
    """Images/s of each candidate, timed one after the other in every round."""
    for steps in candidates.values():
        steps(2)
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS.value):
        for name, steps in candidates.items():
            start = time.perf_counter()
            steps(STEPS.value)
            rates[name].append(batch * STEPS.value / (time.perf_counter() - start))
    return rates


def evaluation_share(width: int, batch: int) -> float:
    """Share of (10 epochs of unlearning and an evaluation) that the evaluation takes."""
    rng = np.random.default_rng(0)
    count = 4 * batch
    images = rng.integers(0, 256, (count, SIZE.value, SIZE.value, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    setup = training.Setup(
        model=models.build("resnet18", num_classes=10, width=width),
        augment=augment.build(()),
        mean=(0.5,),
        std=(0.5,),
        batch_size=batch,
    )
    programs = training.Programs(devices.make_mesh(1))
    on_device = devices.replicate(images, programs.mesh)
    bench = training.Bench(setup, on_device, programs)
    variables = training.fresh(bench, 0)
    passes = [training.Pass(training.cross_entropy, np.arange(count), labels, LR, 10)] * 10
    result = training.run(passes, variables, bench, stage="bench", seed=0)
    test = images[: count // 4]
    for which in (images, test):  # compile
        training.predict(variables, which, bench, 512)
    start = time.perf_counter()
    for which in (on_device, test):
        training.predict(variables, which, bench, 512)
    seconds = time.perf_counter() - start
    return seconds / (seconds + result.seconds)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    device = jax.devices()[0]
    print(f"ResNet-18, {SIZE.value} px, RGB, {device.platform} {device.device_kind}, float32")
    rng = np.random.default_rng(0)
    for width, batch in zip(WIDTHS.value, BATCHES.value, strict=True):
        images = rng.integers(0, 256, (batch, SIZE.value, SIZE.value, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, batch).astype(np.int32)
        fast, fast_compile = ours(width, batch, images, labels, custom_gradients=True)
        plain, plain_compile = ours(width, batch, images, labels, custom_gradients=False)
        candidates = {"jaxunlearn": fast, "plain convolution": plain}
        other = torchs(width, batch, images, labels)
        if other is not None:
            candidates["PyTorch"] = other
        rates = in_turn(candidates, batch)
        print(f"\nwidth {width}, batch {batch}")
        for name, values in rates.items():
            ratio = statistics.median(
                a / b for a, b in zip(rates["jaxunlearn"], values, strict=True)
            )
            print(
                f"  {name:<18} {statistics.median(values):7.0f} images/s "
                f"({min(values):.0f} to {max(values):.0f}); ours is {ratio:.2f} × this"
            )
        if other is None:
            print("  PyTorch            not installed: pip install -e '.[bench]'")
        print(f"  compile seconds    {fast_compile:.1f} (plain convolution: {plain_compile:.1f})")
        print(
            f"  evaluation         {100 * evaluation_share(width, batch):.1f}% of a method's time"
        )


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    app.run(main)
