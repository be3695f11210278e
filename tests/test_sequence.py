"""Sequential requests: each unlearned from what the one before left, and what that costs."""

import io
import itertools
import json

import jax
import numpy as np
import pytest
import toy
from rich.console import Console
from test_rehearsal import printed

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, plan, trained
from jaxunlearn.data import forget
from jaxunlearn.data.load import load
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import Predictions, drift, results, verdicts
from jaxunlearn.report import figures, sheets, terminal
from jaxunlearn.store import load_tree, read_npz
from launch import jobs

FAST = {"epochs": 1, "batch_size": 16}
# Of the second nothing is left to forget; of the third, one patient.
REQUESTS = ({"groups": (2, 5)}, {"groups": (5,)}, {"groups": (5, 7)}, {"groups": (11,)})


def make_config(path, requests=REQUESTS):
    config = toy.experiment_config(path, finetune=FAST, salun=FAST)
    config.forget.kind = "groups"
    config.requests = requests
    return config


def run(config, workdir):
    console = Console(width=150, record=True, file=io.StringIO())
    return experiment.run(config, workdir, console), console.export_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("sequence")
    report, text = run(make_config(toy.write_npz(root / "data.npz")), root / "run")
    return root, report, text


def variables(folder, name):
    return load_tree(folder / "models" / f"{name}-seed0" / "variables")


def test_two_requests_in_one_run_are_two_runs_by_hand(finished, tmp_path):
    """The second on data without the first's patients, from the first's result, to the bit."""
    root, _, _ = finished
    data = read_npz(root / "data.npz")
    left = ~np.isin(data["train_groups"], (2, 5))
    without = {
        name: array[left] if name.startswith("train_") else array for name, array in data.items()
    }
    np.savez(tmp_path / "left.npz", **without)
    for name in ("finetune", "salun"):
        first = make_config(str(root / "data.npz"), ())
        first.forget.groups = (2, 5)
        first.methods = config_lib.methods(**{name: FAST})
        run(first, tmp_path / name / "first")
        assert toy.same_bits(
            variables(tmp_path / name / "first", name), variables(root / "run/requests/1", name)
        )
        second = make_config(str(tmp_path / "left.npz"), ())
        second.forget.groups = (7,)
        second.methods = first.methods
        second.original.path = str(
            tmp_path / name / "first" / "models" / f"{name}-seed0" / "variables"
        )
        run(second, tmp_path / name / "second")
        by_hand = variables(tmp_path / name / "second", name)
        assert toy.same_bits(by_hand, variables(root / "run/requests/3", name))
        assert not toy.same_bits(by_hand, variables(root / "run/requests/1", name))


def test_recipes_chain_and_each_retrained_is_without_everything_forgotten(finished):
    root, _, _ = finished
    config = make_config(str(root / "data.npz"))
    first, third, fourth = plan.make(config, 1)
    assert [one.request for one in (first, third, fourth)] == [1, 3, 4]
    recipes = [one.recipes(0) for one in (first, third, fourth)]
    for name in ("finetune", "salun"):
        assert recipes[0][name].parent.key == recipes[0]["original"].key
        for before, after in itertools.pairwise(recipes):
            assert after[name].parent.key == before[name].key
    groups = first.dataset.train.groups
    for one, asked, gone in (
        (first, (2, 5), (2, 5)),
        (third, (7,), (2, 5, 7)),
        (fourth, (11,), (2, 5, 7, 11)),
    ):
        assert set(groups[one.asked.forget]) == set(asked)
        assert set(groups[one.split.forget]) == set(gone)
        assert not np.isin(groups[one.asked.retain], gone).any()
        assert len(one.split.forget) + len(one.asked.retain) == 48
        config = make_config(str(root / "data.npz"), ())
        config.forget.groups = gone
        at_once = plan.make(config, 1)[0].recipes(0)["retrained"]
        assert one.recipes(0)["retrained"].key == at_once.key


def test_who_is_forgotten_already_is_told_so_and_costs_nothing(finished):
    root, report, text = finished
    said = [
        "Request 2: all 2 images asked for are forgotten already: nothing to do.",
        "Request 3: 2 of the 4 images asked for are forgotten already.",
    ]
    assert report["notes"] == said and all(f"Note: {note}" in text for note in said)
    assert [(step["number"], step["new"]) for step in report["requests"]] == [
        *((1, 4), (3, 2), (4, 2)),
    ]
    assert [step["split"]["forget"] for step in report["requests"]] == [4, 6, 8]
    assert [step["split"]["asked"] for step in report["requests"]] == [4, 2, 2]
    first, third = (report["requests"][i]["models"]["salun"]["per_seed"][0] for i in (0, 1))
    assert third["parent"] == first["key"]
    summary = (root / "run" / "requests" / "3" / "summary.md").read_text()
    assert "2 of 48 training images" in summary and "earlier requests took 4 more" in summary
    assert f"from `{first['key']}`" in summary
    assert sorted(path.name for path in (root / "run" / "requests").iterdir()) == ["1", "3", "4"]
    # an original; a retrained, fine-tuning and SalUn for each of three requests
    assert len(list((root / "store").glob("*/meta.json"))) == 1 + 3 * 3
    assert text.count("100%") == 10


def test_a_killed_run_goes_on_and_makes_no_model_twice(finished, tmp_path, monkeypatch):
    root, report, _ = finished
    made, make, names = [], trained.Trainer._make, []

    def limited(self, recipe, alive):
        if len(made) == 6:
            raise KeyboardInterrupt
        made.append(recipe.key)
        names.append(recipe.name)
        return make(self, recipe, alive)

    monkeypatch.setattr(trained.Trainer, "_make", limited)
    config = make_config(str(root / "data.npz"))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert names[-2:] == ["retrained", "finetune"]  # in the middle of the second
    monkeypatch.setattr(
        trained.Trainer, "_make", lambda *args: made.append(args[1].key) or make(*args)
    )
    again, _ = run(config, tmp_path / "run")
    assert len(made) == len(set(made)) == 10
    run(config, tmp_path / "run")
    assert len(made) == 10
    for one, other in zip(report["requests"], again["requests"], strict=True):
        for name, model in one["models"].items():
            values, others = (each["per_seed"][0] for each in (model, other["models"][name]))
            for key in values.keys() - {"RTE", "compile_seconds"}:
                assert values[key] == others[key]
    assert again["verdicts"] == report["verdicts"]


def test_drift_is_what_numpy_says_of_predictions_and_parameters(finished):
    root, report, _ = finished
    for step in report["requests"]:
        folder = root / "run" / step["folder"]
        before = read_npz(folder / "predictions" / "original-seed0.npz")
        first = load_tree(root / "store" / key_of(root, "original") / "variables")["params"]
        for name in ("retrained", "finetune", "salun"):
            after = read_npz(folder / "predictions" / f"{name}-seed0.npz")
            model = step["models"][name]
            labels = before["test_labels"]
            was, now = (p["test_logits"].argmax(1) for p in (before, after))
            lost = 100 * ((was == labels).mean() - (now == labels).mean())
            assert model["mean"]["TA_lost"] == pytest.approx(lost, abs=1e-9)
            sick = labels == 1
            rise = 100 * ((now[sick] == 0).mean() - (was[sick] == 0).mean())
            assert model["mean"]["fnr_rise"] == pytest.approx(rise, abs=1e-9)
            values = step["models"]["original"]["mean"]["risk"], model["mean"]["risk"]
            for scenario, risk in values[0].items():
                change = 100 * (values[1][scenario] / risk - 1)
                assert model["mean"]["risk_rise"][scenario] == pytest.approx(change, abs=1e-9)
            if name == "retrained":
                continue
            params = variables(folder, name)["params"]
            new, old = (
                np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)
                for tree in (params, first)
            )
            distance = 100 * np.linalg.norm(new - old) / np.linalg.norm(old)
            assert 0 < model["mean"]["moved"] == pytest.approx(distance)
        assert "TA_lost" not in step["models"]["original"]["mean"]


def key_of(root, name):
    (one, *_) = plan.make(make_config(str(root / "data.npz")), 1)
    return one.recipes(0)[name].key


def test_the_requests_own_images_are_judged_too(finished):
    root, report, _ = finished
    step = report["requests"][1]
    folder = root / "run" / step["folder"]
    groups = read_npz(root / "data.npz")["train_groups"]
    split = read_npz(folder / "split.npz")
    own = groups[split["forget"]] == 7
    for name in step["models"]:
        p = read_npz(folder / "predictions" / f"{name}-seed0.npz")
        wrong = p["forget_logits"].argmax(1) != p["forget_labels"]
        assert step["models"][name]["mean"]["UA_new"] == pytest.approx(100 * wrong[own].mean())
        assert step["models"][name]["mean"]["UA"] == pytest.approx(100 * wrong.mean())


def sharp(answers, classes=2):
    """Logits that answer so."""
    return np.eye(classes, dtype=np.float32)[np.asarray(answers)]


def test_drift_and_its_intervals_by_hand():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.int32)
    original = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1])
    now = np.array([1, 0, 0, 0, 0, 0, 1, 0, 0, 1])
    values, intervals = drift.drift(
        Predictions(sharp(now), labels),
        Predictions(sharp(original), labels),
        malignant=(1,),
        scenarios=((1.0, 1.0), (20.0, 1.0)),
        malignant_rule="argmax",
    )
    # lost: images 1, 2 and 6; found: image 8
    assert values["TA_lost"] == pytest.approx(20.0)
    d = np.array([0, 1, 1, 0, 0, 0, 1, 0, -1, 0])
    half = 2.2621571628 * d.std(ddof=1) / np.sqrt(10)  # t of 9 degrees of freedom at 97.5%
    assert intervals["TA_lost"] == pytest.approx([20 - 100 * half, 20 + 100 * half])
    # misses 3 of 4 where the original missed 1
    assert values["fnr_rise"] == pytest.approx(50.0)
    half = 3.1824463053 * np.array([0, 1, 1, 0]).std(ddof=1) / 2
    assert intervals["fnr_rise"] == pytest.approx([50 - 100 * half, 50 + 100 * half])
    # costs 3 + 2 against 1 + 2; at 20:1 62 against 22
    assert values["risk_rise"]["1:1"] == pytest.approx(100 * (5 / 3 - 1))
    assert values["risk_rise"]["20:1"] == pytest.approx(100 * (62 / 22 - 1))
    was = np.array([0, 0, 0, 20, 0, 0, 0, 0, 1, 1])
    cost = np.array([0, 20, 20, 20, 0, 0, 1, 0, 0, 1])
    spread = (cost - was) / was.mean()
    half = 2.2621571628 * spread.std(ddof=1) / np.sqrt(10)
    low, high = intervals["risk_rise"]["20:1"]
    assert (high - low) / 2 == pytest.approx(100 * half)
    # Images of one patient are one: here pairs that are alike, so half as many of each.
    twice = np.repeat(np.arange(10), 2)
    paired, grouped = drift.drift(
        Predictions(sharp(now[twice]), labels[twice], twice),
        Predictions(sharp(original[twice]), labels[twice], twice),
        malignant=(1,),
        scenarios=((20.0, 1.0),),
        malignant_rule="argmax",
    )
    assert paired["fnr_rise"] == pytest.approx(50.0)
    assert grouped["fnr_rise"] == pytest.approx(intervals["fnr_rise"])
    assert grouped["risk_rise"]["20:1"] == pytest.approx(intervals["risk_rise"]["20:1"])
    plain, _ = drift.drift(
        Predictions(sharp(now), labels),
        Predictions(sharp(original), labels),
        malignant=(),
        scenarios=((1.0, 1.0),),
        malignant_rule="argmax",
    )
    assert list(plain) == ["TA_lost"]


def test_what_is_undefined_is_none():
    labels = np.zeros(3, np.int32)
    values, intervals = drift.drift(
        Predictions(sharp([0, 0, 1]), labels),
        Predictions(sharp([0, 0, 0]), labels),
        malignant=(1,),
        scenarios=((1.0, 1.0),),
        malignant_rule="argmax",
    )
    assert values["fnr_rise"] is None and intervals["fnr_rise"] is None
    assert values["risk_rise"] == {"1:1": None} and intervals["risk_rise"] == {"1:1": None}
    assert drift.moved([np.ones(2)], [np.zeros(2)]) is None


def test_moved_is_the_relative_distance():
    old = [np.array([3.0, 0.0]), np.array([[4.0]])]
    new = [np.array([3.0, 1.0]), np.array([[4.0]])]
    assert drift.moved(new, old) == pytest.approx(20.0)  # 1 of 5
    assert drift.moved(old, old) == 0.0


def loss(request, because, by, interval, budget, over="test images", **too_few):
    exact = because == "moved"
    return verdicts.Loss(request, because, by, interval, budget, 0.5, too_few, over, exact)


def test_the_verdict_is_the_first_sure_loss_above_its_budget():
    losses = [
        loss(1, "TA_lost", 0.9, (0.5, 1.3), 1.0),  # within
        loss(1, "fnr_rise", None, None, 2.0),  # not known
        loss(2, "TA_lost", 1.4, (-0.1, 2.9), 1.0),  # above, but may be chance
        loss(2, "fnr_rise", 9.0, (3.0, 15.0), 2.0, malignant=5),  # above, of too few
        loss(3, "TA_lost", 2.4, (1.1, 3.7), 1.0),
        loss(3, "risk_rise 20:1", 60.0, (20.0, 100.0), 10.0),
        loss(4, "TA_lost", 9.0, (7.0, 11.0), 1.0),
    ]
    assert verdicts.budget(losses) == {
        "verdict": "retrain",
        "request": 3,
        "because": "TA_lost",
        "by": 2.4,
        "interval": (1.1, 3.7),
        "budget": 1.0,
        "retrained": 0.5,
        "over": "test images",
        "too_few": {},
        "unknown": ["fnr_rise"],
    }
    unclear = verdicts.budget([each._replace(over="seeds") for each in losses[:4]])
    assert (unclear["verdict"], unclear["request"], unclear["over"]) == ("unclear", 2, "seeds")
    of_few = verdicts.budget([losses[0], losses[3]])
    assert (of_few["verdict"], of_few["too_few"]) == ("unclear", {"malignant": 5})
    assert verdicts.budget(losses[1:2]) == {
        "verdict": "keep",
        **dict.fromkeys(("request", "because", "by", "interval", "budget", "retrained")),
        "over": "test images",
        "too_few": {},
        "unknown": ["fnr_rise"],
    }
    # What may be largest, in shares of its budget, is told with how large that is.
    of_few = loss(2, "fnr_rise", 0.0, (-248.0, 248.0), 2.0, malignant=3)
    keep = verdicts.budget([*losses[:2], of_few, loss(3, "TA_lost", 0.95, (0.9, 1.0), 1.0)])
    assert (keep["verdict"], keep["request"], keep["because"]) == ("keep", 2, "fnr_rise")
    assert (keep["interval"], keep["too_few"]) == ((-248.0, 248.0), {"malignant": 3})
    assert keep["unknown"] == ["fnr_rise"]
    # A collapse loses every image: its interval has no width, and it is sure.
    assert verdicts.budget([loss(1, "fnr_rise", 100.0, (100, 100), 2.0)])["verdict"] == "retrain"
    # Images of one patient have no interval, and are no distance.
    patient = verdicts.budget([loss(1, "fnr_rise", 10.0, None, 2.0)])
    assert (patient["verdict"], patient["unknown"]) == ("unclear", [])
    exact = verdicts.budget([loss(2, "moved", 12.0, None, 10.0)])  # a distance has no interval
    assert (exact["verdict"], exact["request"], exact["because"]) == ("retrain", 2, "moved")
    assert verdicts.budget([loss(1, "TA_lost", 1.0, (0.5, 1.5), 1.0)])["verdict"] == "keep"


def changed(report, request, mean, interval):
    """The report with other losses of SalUn at one request, of test sets that are large enough."""
    made = json.loads(json.dumps(report))
    for step in made["requests"]:
        for model in step["models"].values():
            for values in model["per_seed"]:
                values["n"]["test"] = 600
                values["groups"] = {"test": 300, "malignant": 40}
                values["counts"] = {"tp": 90, "fn": 10, "fp": 50, "tn": 450}
        if step["number"] == request:
            step["models"]["salun"]["mean"].update(mean)
            step["models"]["salun"]["interval"].update(interval)
    asked = [
        results.Asked(step["number"], step["new"], step["folder"]) for step in made["requests"]
    ]
    return made["requests"], asked


def test_budgets_are_held_against_the_losses_of_the_steps(finished):
    _, report, _ = finished
    assert report["budget"] == {"TA_lost": 1.0, "fnr_rise": 2.0, "risk_rise": 10.0, "moved": 0.0}
    steps, asked = changed(
        report,
        3,
        {"fnr_rise": 4.0, "risk_rise": {"1:1": 1.0, "20:1": 30.0}},
        {"fnr_rise": [-1.0, 9.0], "risk_rise": {"1:1": None, "20:1": [12.0, 48.0]}},
    )
    made = results.chain("made", report["budget"], asked, steps)
    found = made["verdicts"]["salun"]
    assert (found["verdict"], found["request"]) == ("retrain", 3)
    assert (found["because"], found["by"]) == ("risk_rise 20:1", 30.0)
    assert found["interval"] == [12.0, 48.0] and found["budget"] == 10.0
    of_retrained = steps[1]["models"]["retrained"]["mean"]["risk_rise"]["20:1"]
    assert found["retrained"] == of_retrained
    (sheet,) = sheets.make_sheets(made)
    assert (
        "salun: retrain at request 3: Risk rise 20:1 is 30.0 % (95% interval over test images "
        f"+12.0 to +48.0), above the budget of 10; retrained's is {of_retrained:.1f}."
        in sheet.findings
    )
    # Without that budget only what may be chance is left; without any, nothing.
    loose = results.chain("made", {**report["budget"], "risk_rise": 0.0}, asked, steps)
    assert loose["verdicts"]["salun"]["verdict"] == "unclear"
    none = results.chain("made", dict.fromkeys(report["budget"], 0.0), asked, steps)
    assert none["verdicts"]["salun"]["verdict"] == "keep"
    tight = results.chain("made", {**report["budget"], "moved": 1e-6}, asked, steps)
    assert tight["verdicts"]["salun"]["request"] == 1
    assert tight["verdicts"]["finetune"]["because"] == "moved"


def test_keep_says_how_large_a_loss_may_be(finished):
    _, report, _ = finished
    allowed = {**dict.fromkeys(report["budget"], 0.0), "fnr_rise": 2.0}
    steps, asked = changed(report, 3, {"fnr_rise": 0.5}, {"fnr_rise": [-247.0, 248.0]})
    for step in steps:
        if step["number"] != 3:
            step["models"]["salun"]["mean"]["fnr_rise"] = 0.0
            step["models"]["salun"]["interval"]["fnr_rise"] = [0.0, 0.0]
    steps[-1]["models"]["retrained"]["mean"]["fnr_rise"] = 80.0
    (sheet,) = sheets.make_sheets(results.chain("made", allowed, asked, steps))
    assert (
        "salun: keep: no loss is above its budget at any request. It may be largest for FNR rise "
        "at request 3: 0.50 percentage points (95% interval over test images -247.00 to +248.00), "
        "budget 2; retrained's is 80.00." in sheet.findings
    )


def test_bars_of_a_sequence_are_the_intervals(finished, monkeypatch, tmp_path):
    import matplotlib.axes

    _, report, _ = finished
    made, drawn = json.loads(json.dumps(report)), []
    for step in made["requests"]:
        step["models"]["salun"]["mean"]["UA"] = 37.5
        step["models"]["salun"]["interval"]["UA"] = [24.2, 103.0]  # of t, beyond what there is
    errorbar = matplotlib.axes.Axes.errorbar

    def spy(axis, x, y, bars, **look):
        drawn.append((axis.get_title(), look["label"], np.array(y), np.array(bars)))
        return errorbar(axis, x, y, bars, **look)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", spy)
    figures.draw(made, str(tmp_path / "figure.png"))
    of_ua = [bars for _, label, y, bars in drawn if label == "salun" and np.allclose(y, 37.5)]
    assert len(of_ua) == 1
    np.testing.assert_allclose(of_ua[0], [[13.3] * 3, [62.5] * 3])


def test_few_images_decide_nothing(finished):
    _, report, _ = finished
    steps, asked = changed(report, 4, {"fnr_rise": 40.0}, {"fnr_rise": [10.0, 70.0]})
    for step in steps:
        step["models"]["salun"]["per_seed"][0]["counts"] = {"tp": 3, "fn": 2, "fp": 9, "tn": 9}
    found = results.chain("made", report["budget"], asked, steps)["verdicts"]["salun"]
    assert (found["verdict"], found["because"]) == ("unclear", "fnr_rise")
    assert found["too_few"] == {"malignant": 5}


def test_seeds_that_lose_the_same_are_judged_over_test_images(finished):
    """As three trainings that all end as one constant answer."""
    _, report, _ = finished
    steps, asked = changed(report, 3, {"TA_lost": 40.0}, {"TA_lost": [40.0, 40.0]})
    for step in steps:
        model = step["models"]["salun"]
        (one,) = model["per_seed"]
        model["per_seed"] = [json.loads(json.dumps(one)) for _ in range(3)]
        for values, low in zip(model["per_seed"], (33.0, 31.0, 35.0), strict=True):
            values["intervals"]["TA_lost"] = [low, 80.0 - low]
    found = results.chain("made", report["budget"], asked, steps)["verdicts"]["salun"]
    assert (found["verdict"], found["because"], found["over"]) == (
        "retrain",
        "TA_lost",
        "test images",
    )
    assert found["interval"] == [31.0, 49.0] and found["too_few"] == {}


def test_few_patients_decide_nothing_however_many_images_they_have(finished):
    _, report, _ = finished
    steps, asked = changed(report, 3, {"fnr_rise": 40.0}, {"fnr_rise": [10.0, 70.0]})
    assert results.chain("m", report["budget"], asked, steps)["verdicts"]["salun"]["verdict"] == (
        "retrain"
    )
    for step in steps:
        step["models"]["salun"]["per_seed"][0]["groups"] = {"test": 300, "malignant": 5}
    found = results.chain("m", report["budget"], asked, steps)
    assert found["verdicts"]["salun"]["too_few"] == {"malignant groups": 5}
    (sheet,) = sheets.make_sheets(found)
    assert any("(5 groups of malignant test images)" in finding for finding in sheet.findings)


def test_several_seeds_give_intervals_over_seeds(tmp_path):
    config = make_config(toy.write_npz(tmp_path / "data.npz"), REQUESTS[:1])
    config.seeds = (0, 1, 2)
    config.methods = config_lib.methods(finetune={"epochs": 2, "batch_size": 16, "lr": 0.3})
    report, _ = run(config, tmp_path / "run")
    model = report["requests"][0]["models"]["finetune"]
    lost = [values["TA_lost"] for values in model["per_seed"]]
    assert model["mean"]["TA_lost"] == pytest.approx(np.mean(lost))
    half = 4.3026527299 * np.std(lost, ddof=1) / np.sqrt(3)
    low, high = model["interval"]["TA_lost"]
    assert (high - low) / 2 == pytest.approx(half)
    assert report["verdicts"]["finetune"]["over"] == "seeds"


def test_the_folder_holds_a_table_a_figure_and_every_step(finished, tmp_path):
    root, report, text = finished
    written = results.load(root / "run")
    assert written == json.loads(json.dumps(report))
    table = (root / "run" / "table.md").read_text()
    assert terminal.markdown_table(written) == table
    for row in ("1 · original", "3 · salun", "4 · retrained"):
        assert f"| {row} |" in table and row in text
    for word in ("TA lost", "FNR rise", "Risk rise 20:1", "Moved", "UA new", "Budget:"):
        assert word in table
    figures.draw(written, str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes() == (root / "run" / "figure.png").read_bytes()
    for step in report["requests"]:
        alone = json.loads((root / "run" / step["folder"] / "metrics.json").read_text())
        assert alone["models"] == json.loads(json.dumps(step["models"]))


def test_another_sequence_needs_another_folder(finished):
    root, _, _ = finished
    with pytest.raises(UserError, match=r"another config \(requests differ\)"):
        run(make_config(str(root / "data.npz"), REQUESTS[:3]), root / "run")


@pytest.mark.parametrize(
    "requests, message",
    [
        (({"groups": (2,)}, {"groups": (999,)}), r"^request 2: forget\.groups must .*got 999,"),
        (({"groups": (2,)}, {"gruops": (3,)}), r"^unknown field of request 2 'gruops'.*'groups'"),
        (({"groups": (2,)}, {"groups": 3}), r"^request 2\.groups must be of type tuple, got 3"),
        (({"groups": (2,)}, {"fraction": 2.0}), r"^request 2: config\.forget\.fraction must be"),
        (
            ({"groups": (2,)}, {"groups": (7,), "classes": (1,)}),
            r"^request 2: config\.forget\.classes is .*nothing",
        ),
        (
            ({"kind": "class", "classes": (0,)}, {"kind": "class", "classes": (1,)}),
            r"^request 2: .*selects all 25 training examples that are left and leaves none",
        ),
        (({"groups": (2,)}, "groups=3"), r"^config\.requests must be up to 100 changes of config"),
    ],
)
def test_wrong_requests_are_one_line_before_anything_is_made(tmp_path, requests, message):
    config = make_config(toy.write_npz(tmp_path / "data.npz"), requests)
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


def test_what_does_not_go_with_a_sequence_is_told(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz")
    config = make_config(path)
    config.axes = (("augment", ("none", "crop_flip")),)
    with pytest.raises(UserError, match=r"axes and config\.requests exclude each other"):
        plan.make(config, 1)
    config = make_config(path)
    config.methods = {}
    with pytest.raises(UserError, match=r"one after another, and config\.methods is empty"):
        plan.make(config, 1)
    config = make_config(path)
    config.methods = config_lib.methods(theirs={"method": "brought", "path": "x.msgpack"})
    with pytest.raises(UserError, match=r"methods\.theirs is one model, which cannot answer"):
        plan.make(config, 1)
    config = make_config(path, ())
    config.forget.groups = (2,)
    config.budget.TA_lost = 3.0
    with pytest.raises(UserError, match=r"budget\.TA_lost is 3\.0, .*; set config\.requests"):
        plan.make(config, 1)
    config = make_config(path)
    config.budget.moved = -1.0
    with pytest.raises(UserError, match=r"config\.budget\.moved must be 0 or more, got -1\.0"):
        plan.make(config, 1)
    config = make_config(path)
    config.data.malignant = ()
    config.budget.fnr_rise = 5.0
    with pytest.raises(UserError, match=r"budget\.fnr_rise is 5\.0, .*set data\.malignant"):
        plan.make(config, 1)


def test_earlier_requests_are_in_neither_part_of_a_split(tmp_path):
    dataset = load(make_config(toy.write_npz(tmp_path / "data.npz")).data)
    config = config_lib.default().forget
    config.kind, config.groups = "groups", (5, 7)
    split, notes = forget.resolve(config, dataset, np.array([10, 11, 40]))
    assert split.forget.tolist() == [14, 15]
    assert sorted([*split.forget, *split.retain]) == [i for i in range(48) if i not in (10, 11, 40)]
    assert notes == ["2 of the 4 images asked for are forgotten already."]
    split, notes = forget.resolve(config, dataset, np.array([10, 11, 14, 15]))
    assert len(split.forget) == 0 and len(split.retain) == 44
    assert notes == ["all 4 images asked for are forgotten already: nothing to do."]
    # A class that went whole with an earlier request is not taken by a later one.
    gone = np.flatnonzero(dataset.train.labels == 0)
    split, _ = forget.resolve(config, dataset, gone)
    assert (dataset.train.labels[split.retain] == 1).all()


def test_a_rehearsal_shows_every_request(tmp_path):
    config = make_config(toy.write_npz(tmp_path / "data.npz"))
    before = sorted(tmp_path.rglob("*"))
    text = printed(config, tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    for line in (
        "data: 4 of 48 training images to forget",
        "Request 2: all 2 images asked for are forgotten already",
        "data: 2 of 44 training images to forget",
        "data: 2 of 42 training images to forget",
    ):
        assert line in text
    rows = [line.split()[1:4] for line in text.splitlines() if " · " in line]
    assert rows[:4] == [["1", "·", name] for name in ("original", "retrained", "finetune", "salun")]
    assert len(rows) == 10


def test_jobs_of_a_sequence_wait_for_each_other(tmp_path):
    config = make_config(toy.write_npz(tmp_path / "data.npz"))
    made = jobs.make_jobs(config, tmp_path / "run", estimates=False)
    assert [(job.cell, job.after) for job in made] == [
        *(("request=1", None), ("request=1", 0), ("request=3", 1), ("request=4", 2)),
    ]
    for job in made:
        experiment.make_models(
            config, tmp_path / "run", job.cell, job.seed, job.models, Console(quiet=True)
        )
    _, text = run(config, tmp_path / "run")
    assert "100%" not in text
