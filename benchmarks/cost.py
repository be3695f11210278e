"""What each paper's experiments take: counted arithmetic, and hours on machines of four kinds.

    python benchmarks/cost.py

Counts a step's operations as XLA does, and steps as the methods ask for them, on blank images of
the published sets' shapes. Hours are operations / (peak × share), with the peaks and the assumed
shares of `launch.jobs.DEVICES`; augmentation, compiling and evaluation on the host are not in them.
"""

import sys
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))  # for launch/

from jaxunlearn import estimate
from jaxunlearn import main as cli
from jaxunlearn.data import medmnist
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.data.load import SOURCES
from launch import jobs

# Training, validation and test images; channels. Yang et al. 2023,
# https://doi.org/10.1038/s41597-022-01721-8; CIFAR with a tenth of train held out.
COUNTS = {
    "breastmnist": ((546, 78, 156), 1),
    "dermamnist": ((7_007, 1_003, 2_005), 3),
    "pathmnist": ((89_996, 10_004, 7_180), 3),
    "bloodmnist": ((11_959, 1_712, 3_421), 3),
    "organamnist": ((34_561, 6_491, 17_778), 1),
    "cifar10": ((45_000, 5_000, 10_000), 3),
    "cifar100": ((45_000, 5_000, 10_000), 3),
}
CONFIGS = (
    "breastmnist_salun_cra",
    "dermamnist_salun_cra",
    "pathmnist_salun_cra",
    "pathmnist_salun",
    "organamnist_salun",
    "bloodmnist_salun",
    "cifar10_augmentation",
    "cifar100_augmentation",
)


def blank(config) -> Dataset:
    """A set of the published size, of blank images."""
    counts, channels = COUNTS[config.name]
    size, malignant, licence = 32, cast(tuple[int, ...], ()), "none stated"
    names = tuple(map(str, range(10 if config.name == "cifar10" else 100)))
    if config.name in medmnist.FLAGS:
        size = config.size
        _, names, malignant, licence, _ = medmnist.FLAGS[config.name]
    train, val, test = (
        Examples(
            np.zeros((count, size, size, channels), np.uint8),
            np.arange(count, dtype=np.int32) % len(names),
        )
        for count in counts
    )
    return Dataset(config.name, train, val, test, names, malignant, licence)


def main() -> None:
    """Prints a markdown table: a row for each config, with one seed."""
    SOURCES.update({name: blank for name in COUNTS})
    devices = list(jobs.DEVICES.values())
    console = Console(width=200)
    titles = [f"{device.title}" for device in devices]
    lines = [["config", "cells", "models", "PFLOP", "GiB", *titles]]
    lines.append(["---", *["--:"] * (len(lines[0]) - 1)])
    for name in CONFIGS:
        config = cli.load_config(f"configs/{name}.py")
        config.seeds = (0,)
        with tempfile.TemporaryDirectory() as folder:
            todo = jobs.make_jobs(config, f"{folder}/run")
        hours = [estimate.duration(sum(job.seconds(device) for job in todo)) for device in devices]
        cells = len({job.cell for job in todo})
        models = sum(len(job.models) for job in todo)
        numbers = [
            f"{sum(job.flops for job in todo) / 1e15:.3g}",
            f"{max(job.device_bytes for job in todo) / 2**30:.1f}",
        ]
        lines.append([f"`{name}`", str(cells), str(models), *numbers, *hours])
        console.print(f"{name}: counted", style="dim")
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
