"""What accelerators run is lowered for them here, and compiled for a TPU where libtpu is there."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import augment, devices, training
from jaxunlearn.methods import METHODS

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


class Lowered(training.Programs):
    """Programs that are lowered for CUDA and TPU and never run; all that they give is ones."""

    def __init__(self, count):
        super().__init__(devices.make_mesh(count))
        self.texts = {}

    def __call__(self, function, *args, donate=()):
        traced = self._trace(function, args, donate)
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            self.texts[function.__name__, platform] = text
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), traced.out_info)
        return lambda *given: ones


@pytest.fixture
def lowered(monkeypatch):
    """The toy problem as on accelerators, with such programs."""
    monkeypatch.setattr(devices, "on_cpu", lambda mesh: False)

    def make(**changes):
        task = toy.task(count=4, **changes)
        return dataclasses.replace(task, bench=task.bench._replace(programs=Lowered(4)))

    return make


@pytest.mark.parametrize("method", METHODS)
def test_every_program_of_a_method_lowers_for_accelerators(method, lowered):
    task = lowered(**toy.sets_for(method))
    toy.unlearn(method, task)
    texts = task.bench.programs.texts
    assert texts and (("whole_epoch", "tpu") in texts or "epochs" not in METHODS[method].defaults)
    assert not [name for name, text in texts.items() if "callback" in text or "f64" in text]


def test_predictions_lower_for_accelerators(lowered):
    task = lowered()
    training.predict(task.original, np.asarray(task.bench.images), task.bench, 16)
    assert len(task.bench.programs.texts) == 2


def test_float32_is_multiplied_as_float32_unless_the_user_says_otherwise(lowered):
    def texts(task):
        training.predict(task.original, np.asarray(task.bench.images), task.bench, 16)
        found = task.bench.programs.texts.values()
        return [text for text in found if "stablehlo.convolution" in text]

    assert texts(lowered()) and all("precision HIGHEST" in text for text in texts(lowered()))
    with jax.default_matmul_precision("tensorfloat32"):
        assert texts(lowered()) and not any("precision HIGHEST" in t for t in texts(lowered()))


@pytest.mark.parametrize("size", [8, 72])
def test_every_augmentation_lowers_for_accelerators(size):
    everything = augment.build(tuple(augment.POLICIES))
    images, targets = jnp.zeros((4, size, size, 3), jnp.uint8), jnp.zeros((4, 2))
    traced = jax.jit(everything).trace(images, targets, jax.random.key(0))
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "callback" not in text and "f64" not in text
        # A scatter counts levels; a TPU has products for that.
        assert ("stablehlo.scatter" in text) == (platform == "cuda")


def assert_split_over_chips(done, count):
    """The benchmark's rows are of steps whose chips exchange sums and no examples."""
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| step")]
    assert len(rows) == count
    for row in rows:
        assert "all-reduce" in row[-2] and "all-gather" not in row[-2], row
        assert float(row[6]) < 64, row  # MiB beside the arguments


def test_programs_are_measured_on_the_devices_that_are_here():
    flags = ["topology=here", "width=8", "size=8", "batch=8", "examples=24", "dtype=float32"]
    command = [sys.executable, str(BENCHMARK), *(f"--{flag}" for flag in flags)]
    command += ["--policy=crop_flip", "--policy=none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = [line[1:-1].split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in table]
    assert [row[0] for row in rows] == ["crop_flip", "none", "step, crop_flip", "step, none"]
    for row in rows:
        found = dict(zip(header, row, strict=True))
        rate = 8 / (float(found["ms"]) / 1000)
        assert float(found["images/s"].replace(",", "")) == pytest.approx(rate, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"), reason="pip install -e '.[cuda]'"
)
def test_a_step_compiles_for_gpus_without_exchange_of_examples():
    flags = ["topology=h100:4", "chips=4", "width=8", "size=28", "batch=64", "examples=256"]
    flags += ["part=step", "policy=crop_flip", "policy=randaugment"]
    command = [sys.executable, str(BENCHMARK), *(f"--{flag}" for flag in flags)]
    assert_split_over_chips(subprocess.run(command, capture_output=True, text=True), 2)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="pip install -e '.[tpu]'")
def test_a_step_compiles_for_a_tpu_without_gathers_of_pixels_or_of_other_chips_examples(tmp_path):
    size, batch, count = 28, 64, 256
    flags = ["chips=4", "width=8", f"size={size}", f"batch={batch}", f"examples={count}"]
    flags += ["part=step", "policy=crop_flip", "policy=randaugment", f"dump={tmp_path}"]
    command = [sys.executable, str(BENCHMARK), *(f"--{flag}" for flag in flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_split_over_chips(done, 2)
    for path in tmp_path.iterdir():
        text = path.read_text("utf-8")
        gathers = re.findall(r" = \w+\[([\d,]*)\]\S* gather\(.*slice_sizes=\{([\d,]*)\}", text)
        assert gathers
        for found, each in gathers:
            whole, piece = (
                np.prod([int(n) for n in sizes.split(",") if n]) for sizes in (found, each)
            )
            # A batch's images are gathered whole, one look-up each; of the two ops of each image
            # one look-up in their tables.
            assert whole / piece <= 2 * batch, (path.name, found, each)
        # Nor are all copied within the chip's memory, S(1) being its own fast one.
        assert not re.search(rf" = u8\[{count},[\d,]*\]\{{[^}}S]*\}} copy\(", text)
