"""Times one cell of a paper's table as a whole: `python benchmarks/cell.py`.

Original, retrained, fine-tuning, random relabelling and SalUn, each with its metrics, by the
library's own command line; and, where PyTorch is installed (`pip install -e '.[bench]'`), the same
in plain PyTorch (`torch_cell.py`), with accuracies and MIA alone. Each run is a process of its own,
timed from start to end. They take turns: our first run, which compiles; a later run of ours, which
finds compiled programs and no models; PyTorch's. The images are the embedded ones, or those of a
file in MedMNIST's layout:

    python benchmarks/cell.py --data=breastmnist.npz --malignant=0 --width=64 --epochs=182 \
      --unlearn_epochs=10 --batch=256 --lr=0.1
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from measuring import Row, load, machine, ratios, show, spread
from ml_collections import ConfigDict

DATA = flags.DEFINE_string("data", "", "A .npz in MedMNIST's layout; empty: the embedded images.")
COUNT = flags.DEFINE_integer("count", 1000, "Of the embedded training images.")
MALIGNANT = flags.DEFINE_list("malignant", ["1"], "The malignant labels, for clinical metrics.")
WIDTH = flags.DEFINE_integer("width", 16, "Of the ResNet-18.")
BATCH = flags.DEFINE_integer("batch", 64, "Batch size of every training.")
EPOCHS = flags.DEFINE_integer("epochs", 4, "Of original and retrained.")
UNLEARN_EPOCHS = flags.DEFINE_integer("unlearn_epochs", 2, "Of every method.")
LR = flags.DEFINE_float("lr", 0.05, "Learning rate of original and retrained.")
AUGMENT = flags.DEFINE_enum("augment", "crop_flip", ["none", "crop_flip"], "The augmentation.")
CONVOLUTION = flags.DEFINE_enum("convolution", "auto", ["auto", "onednn", "xla"], "Of ours.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "Runs of each.")
FRACTION, FINETUNE_LR, RELABEL_LR = 0.2, 0.01, 0.013
HERE = Path(__file__).parent
METRICS = ("UA", "RA", "TA", "MIA")


def embedded(path: Path) -> None:
    """Writes the embedded images as a file."""
    from jaxunlearn.data import lesions

    dataset = lesions.load(ConfigDict({"count": COUNT.value, "size": 28, "seed": 0}))
    arrays: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        examples = getattr(dataset, name)
        arrays |= {f"{name}_images": examples.images, f"{name}_labels": examples.labels}
    np.savez(path, **arrays)


def timed(command: list[str], environment: dict[str, str]) -> tuple[Row, str]:
    """Seconds of a whole process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | environment, cwd=HERE, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "CPU seconds": cpu}, done.stdout


def ours(path: Path, cache: str) -> tuple[Row, Row]:
    """A run of the command line in folders of its own: its seconds, and its models' values."""
    settings = {
        "data.path": path,
        "data.malignant": f"({''.join(f'{label},' for label in MALIGNANT.value)})",
        "model.width": WIDTH.value,
        "forget.fraction": FRACTION,
        "augment": AUGMENT.value,
        "convolution": CONVOLUTION.value,
        "train.epochs": EPOCHS.value,
        "train.lr": LR.value,
        "train.batch_size": BATCH.value,
    }
    for name in ("finetune", "random_label", "salun"):
        settings[f"methods.{name}.epochs"] = UNLEARN_EPOCHS.value
        settings[f"methods.{name}.lr"] = FINETUNE_LR if name == "finetune" else RELABEL_LR
        settings[f"methods.{name}.batch_size"] = BATCH.value
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "jaxunlearn.main", "--config=cell_config.py"]
        flagged = [f"--config.{field}={value}" for field, value in settings.items()]
        row, _ = timed(
            [*command, f"--workdir={root}/run", *flagged],
            {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": cache},
        )
        report = json.loads(Path(root, "run", "metrics.json").read_text("utf-8"))
    return row, {name: model["per_seed"][0] for name, model in report["models"].items()}


def torchs(path: Path) -> tuple[Row, Row]:
    """The same of PyTorch."""
    settings = {
        "path": str(path),
        "width": WIDTH.value,
        "fraction": FRACTION,
        "augment": AUGMENT.value,
        "epochs": EPOCHS.value,
        "unlearn_epochs": UNLEARN_EPOCHS.value,
        "lr": LR.value,
        "finetune_lr": FINETUNE_LR,
        "relabel_lr": RELABEL_LR,
        "batch": BATCH.value,
    }
    command = [sys.executable, "torch_cell.py", json.dumps(settings)]
    row, printed = timed(command, {"OMP_WAIT_POLICY": "passive"})
    return row, json.loads(printed)


def main(argv: list[str]) -> None:
    del argv
    print(
        f"ResNet-18 of width {WIDTH.value}, {EPOCHS.value} epochs, {UNLEARN_EPOCHS.value} of every "
        f"method, batch {BATCH.value}, {AUGMENT.value}; on {machine()}"
    )
    print(f"{load()}; rounds: {ROUNDS.value}\n", flush=True)
    runs: dict[str, list[Row]] = {"jaxunlearn, first run": [], "jaxunlearn, later run": []}
    other = importlib.util.find_spec("torch") is not None
    if other:
        runs["PyTorch"] = []
    else:
        print("PyTorch is not installed: pip install -e '.[bench]'\n")
    values: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as root:
        path = Path(DATA.value).absolute() if DATA.value else Path(root, "lesions.npz")
        if not DATA.value:
            embedded(path)
        for number in range(ROUNDS.value):
            for name, times in runs.items():
                found = torchs(path) if name == "PyTorch" else ours(path, f"{root}/cache{number}")
                times.append(found[0])
                values[name.split(",")[0]] = found[1]
                print(f"… round {number + 1}, {name}", file=sys.stderr, flush=True)
    rows = []
    for name, times in runs.items():
        row = [name]
        for part in ("seconds", "CPU seconds"):
            row.append(spread([time[part] for time in times]))
            if other:
                pairs = zip(runs["PyTorch"], times, strict=True)
                row.append(ratios(*zip(*((a[part], b[part]) for a, b in pairs), strict=True)))
        rows.append(row)
    ratio = ["PyTorch's / these"] * other
    show(["", "seconds", *ratio, "CPU seconds", *ratio], rows)
    print("What both trained, by their own draws: the last round's, in %\n")
    show(
        ["", *(f"{name}: {metric}" for name in values for metric in METRICS)],
        [
            [model, *(float(values[name][model][metric]) for name in values for metric in METRICS)]
            for model in next(iter(values.values()))
        ],
    )
    print(load())


if __name__ == "__main__":
    app.run(main)
