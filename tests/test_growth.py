"""What every model and cell needs is read once; and how the benchmark tells of growth."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import measuring

from jaxunlearn import closure, plan


def test_a_plan_reads_the_same_data_and_sources_once(tmp_path, monkeypatch):
    config = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={}, salun={})
    config.seeds, config.train.batch_size = (0, 1), 16
    config.axes = (("methods.finetune.lr", (0.01, 0.02, 0.03)),)
    loads, sources = [], []
    load, fingerprint = plan.load, closure.fingerprint
    monkeypatch.setattr(plan, "load", lambda data: loads.append(data) or load(data))
    monkeypatch.setattr(
        closure, "fingerprint", lambda roots: sources.append(roots) or fingerprint(roots)
    )
    experiments = plan.make(config, 1)
    recipes = [r for one in experiments for seed in (0, 1) for r in one.recipes(seed).values()]
    assert len(recipes) == 3 * 2 * 4
    assert len({recipe.key for recipe in recipes}) == 2 * (3 + 3)  # finetune's differ by cell
    assert len(loads) == 1
    assert len(sources) == len(set(sources)) == 3  # training, finetune and salun


def test_the_clock_takes_what_is_called_off_the_caller():
    clock = measuring.Clock(["plan", "data"])
    with clock("plan"):
        time.sleep(0.01)
        with clock("data"):
            time.sleep(0.05)
    assert clock.seconds["data"] >= 0.05 > clock.seconds["plan"] >= 0.01
    assert sum(clock.seconds.values()) == pytest.approx(
        clock.seconds["data"] + clock.seconds["plan"]
    )


def test_a_fit_tells_a_line_from_a_square():
    n = np.array([1, 2, 4, 8])
    line, square = measuring.fit(n, 3 + 2 * n), measuring.fit(n, 5 * n**2)
    assert (line["a"], line["b"]) == pytest.approx((3, 2)) and line["off"] < 1e-12
    assert line["exponent"] < line["last"] < 1
    assert square["exponent"] == pytest.approx(2) and square["last"] == pytest.approx(2)
    assert square["off"] > 0.1
