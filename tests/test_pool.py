import copy
import json
import shutil

import pytest
import toy
from process import finish

from jaxunlearn import experiment, pool
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import results
from jaxunlearn.plan import IN_FLOAT32

FAST = {"epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of seeds 3, 5 and both, which share a store so that even their seconds are the same."""
    root = tmp_path_factory.mktemp("pool")
    config = toy.experiment_config(toy.write_npz(root / "data.npz"), finetune=FAST, salun=FAST)
    config.store = str(root / "store")
    for name, seeds in (("both", (3, 5)), ("three", (3,)), ("five", (5,))):
        config.seeds = seeds
        experiment.run(config, root / name)
    return root


def load(root, *names):
    return {name: results.load(root / name) for name in names}


def test_seeds_run_apart_give_what_one_run_of_them_gives(folders):
    reports = load(folders, "five", "three")
    before = copy.deepcopy(reports)
    pooled = pool.pool(reports)
    assert reports == before
    assert json.loads(json.dumps(pooled)) == results.load(folders / "both")
    assert pooled["models"]["salun"]["interval"]["UA"] is not None


def test_models_of_another_machine_are_named(folders):
    reports = load(folders, "three", "five")
    for model in reports["five"]["models"].values():
        for machine in model["per_seed"][0]["made_on"]:
            machine["cores"] = 1000
    (note,) = set(pool.pool(reports)["notes"]) - set(pool.pool(load(folders, "both"))["notes"])
    assert "1000 cores" in note and "salun (seed 5)" in note and "seed 3" not in note


def test_notes_of_other_machines_are_of_the_machine_that_the_table_names(folders):
    reports = load(folders, "three", "five")
    there = reports["five"]
    there["device"], there["cores"] = "1 × gpu H100", 16
    per_seed = {name: model["per_seed"] for name, model in there["models"].items()}
    told = results.made_elsewhere(per_seed, there)
    assert len(told) == 1 and "here 1 × gpu H100" in told[0]
    there["notes"] = [*there["notes"], *told, "Something else."]
    notes = pool.pool(reports)["notes"]
    assert "Something else." in notes and not [note for note in notes if "H100" in note]


def test_what_tuning_took_is_that_of_the_one_run_that_was_tuned(folders):
    reports = load(folders, "three", "five")
    spent = {"salun": {"trials": 2, "diverged": 0, "seconds": 3.0}}
    reports["five"]["tuning"] = spent
    assert pool.pool(reports)["tuning"] == spent
    reports["three"]["tuning"] = spent
    with pytest.raises(UserError, match="three and five were both tuned; tune one run"):
        pool.pool(reports)


def test_files_may_lie_elsewhere_on_each_machine(folders, tmp_path):
    reports = load(folders, "three", "five")
    for i, report in enumerate(reports.values()):
        report["request"] = {"kind": "table", "path": f"/machine{i}/withdrawn.csv", "ids": [1]}
    assert pool.pool(reports)["seeds"] == [3, 5]
    reports["five"]["request"]["ids"] = [2]
    with pytest.raises(UserError, match=r"request\.ids is \[1\] and \[2\]"):
        pool.pool(reports)

    five = shutil.copytree(folders / "five", tmp_path / "five")
    config = json.loads((five / "config.json").read_text())
    for section, field in (("data", "root"), ("data", "path"), ("forget", "path")):
        config[section][field] = "/elsewhere"
    (five / "config.json").write_text(json.dumps(config))
    flags = ["--workdir=all", folders / "three", "five"]
    assert finish(*flags, module="jaxunlearn.pool", cwd=tmp_path)[0] == 0


def other(report, path, value):
    *parents, last = path
    inner = report
    for part in parents:
        inner = inner[part]
    inner[last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["seeds"], [3], "three and five both have seed 3; give one"),
        (["dataset", "fingerprint"], "f" * 64, "dataset.fingerprint is '.*' and 'ffff"),
        (
            ["split", "forget"],
            1,
            "split.forget is 10 and 1; give runs of one config that differ in",
        ),
        (
            ["models", "salun", "per_seed", 0, "made_by", "lr"],
            0.5,
            "settings.salun.lr is 0.* and 0.5; give runs",
        ),
        (["models"], {}, "models is .* and "),
        (["notes"], [IN_FLOAT32], "computed in float32 is False and True; give runs"),
    ],
)
def test_results_of_other_experiments_are_refused(folders, path, value, message):
    reports = load(folders, "three", "five")
    other(reports["five"], path, value)
    with pytest.raises(UserError, match=message):
        pool.pool(reports)


def test_a_method_that_one_seed_lacks_is_left_out(folders):
    reports = load(folders, "three", "five")
    del reports["five"]["models"]["salun"]
    with pytest.raises(UserError, match="models is "):  # by config, not as it diverged
        pool.pool(reports)
    reports["five"]["left_out"] = {"salun": "why"}
    reports["five"]["notes"].append("salun is left out, as it diverged: why")
    pooled = pool.pool(reports)
    assert pooled["left_out"] == {"salun": "why"}
    assert "salun" in reports["three"]["models"] and "salun" not in pooled["models"]
    assert pooled["seeds"] == [3, 5] and len(pooled["models"]["original"]["per_seed"]) == 2
    assert "salun is left out, as it diverged: why" in pooled["notes"]


def test_grids_are_refused():
    with pytest.raises(
        UserError, match="grid holds a grid or a sequence of requests; give folders"
    ):
        pool.pool({"grid": {"cells": []}})


def test_the_command(folders, tmp_path):
    five = shutil.copytree(folders / "five", tmp_path / "five")

    def run(*args):
        return finish(*args, module="jaxunlearn.pool", cwd=tmp_path)

    status, out, err = run("--workdir=all", folders / "three", "five")
    assert (status, err) == (0, "") and "salun" in out and "2 seeds" in out
    assert results.load(tmp_path / "all") == results.load(folders / "both")
    for name in ("table.md", "figure.png"):
        assert (tmp_path / "all" / name).is_file()
    # the page names files of one run: which images were forgotten, answers, changes
    assert not (tmp_path / "all" / "summary.md").exists()
    again = run("--workdir=all", "five", folders / "three")
    assert again[0] == 0

    status, _, err = run("--workdir=five", folders / "three", "five")
    assert status == 2 and "five holds a run of its own; give another --workdir" in err
    assert results.load(five) == results.load(folders / "five")
    status, _, err = run("--workdir=more", "five", "five")
    assert status == 2 and "a folder is given twice" in err
    config = json.loads((five / "config.json").read_text())
    config["train"]["epochs"] += 1
    (five / "config.json").write_text(json.dumps(config))
    status, _, err = run("--workdir=more", folders / "three", "five")
    assert status == 2 and "train.epochs is " in err and not (tmp_path / "more").exists()
    for wrong in (["three"], ["--workdir=more", folders / "three"], ["--wrkdir=more"]):
        status, _, err = run(*wrong)
        assert status == 2 and len(err.splitlines()) == 1
    for damaged in ("{", "[]", "null"):
        (five / "config.json").write_text(damaged)
        status, _, err = run("--workdir=more", folders / "three", "five")
        assert status == 2 and "five/config.json cannot be read as a run's config" in err
    report = json.loads((five / "metrics.json").read_text())
    (five / "metrics.json").write_text(json.dumps({**report, "models": 3}))
    status, _, err = run("--workdir=more", folders / "three", "five")
    assert status == 2 and "five is damaged; rerun the command" in err
