"""What every model and cell needs is read once; and how the benchmark tells of growth."""

import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import toy
from process import ROOT, environment
from rich.console import Console

from jaxunlearn import closure, experiment, plan, trained

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measuring  # noqa: E402


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


def test_an_original_is_read_once_for_all_methods_of_a_seed(tmp_path, monkeypatch):
    few = {"epochs": 1, "batch_size": 16}
    config = toy.experiment_config(
        toy.write_npz(tmp_path / "data.npz"), finetune=few, random_label=few, neggrad_plus=few
    )
    config.seeds, config.train.epochs = (0, 1), 1
    reads, load = [], trained.load_tree
    monkeypatch.setattr(trained, "load_tree", lambda path: reads.append(path) or load(path))
    experiment.run(config, tmp_path / "run", Console(file=io.StringIO()))
    assert len(reads) == len(set(reads)) == 2


@pytest.mark.slow
def test_a_run_is_taken_apart(tmp_path):
    """The benchmark's own look at a run: its parts are of that run, and add up to it."""
    numbers = {"images": 60, "methods": 2, "seeds": 1, "cells": 2}
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--model=cnn", "--epochs=1"]
    command += [f"--child={json.dumps(numbers)}", f"--workdir={tmp_path}/run"]
    rows = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = rows
    spent = first.keys() - {"total", "processor", "MiB"}
    for row in rows:
        assert 0.8 * row["total"] < sum(row[part] for part in spent) < row["total"]
    assert all(first[part] > 0 for part in spent)
    assert {part for part in spent if not second[part]} == {"compile", "train", "predict", "put"}


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
