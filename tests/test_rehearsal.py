"""`--dry_run`: what would be forgotten and trained, and nothing done."""

import io
import re

import pytest
import toy
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import devices, experiment, rehearsal
from jaxunlearn.errors import UserError
from jaxunlearn.rehearsal import rehearse


def printed(config, folder):
    console = Console(file=io.StringIO(), width=120)
    rehearse(config, folder, console)
    return console.file.getvalue()


def test_it_tells_the_request_and_the_models_and_does_nothing(tmp_path):
    data = toy.write_npz(tmp_path / "data.npz")
    config = toy.experiment_config(data, finetune={"epochs": 1, "batch_size": 16})
    before = sorted(tmp_path.rglob("*"))
    text = printed(config, tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"^Request: forget\.kind='\w+'", text, re.M)
    counts = re.search(r"data: (\d+) of 48 training images to forget: (\d+) of (\d+) 0", text)
    forgotten, of_first, first = map(int, counts.groups())
    assert 0 < of_first < forgotten < 48 and first < 48
    rows = re.findall(r"^ *0 +(original|retrained|finetune) +([\d,]+) +(.*?) *$", text, re.M)
    assert [row[0] for row in rows] == ["original", "retrained", "finetune"]
    # 3 batches of 16 hold 48 images; then 92 predictions in batches of the training's size.
    assert all(int(row[1].replace(",", "")) > 92 for row in rows)
    assert re.search(r"about \d+ seconds on .*cpu.*, as busy as it is just now\. Nothing was", text)

    report = experiment.run(config, tmp_path / "run", Console(file=io.StringIO()))
    other = config.copy_and_resolve_references()
    other.train.epochs += 1
    with pytest.raises(UserError, match=r"holds a run with another config \(train differ\)"):
        rehearse(other, tmp_path / "run")
    assert report["split"]["forget"] == forgotten
    assert printed(config, tmp_path / "run").count("in the store") == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "'fraction', random: fraction=0.2, balanced=True, seed=0."),
        ({"kind": "random_groups"}, "'random_groups', random: fraction=0.2, seed=0."),
        ({"kind": "groups", "groups": (2, 5)}, "'groups': groups=(2, 5)."),
        ({"kind": "class", "classes": (1,)}, "'class': classes=(1,)."),
    ],
)
def test_it_tells_what_was_asked_for(changes, line):
    request = config_lib.default().forget
    request.update(changes)
    assert rehearsal._asked(request) == f"Request: forget.kind={line}"


def test_it_tells_how_large_a_batch_has_room(tmp_path, monkeypatch):
    config = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    found = (
        r"A step of 16 images takes about ([\d.]+) of the ([\d.]+) GiB of each device, .*; (.*?)\."
    )
    text = printed(config, tmp_path / "run").replace("\n", " ")
    taken, there, room = re.search(found, text).groups()
    assert float(taken) < 0.1 < float(there) and room == "there is room for all images at once"
    cases = [(1000, 999, 16), (1000, 1999, 16), (1000, 2000, 32), (1000, 8e3, 128), (1, 1e9, 2048)]
    for takes, bytes_there, larger in cases:
        assert rehearsal.larger_batch(16, takes, bytes_there, 2000) == larger
    monkeypatch.setattr(devices, "memory", lambda mesh: float("inf"))
    assert "What memory a step takes is not known here." in printed(config, tmp_path / "run")


def test_what_a_run_would_refuse_is_refused(tmp_path):
    config = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    config.forget.fraction = 2.0
    with pytest.raises(UserError, match="fraction must be"):
        printed(config, tmp_path / "run")
