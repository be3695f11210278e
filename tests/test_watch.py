"""Watching a method: it changes no bit, and what it sees is what is there."""

import dataclasses
import io
import json
import time

import jax
import matplotlib.figure
import numpy as np
import pytest
import toy
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, metrics, plan, store, training, unlearn, watch
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.data.forget import Split
from jaxunlearn.errors import Stopped, UserError
from jaxunlearn.methods import actions
from jaxunlearn.report import figures
from jaxunlearn.store import load_tree, read_npz
from jaxunlearn.training.passes import Watch

EVERY = {"every": 1, "images": 500, "stop": False, "tolerance": 2.0}


def passes(count, task):
    """Plain training on retain."""
    return [
        training.Pass(training.cross_entropy, task.retain, task.labels, 0.05, count)
        for _ in range(count)
    ]


def predictions_of(task):
    """As a run gives them, on all images, by the toy's labels."""
    sets = {"forget": (task.forget, task.labels), "retain": (task.retain, task.labels)}

    def predictions(variables):
        found = {
            which: metrics.Predictions(task.logits(rows, variables), labels[rows])
            for which, (rows, labels) in sets.items()
        }
        return {**found, "val": metrics.Predictions(task.val_logits(variables), task.val.labels)}

    return predictions


def run(made, task, **settings):
    return training.run(
        made, task.original, task.bench, stage="unlearn", seed=task.seed, **settings
    )


def watched(made, task, predictions=None, **settings):
    return watch.Watched(made, {**EVERY, **settings}, predictions or predictions_of(task))


def copied(point):
    """The point with its state on the host and its answers as JSON, as a store keeps it."""
    state = [np.array(leaf) for leaf in jax.device_get(point.state)]
    return point._replace(state=state, answers=json.loads(json.dumps(point.answers)))


@pytest.mark.parametrize(
    "method, settings",
    [
        ("finetune", {}),
        ("retrain", {"keep": "best_val"}),  # replaces, asks, saves and restores
        ("scrub", {"rewind": True}),
        ("salun", {"mask": {"ratio": 0.5}}),
        ("ssd", {}),  # makes no pass
        ("boundary_expand", {}),  # passes of a model of another shape
        ("noisy_finetune", {}),  # claims
    ],
)
def test_watching_changes_no_bit_and_no_claim(method, settings):
    task, values = toy.task_for(method), toy.settings(method, **settings)
    plain = run(actions(task, values), task)
    made = watched(actions(task, values), task)
    seen = run(made, task)
    assert toy.same_bits(plain.variables, seen.variables)
    assert (plain.history, plain.claims) == (seen.history, seen.claims)
    looks = made.curve["looks"]
    assert looks[0] == watch.look(0, predictions_of(task)(task.original))
    count = len(plain.history)
    assert looks[-1] == watch.look(count, predictions_of(task)(plain.variables))
    assert made.curve["result"] == len(looks) - 1
    numbers = [each["passes"] for each in looks]
    assert numbers == sorted(numbers)
    if method in ("finetune", "salun"):
        assert numbers == [0, 1, 2]  # the last pass's look is that of the result


def test_a_curve_holds_the_accuracies_that_shorter_runs_end_with():
    task = toy.linear_task()
    made = watched(passes(5, task), task, every=2)
    run(made, task)
    assert [each["passes"] for each in made.curve["looks"]] == [0, 2, 4, 5]
    images, labels = toy.images_and_labels(30, seed=1)
    x = {"train": toy.inputs(task), "val": (images.reshape(30, -1) / 255 - 0.5) / 0.5}
    for each in made.curve["looks"]:
        w = toy.weights(run(passes(each["passes"], task), task))
        right, p = {}, {}
        for which, source, rows, of in (
            ("forget", "train", task.forget, task.labels),
            ("retain", "train", task.retain, task.labels),
            ("val", "val", np.arange(30), labels),
        ):
            z = x[source][rows] @ w
            right[which] = 100 * np.mean(z.argmax(1) == of[rows])
            p[which] = np.mean(toy.softmax(z)[np.arange(len(rows)), of[rows]])
        assert each["UA"] == pytest.approx(100 - right["forget"])
        assert each["RA"] == pytest.approx(right["retain"])
        assert each["VA"] == pytest.approx(right["val"])
        assert each["confidence"] == pytest.approx(p, rel=1e-4)
    assert len({json.dumps(each["confidence"]) for each in made.curve["looks"]}) == 4


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_goes_on_has_the_same_curve(stop):
    task, points = toy.linear_task(), []

    def made():
        return watched(passes(4, task), task, stop=stop, tolerance=100.0)

    first = made()
    whole = run(first, task, checkpoint=lambda point: points.append(copied(point)))
    assert len(points) == 4
    for point in points:
        again = made()
        resumed = run(again, task, resume=point)
        assert again.curve == first.curve
        assert toy.same_bits(whole.variables, resumed.variables)


def made_up(values):
    """Predictions whose accuracies on val are the given ones in turn, in % of 100 images."""
    values = iter(values)

    def predictions(variables):
        labels = np.zeros(100, np.int32)
        answers = (np.arange(100) >= next(values)).astype(int)
        return {"val": metrics.Predictions(np.eye(2, dtype=np.float32)[answers], labels)}

    return predictions


@pytest.mark.parametrize(
    "values, every, back, seen",
    [
        ((80, 79, 78, 79, 80), 1, 4, [0, 1, 2, 3, 4]),  # 2 points are allowed
        ((80, 79, 78, 77), 1, 2, [0, 1, 2, 3]),  # 3 are not: back to the second pass
        ((80, 77), 1, 0, [0, 1]),  # to the start
        ((80, 85, 81, 77), 1, 2, [0, 1, 2, 3]),  # against the start, not the best
        ((80, 78, 77), 2, 2, [0, 2, 4]),
        ((80, 79, 70), 3, 3, [0, 3, 4]),  # the result is looked at too
    ],
)
def test_the_stop_hands_back_the_last_look_before_the_fall(values, every, back, seen):
    task = toy.linear_task()
    made = watched(passes(4, task), task, made_up(values), every=every, stop=True)
    result = run(made, task)
    assert toy.same_bits(result.variables, run(passes(back, task), task).variables)
    assert [each["passes"] for each in made.curve["looks"]] == seen
    assert [each["VA"] for each in made.curve["looks"]] == list(values)
    assert seen[made.curve["result"]] == back


def test_an_edit_that_loses_too_much_is_undone():
    task = toy.linear_task()
    edit = training.Replace({"params": {"w": np.zeros((64, 3), np.float32)}})
    made = watched([edit], task, made_up((80, 20)), stop=True)
    assert toy.same_bits(run(made, task).variables, run([], task).variables)
    assert made.curve["result"] == 0 and len(made.curve["looks"]) == 2


def test_a_choice_drops_the_claims():
    task = toy.linear_task()

    def claiming():
        yield from passes(1, task)
        return {"epsilon": 1.0}

    assert run(watched(claiming(), task), task).claims == {"epsilon": 1.0}
    assert run(watched(claiming(), task, stop=True, tolerance=100.0), task).claims == {}


def test_what_has_no_finite_logits_is_undefined_and_stopped():
    task = toy.linear_task()
    values = iter([np.ones((4, 2), np.float32), np.full((4, 2), np.nan, np.float32)])

    def predictions(variables):
        return {"val": metrics.Predictions(next(values), np.zeros(4, np.int32))}

    made = watched(passes(1, task), task, predictions, stop=True)
    assert toy.same_bits(run(made, task).variables, run([], task).variables)
    assert [each["VA"] for each in made.curve["looks"]] == [100.0, None]
    assert made.curve["looks"][1]["UA"] is None  # there is no image


def test_the_clock_stands_still_for_those_who_watch(monkeypatch):
    task, now = toy.linear_task(), [0.0]
    run(passes(2, task), task)  # compiles
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def method():
        for action in passes(2, task):
            now[0] += 1  # what a method computes for itself
            yield action
            yield training.Ask(lambda variables: wait(10))
        yield training.Replace(task.original)
        now[0] += 5  # between its last action and the last look

    def wait(seconds, compiling=0.0):
        now[0] += seconds
        task.bench.programs.seconds += compiling
        return seconds

    def predictions(variables):
        wait(1000, compiling=400)
        return predictions_of(task)(variables)

    plain = run(method(), task)
    seen = run(watched(method(), task, predictions), task)
    assert plain.seconds == seen.seconds == 27
    assert plain.compile_seconds == seen.compile_seconds == 0


def test_images_are_drawn_once_from_each_set_by_name():
    labels = np.repeat(np.arange(3), 20).astype(np.int32)
    images = np.zeros((60, 8, 8, 1), np.uint8)
    data = Dataset("it", *[Examples(images, labels)] * 3, class_names=("a", "b", "c"))
    split = Split(np.arange(20), np.arange(20, 60))  # class 0 is to be forgotten whole
    drawn = watch.draw(split, data, seed=1, images=15)
    assert {which: source for which, (source, _) in drawn.items()} == {
        "forget": "train",
        "retain": "train",
        "val": "val",
    }
    for which, low, high in (("forget", 0, 20), ("retain", 20, 60), ("val", 20, 60)):
        rows = drawn[which][1]
        assert len(set(rows.tolist())) == 15 and (rows >= low).all() and (rows < high).all()
    assert not np.array_equal(drawn["retain"][1], drawn["val"][1])
    again, other = (watch.draw(split, data, seed=seed, images=15) for seed in (1, 2))
    assert all(np.array_equal(drawn[which][1], again[which][1]) for which in drawn)
    assert not np.array_equal(drawn["retain"][1], other["retain"][1])
    everything = watch.draw(split, data, seed=1, images=500)
    assert everything["forget"][1].tolist() == list(range(20))
    only_forgotten = dataclasses.replace(data, val=Examples(images[:20], labels[:20]))
    assert set(watch.draw(split, only_forgotten, 1, 500)) == {"forget", "retain"}


FAST = {"epochs": 4, "batch_size": 16}


def make_config(root, **changes):
    path = root / "data.npz"
    if not path.exists():
        toy.write_npz(path)
    given = config_lib.methods(theirs={"method": "brought", "path": str(root / "given")})
    config = toy.experiment_config(str(path), finetune=FAST, ssd={"batch_size": 16})
    if (root / "given").exists():
        config.methods.theirs = given["theirs"]
    config.seeds, config.store = (0, 1), str(root / "store")
    for field, value in changes.items():
        config.watch[field] = value
    return config


def carry_out(config, folder):
    console = Console(width=120, record=True, file=io.StringIO())
    return experiment.run(config, folder, console), console.export_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same without and with watching, on one store; the latter with a model made elsewhere."""
    root = tmp_path_factory.mktemp("watch")
    plain, _ = carry_out(make_config(root), root / "plain")
    (root / "given").symlink_to(root / "plain" / "models" / "finetune-seed1" / "variables")
    report, text = carry_out(make_config(root, every=2, images=500), root / "run")
    return root, plain, report, text


def test_a_watched_experiment_is_the_plain_one_with_curves(finished):
    root, plain, report, text = finished
    written = json.loads((root / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert "seed 0 · original: in the store" in text  # references are not watched
    assert "seed 0 · finetune: in the store" not in text
    assert not (root / "plain" / "watch.png").exists()
    assert (root / "run" / "watch.png").read_bytes().startswith(b"\x89PNG")
    for name in plain["models"]:
        for seed in (0, 1):
            folders = [root / run / "models" / f"{name}-seed{seed}" for run in ("plain", "run")]
            if name not in ("original", "retrained"):
                trees = [load_tree(folder / "variables") for folder in folders]
                assert toy.same_bits(*trees)
            before = plain["models"][name]["per_seed"][seed]
            values = dict(report["models"][name]["per_seed"][seed])
            looks = values.pop("watch")["looks"]
            own = {"RTE", "compile_seconds", "key", "made_on"}
            assert {key: values[key] for key in before if key not in own} == {
                key: before[key] for key in before if key not in own
            }
            # All images of a set are looked at here, so that a look is the metric.
            assert looks[-1]["UA"] == pytest.approx(values["UA"])
            assert looks[-1]["RA"] == pytest.approx(values["RA"])
            val = read_npz(root / "run" / "predictions" / f"{name}-seed{seed}.npz")
            right = val["val_logits"].argmax(1) == val["val_labels"]
            assert looks[-1]["VA"] == pytest.approx(100 * right.mean())
    numbers = {
        name: [look["passes"] for look in model["per_seed"][0]["watch"]["looks"]]
        for name, model in report["models"].items()
    }
    single = {"original": [0], "retrained": [0], "theirs": [0]}
    assert numbers == {**single, "finetune": [0, 2, 4], "ssd": [0, 0]}
    first = report["models"]["original"]["per_seed"][0]["watch"]["looks"][0]
    start = report["models"]["finetune"]["per_seed"][0]["watch"]["looks"][0]
    assert start["confidence"] == pytest.approx(first["confidence"], rel=1e-5)
    assert [start[key] for key in ("UA", "RA", "VA")] == [first[key] for key in ("UA", "RA", "VA")]
    assert "watch" not in report["models"]["finetune"]["mean"]


def test_the_same_command_finds_curves_in_the_store(finished):
    root, _, report, _ = finished
    again, text = carry_out(make_config(root, every=2, images=500), root / "again")
    assert text.count("in the store") == 10 and again["models"] == report["models"]


def test_a_killed_run_goes_on_with_its_curve(finished, monkeypatch):
    root, _, report, _ = finished
    config = make_config(root, every=2, images=500)
    config.store = str(root / "other")
    save = store.Checkpoints.save

    def killed(self, point):
        save(self, point)
        if point.answers and len(point.history) == 3:
            raise Stopped("killed")

    monkeypatch.setattr(store.Checkpoints, "save", killed)
    with pytest.raises(Stopped):
        carry_out(config, root / "killed")
    monkeypatch.undo()
    resumed, text = carry_out(config, root / "killed")
    assert "resumed after epoch 3" in text
    for name, model in report["models"].items():
        for one, other in zip(model["per_seed"], resumed["models"][name]["per_seed"], strict=True):
            assert one["watch"] == other["watch"]


def test_a_stopped_method_is_told_of_and_marked(finished, monkeypatch):
    root, _, report, _ = finished
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)),
    )
    config = make_config(root, every=1, images=500, stop=True, tolerance=0.0)
    config.methods = config_lib.methods(
        gradient_ascent={"epochs": 6, "batch_size": 16, "lr": 0.5}, finetune=FAST
    )
    config.seeds = (0,)
    found, text = carry_out(config, root / "stopped")
    values = found["models"]["gradient_ascent"]["per_seed"][0]
    looks, result = values["watch"]["looks"], values["watch"]["result"]
    assert result < len(looks) - 1 and looks[-1]["VA"] < looks[0]["VA"] <= looks[result]["VA"]
    assert values["UA"] == pytest.approx(looks[result]["UA"])
    (note,) = [note for note in found["notes"] if "gradient_ascent (seed 0) was stopped" in note]
    assert f"after pass {len(looks) - 1}" in note and note in " ".join(text.split())
    assert values["key"] not in json.dumps(report)
    (figure,) = [figure for figure in drawn if figure.axes[0].get_title().startswith("UA: ")]
    for axis, key in zip(figure.axes, ("UA", "RA", "VA"), strict=False):
        lines = {line.get_label(): line for line in axis.lines}
        line = lines["gradient_ascent"]
        assert line.get_ydata().tolist() == [look[key] for look in looks]
        assert line.get_xdata().tolist() == list(range(len(looks)))
        reference = found["models"]["retrained"]["per_seed"][0]["watch"]["looks"][0][key]
        assert lines["retrained"].get_ydata()[0] == reference
        circles = [each for each in axis.lines if each.get_fillstyle() == "none"]
        assert (result, looks[result][key]) in [(*c.get_xdata(), *c.get_ydata()) for c in circles]


def test_without_validation_images_nothing_can_be_stopped(tmp_path):
    """Of the second class, which is forgotten whole, and no others."""
    config = make_config(tmp_path, every=1, stop=True)
    config.methods = config_lib.methods(finetune=FAST)
    data = read_npz(tmp_path / "data.npz")
    data["val_labels"][:] = 1
    np.savez(tmp_path / "data.npz", **data)
    config.forget.kind, config.forget.classes = "class", (1,)
    with pytest.raises(UserError, match=r"watch\.stop=True on data: validation has no image of a"):
        plan.make(config, 1)
    config.watch.stop = False
    plan.make(config, 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"every": -1}, r"config\.watch\.every must be a whole number, 0 or more, got -1"),
        ({"images": 0}, r"config\.watch\.images must be a whole number, 1 or more, got 0"),
        ({"tolerance": -1.0}, r"config\.watch\.tolerance must be 0 to 100, got -1\.0"),
        (
            {"stop": True},
            r"watch\.stop is True, which nothing reads here; set config\.watch\.e",
        ),
        ({"images": 9}, r"watch\.images is 9, which nothing reads here; set config\.watch\.every"),
        (
            {"every": 1, "tolerance": 3.0},
            r"watch\.tolerance is 3\.0, which nothing reads here; set .* config\.watch\.stop=True",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        plan.make(make_config(tmp_path, **changes), 1)
    assert "\n" not in str(caught.value)


def test_curves_come_with_a_request_at_hand():
    data = {}
    for seed, (which, count) in enumerate((("train", 40), ("val", 20), ("test", 24))):
        data[f"{which}_images"], data[f"{which}_labels"] = toy.images_and_labels(count, seed=seed)
    result = unlearn(
        toy.tiny_model(),
        toy.tiny_initial(),
        data,
        0.2,
        "finetune",
        epochs=2,
        batch_size=16,
        watch={"every": 1},
        console=Console(file=io.StringIO()),
    )
    assert [look["passes"] for look in result.metrics["watch"]["looks"]] == [0, 1, 2]
    assert figures.is_watched(result.results)
    with pytest.raises(UserError, match="unknown field of watch 'evry'"):
        unlearn(None, None, data, 0.2, watch={"evry": 1})


def test_a_question_off_the_clock_hears_what_it_asked():
    task, heard = toy.linear_task(), []

    def method():
        heard.append((yield Watch(lambda variables: {"any": [1, "json"]})))

    run(method(), task)
    assert heard == [{"any": [1, "json"]}]
