"""What is counted of larger data sets and more requests: `python benchmarks/scale.py`.

Nothing is timed. Arithmetic is XLA's count for a ResNet-18's training step (`jaxunlearn.estimate`),
bytes are those of the arrays that the library keeps. What devices do and cost are assumptions.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from measuring import show

from jaxunlearn import config as config_lib
from jaxunlearn import estimate, plan

WIDTH = flags.DEFINE_integer("width", 64, "Width of the ResNet-18.")
PASSES = flags.DEFINE_integer("passes", 10, "Assumed passes over all of train of an unlearning.")
DOLLARS = flags.DEFINE_float("dollars", 3.0, "Assumed price of an hour of the fastest device.")
SIZES = (28, 32, 64, 224)
COUNTS = (10**4, 10**6, 10**8)
REQUESTS = (1, 100, 10**4)  # a day
# Bytes of memory, and operations a second: by their makers' data sheets without sparsity, of the T4
# in float32, of the others in bfloat16; times the share of that which training reaches, assumed but
# for the H100, where docs/speed.md has it as measured on an H200.
DEVICES = {"T4": (16e9, 0.3 * 8.1e12), "v5e": (16e9, 0.3 * 197e12), "H100": (80e9, 0.17 * 989e12)}
CLASSES = 2


class Counted(NamedTuple):
    """Of one image: operations forward and in a training step, bytes kept for the backward pass."""

    forward: float
    step: float
    kept: float


def count(size: int) -> Counted:
    """Counts an image of that size, by what another epoch and a larger batch add."""

    def cost(epochs: int, batch: int) -> estimate.Cost:
        config = config_lib.default()
        config.data.count, config.data.size, config.model.width = 128, size, WIDTH.value
        config.train.epochs, config.train.batch_size = epochs, batch
        (one,) = plan.make(config_lib.plain(config), 1)
        return estimate.cost(one.recipes(0)["original"])

    once, twice, larger = cost(1, 64), cost(2, 64), cost(1, 128)
    epoch, images = twice.flops - once.flops, twice.images - once.images
    forward = (once.flops - epoch) / (once.images - images)
    kept = (larger.device_bytes - once.device_bytes) / 64
    return Counted(forward, epoch / images, kept)


def parameters() -> int:
    """Of the model."""
    from jaxunlearn import models

    model = models.build("resnet18", num_classes=CLASSES, width=WIDTH.value)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def amount(number: float, units: str = "B") -> str:
    """A number of bytes with its unit."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}{units}"
    return f"{number:.3g} {units}"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:.2g} s"


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    counted = {size: count(size) for size in SIZES}
    weights = 4 * parameters()

    print("Training images as uint8, RGB, and how many a device holds in half of its memory\n")
    rows: list[list[Any]] = []
    for size in SIZES:
        each = 3 * size**2
        whole = [amount(each * n) for n in COUNTS]
        fits = [f"{0.5 * memory / each:,.0f}" for memory, _ in DEVICES.values()]
        rows.append([f"{size} px", f"{each:,} B", *whole, *fits])
    show(["image", "each", *(f"{n:,}" for n in COUNTS), *DEVICES], rows)

    print(f"ResNet-18, width {WIDTH.value}: an image, and images a second\n")
    rows = []
    for size, one in counted.items():
        rates = [f"{speed / one.step:,.0f}" for _, speed in DEVICES.values()]
        gflops = [f"{each / 1e9:.3g}" for each in (one.forward, one.step)]
        read = amount(DEVICES["H100"][1] / one.step * 3 * size**2, "B/s")
        rows.append([f"{size} px", *gflops, amount(one.kept), *rates, read])
    header = ["image", "GFLOP forward", "in training", "kept for backward"]
    show([*header, *(f"{name}, images/s" for name in DEVICES), "an H100 reads"], rows)

    print("One pass over all images\n")
    rows = [
        [
            f"{size} px, {n:,}",
            *(duration(n * one.step / speed) for _, speed in DEVICES.values()),
        ]
        for size, one in counted.items()
        if size in (28, 224)
        for n in COUNTS
    ]
    show(["images", *DEVICES], rows)

    speed = DEVICES["H100"][1]
    epochs = config_lib.default().train.epochs
    print(
        f"A day's requests on H100s: unlearning takes {PASSES.value} passes, retraining {epochs}; "
        f"${DOLLARS.value:g} an hour\n"
    )
    rows = []
    for size, n in ((28, 10**4), (28, 10**6), (28, 10**8), (224, 10**6), (224, 10**8)):
        for what, passes in (("unlearn", PASSES.value), ("retrain", epochs)):
            hours = n * passes * counted[size].step / speed / 3600
            needed = [f"{max(1, np.ceil(hours * r / 24)):,.0f}" for r in REQUESTS]
            money = [f"${DOLLARS.value * hours * r:,.2f}" for r in REQUESTS]
            both = [f"{a}, {b}" for a, b in zip(needed, money, strict=True)]
            rows.append([f"{size} px, {n:,}: {what}", duration(3600 * hours), *both])
    show(["", "one request", *(f"{r:,} a day: devices, cost" for r in REQUESTS)], rows)

    print(
        f"Kept of one model of {CLASSES} classes, with val and test of a half of train together\n"
    )
    rows = []
    for n in COUNTS:
        rows.append(
            [
                f"{n:,}",
                amount(weights),
                amount(1.5 * n * 4 * CLASSES),
                amount(1.5 * n * (4 * CLASSES + 8)),
                amount(8 * n),
            ]
        )
    show(["images", "variables", "logits", "predictions", "split of the run"], rows)


if __name__ == "__main__":
    app.run(main)
