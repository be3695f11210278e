import contextlib
import csv
import importlib
import io
import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.svm
import toy
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import devices, experiment, models, store, trained, training
from jaxunlearn.errors import UserError
from jaxunlearn.report import sheets

FAST = {"epochs": 2, "batch_size": 16}


def run(config, workdir):
    """Runs an experiment; returns its report and what it printed."""
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    return experiment.run(config, workdir, console), console.export_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All methods, two seeds, and a method under a second name."""
    root = tmp_path_factory.mktemp("experiment")
    config = toy.experiment_config(
        toy.write_npz(root / "data.npz"),
        finetune=FAST,
        random_label=FAST,
        salun=FAST,
        salun_flip={"method": "salun", "relabel": {"exclude_true": True}, **FAST},
        salun_cra=FAST,
        retrain=FAST,
    )
    config.seeds = (0, 1)
    report, text = run(config, root / "run")
    return config, root, report, text


def predictions(root, name, seed):
    return store.read_npz(root / "run" / "predictions" / f"{name}-seed{seed}.npz")


def test_metrics_json_holds_what_was_returned_and_fits_its_layout(finished):
    config, root, report, _ = finished
    written = json.loads((root / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert list(written["models"]) == ["original", "retrained", *config.methods]
    assert written["split"] == {**written["split"], "forget": 10, "retain": 38}
    assert written["seeds"] == [0, 1] and {"jax", "flax", "python"} <= set(written["versions"])
    for model in written["models"].values():
        assert [values["seed"] for values in model["per_seed"]] == [0, 1]
        for values in model["per_seed"]:
            assert {"UA", "RA", "TA", "MIA", "avg_gap", "RTE", "sensitivity", "fnr"} <= set(values)
            assert set(values["risk"]) == {"1:1", "20:1"}
        assert model["mean"]["TA"] == pytest.approx(
            np.mean([values["TA"] for values in model["per_seed"]])
        )
        low, high = model["interval"]["TA"]
        assert low <= model["mean"]["TA"] <= high


def test_every_number_can_be_had_again_from_the_predictions(finished):
    config, root, report, _ = finished
    for name in report["models"]:
        for seed in config.seeds:
            p = predictions(root, name, seed)
            values = report["models"][name]["per_seed"][seed]

            def accuracy(which, p=p):
                return 100 * (p[f"{which}_logits"].argmax(1) == p[f"{which}_labels"]).mean()

            assert values["UA"] == pytest.approx(100 - accuracy("forget"))
            assert values["RA"] == pytest.approx(accuracy("retain"))
            assert values["TA"] == pytest.approx(accuracy("test"))
            missed = ((p["test_logits"].argmax(1) == 0) & (p["test_labels"] == 1)).sum()
            assert values["fnr"] == pytest.approx(missed / (p["test_labels"] == 1).sum())
            assert {"forget_groups", "val_logits"} <= set(p)


def test_changed_answers_are_listed(finished):
    config, root, _, _ = finished
    found = 0
    for name in config.methods:
        for seed in config.seeds:
            before, after = (predictions(root, each, seed) for each in ("original", name))
            with open(root / "run" / "changed" / f"{name}-seed{seed}.csv", newline="") as file:
                rows = {int(row["index"]): row for row in csv.DictReader(file)}
            for i in range(24):
                first, second = (each["test_logits"][i].astype(float) for each in (before, after))
                assert (i in rows) == (first.argmax() != second.argmax())
                if i in rows:
                    row, found = rows[i], found + 1
                    assert int(row["group"]) == before["test_groups"][i]
                    assert row["label"] == str(before["test_labels"][i])
                    assert (row["before"], row["after"]) == (
                        str(first.argmax()),
                        str(second.argmax()),
                    )
                    for when, logits in (("before", first), ("after", second)):
                        p = np.exp(logits.max()) / np.exp(logits).sum()
                        assert float(row[f"probability_{when}"]) == pytest.approx(p, abs=1e-6)
    assert found


def test_the_summary_says_what_was_asked_of_which_model_and_what_is_not_known(finished):
    config, root, report, _ = finished
    text = (root / "run" / "summary.md").read_text()
    assert '10 of 48 training images of data, by the request kind="fraction"' in text
    for digest in (report["split"]["fingerprint"], report["dataset"]["fingerprint"]):
        assert digest in text
    keys = [values["key"] for model in report["models"].values() for values in model["per_seed"]]
    assert len(set(keys)) == 4 + 2 * len(config.methods) and all(key in text for key in keys)
    start = report["models"]["original"]["per_seed"][0]["key"]
    assert f"salun (seed 0): made by salun from `{start}` with" in text
    fresh = "trained from fresh parameters without these images with"
    assert f"Differences from retrained (seed 1): {fresh}" in text
    assert f"retrain (seed 1): {fresh}" in text
    assert "original (seed 1): trained from fresh parameters with" in text
    assert "misses" in text.split("## Checked")[1]
    unknown = text.split("## Not checked")[1]
    silent = "finetune, random_label, salun, salun_flip, salun_cra cannot claim one"
    assert f"influence is gone: {silent}" in unknown and "there is none here" not in unknown
    assert all(note in text for note in [*report["notes"], *sheets.cautions(report)])
    assert "Few images: " in text


def test_split_is_kept_and_predictions_are_of_it(finished):
    _, root, _, _ = finished
    split = store.read_npz(root / "run" / "split.npz")
    assert sorted([*split["forget"], *split["retain"]]) == list(range(48))
    data = store.read_npz(root / "data.npz")
    labels = data["train_labels"][:, 0]
    p = predictions(root, "original", 0)
    assert (p["forget_labels"] == labels[split["forget"]]).all()
    assert (p["retain_labels"] == labels[split["retain"]]).all()


def test_gaps_are_to_retrained(finished):
    _, _, report, _ = finished
    reference = report["models"]["retrained"]["per_seed"][1]
    values = report["models"]["salun"]["per_seed"][1]
    gaps = [abs(values[name] - reference[name]) for name in ("UA", "RA", "TA", "MIA")]
    assert values["avg_gap"] == pytest.approx(np.mean(gaps))
    assert reference["avg_gap"] == 0


def test_the_unlearned_parameters_are_there_and_give_the_predictions(finished):
    _, root, _, _ = finished
    data = store.read_npz(root / "data.npz")
    entry = root / "run" / "models" / "salun_cra-seed1"
    variables = store.load_tree(entry / "variables")
    setup = toy.setup(model=models.build("cnn", num_classes=2, width=8))
    images = data["test_images"][..., :1]
    bench = training.Bench(setup, images, toy.programs())
    logits = training.predict(variables, images, bench, 8)
    np.testing.assert_allclose(
        logits, predictions(root, "salun_cra", 1)["test_logits"], rtol=1e-4, atol=1e-5
    )
    assert store.read_meta(entry)["fields"]["method"]["method"] == "salun_cra"


def test_table_figure_and_sentences_are_made(finished):
    config, root, _, text = finished
    table = (root / "run" / "table.md").read_text()
    for name in config.methods:
        assert name in text and name in table
    assert "malignant" in text
    assert (root / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_trains_nothing_and_gives_the_same(finished, monkeypatch):
    config, root, report, _ = finished

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(trained, "run", never)
    again, _ = run(config, root / "run")
    assert json.dumps(again) == json.dumps(report)
    # Nor does another experiment that shares the models.
    fewer = config.copy_and_resolve_references()
    fewer.seeds = (1,)
    other, _ = run(fewer, root / "other")
    assert (
        other["models"]["salun"]["per_seed"][0]["TA"]
        == report["models"]["salun"]["per_seed"][1]["TA"]
    )


def test_same_seed_same_bits_in_any_order_of_the_methods(finished, tmp_path):
    config, root, _, _ = finished
    alone = config.copy_and_resolve_references()
    alone.methods = config_lib.methods(salun_cra={"method": "salun_cra", **FAST}, finetune=FAST)
    run(alone, tmp_path / "run")
    for name in ("original", "retrained", "salun_cra", "finetune"):
        for seed in (0, 1):
            here = store.read_npz(tmp_path / "run" / "predictions" / f"{name}-seed{seed}.npz")
            there = predictions(root, name, seed)
            assert all(here[k].tobytes() == there[k].tobytes() for k in there)


def test_a_damaged_model_is_set_aside_and_made_anew(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    config.seeds = (0,)
    config.methods = config_lib.methods(finetune=FAST)
    first, _ = run(config, tmp_path / "run")
    entries = [p for p in (tmp_path / "store").iterdir()]
    for entry in entries:
        file = max((f for f in entry.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        file.write_bytes(b"x" + file.read_bytes()[1:])
    second, text = run(config, tmp_path / "run")
    assert text.count("was damaged: set aside") == len(entries) == 3
    for name in first["models"]:
        assert first["models"][name]["mean"]["UA"] == second["models"][name]["mean"]["UA"]


def test_mia_by_svc_is_scikit_learns_on_the_same_confidences(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    config.eval.attack, config.eval.members = "svc", "first"
    config.store = str(finished[1] / "store")
    report, _ = run(config, tmp_path / "run")
    p = store.read_npz(tmp_path / "run" / "predictions" / "finetune-seed0.npz")

    def confidence(which):
        logits = p[f"{which}_logits"].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return probabilities[np.arange(len(logits)), p[f"{which}_labels"]]

    members, test = confidence("retain"), confidence("test")
    members = members[: len(test)]
    attack = sklearn.svm.SVC(C=3, kernel="rbf", gamma="auto")
    attack.fit(np.append(members, test)[:, None], np.repeat([1, 0], [len(members), len(test)]))
    expected = 100 * (attack.predict(confidence("forget")[:, None]) == 0).mean()
    assert report["models"]["finetune"]["per_seed"][0]["MIA"] == pytest.approx(expected)


def test_four_devices_give_the_same_report(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    config.seeds = (0,)
    config.methods = config_lib.methods(salun=FAST)
    config.devices = 4
    report, _ = run(config, tmp_path / "run")
    assert report["device"].startswith("4 ×")
    one = finished[2]["models"]["salun"]["per_seed"][0]
    four = report["models"]["salun"]["per_seed"][0]
    assert four["TA"] == pytest.approx(one["TA"], abs=10)  # one test image is 4.2


# What a user can get wrong.


@pytest.fixture
def config(tmp_path):
    return toy.experiment_config(toy.write_npz(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("train.lr", -1.0, r"config\.train\.lr must be more than 0, got -1\.0"),
        ("data.path", "/nowhere/x.npz", r"/nowhere/x\.npz"),
        (
            "data.mean",
            (0.5, 0.5, 0.5),
            r"config\.data\.mean must be 1 number for images with 1 channel, got",
        ),
        ("data.malignant", (5,), r"data\.malignant must be labels from 0 to 1 of data, got 5"),
        ("devices", 9, r"config\.devices must be 1 to 4 on .*, got 9"),
        ("forget.kind", "indices", r"needs forget\.path"),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_leaves_nothing(
    config, tmp_path, field, value, message
):
    *path, last = field.split(".")
    inner = config
    for part in path:
        inner = inner[part]
    inner[last] = value
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


def test_what_only_the_data_or_the_devices_can_tell_is_told_before_training(config, tmp_path):
    config.methods = config_lib.methods(salun_cra=FAST)
    config.data.malignant = ()
    with pytest.raises(UserError, match="cra on data: 0 of 2 classes are malignant"):
        run(config, tmp_path / "run")
    config.methods = config_lib.methods(finetune={"batch_size": 6})
    config.devices = 4
    with pytest.raises(
        UserError,
        match=r"methods\.finetune\.batch_size must be a multiple of 4 on 4 devices, got 6",
    ):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


def test_none_is_no_value(config, tmp_path):
    config.train.lr = None
    with pytest.raises(UserError, match=r"config\.train\.lr must be a number, got None"):
        run(config, tmp_path / "run")


def test_a_workdir_with_a_config_of_something_else(config, tmp_path):
    (tmp_path / "run").mkdir()
    for text in ("{", "[1]"):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json cannot be read as a run's config"):
            run(config, tmp_path / "run")


def test_a_run_of_another_config_is_left_alone(config, tmp_path):
    run(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    config.train.epochs = 5
    with pytest.raises(UserError, match=r"holds a run with another config \(train differ\)"):
        run(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"working directory .* cannot be written"):
        run(config, tmp_path / "file" / "run")


def test_training_that_diverges_says_where_and_keeps_the_last_good_parameters(config, tmp_path):
    config.train.lr = 1e9
    with pytest.raises(UserError, match=r"original, seed 0: .* became .* epoch \d+, step") as e:
        run(config, tmp_path / "run")
    saved = store.load_tree(tmp_path / "run" / "diverged" / "original-seed0" / "variables")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
    assert "diverged/original-seed0" in str(e.value)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_of_several_methods_one_that_diverges_is_left_out(config, tmp_path, monkeypatch):
    config.methods = config_lib.methods(
        finetune={"epochs": 1, "batch_size": 16, "lr": 1e9},
        ssd={"batch_size": 16},
    )
    report, _ = run(config, tmp_path / "run")
    assert set(report["models"]) == {"original", "retrained", "ssd"}
    start = "finetune is left out, as it diverged: finetune, seed 0: "
    assert [note for note in report["notes"] if note.startswith(start)], report["notes"]
    assert {path.name for path in (tmp_path / "run" / "changed").iterdir()} == {
        f"ssd-seed{seed}.csv" for seed in config.seeds
    }
    assert (tmp_path / "run" / "diverged" / f"finetune-seed{config.seeds[0]}").is_dir()
    with monkeypatch.context() as patched:  # known to diverge, it is not tried again
        patched.setattr(trained.Trainer, "_train", None)
        again, _ = run(config, tmp_path / "run")
    assert again == report
    del config.methods["ssd"]
    with pytest.raises(UserError, match=r"^finetune, seed 0: .* the last finite parameters"):
        run(config, tmp_path / "alone")


def test_a_method_whose_logits_are_not_finite_is_named_and_not_kept(config, tmp_path, monkeypatch):
    predict = trained.predict
    monkeypatch.setattr(trained, "predict", lambda *args: predict(*args) * np.inf)
    for _ in range(2):
        with pytest.raises(
            UserError, match="original, seed 0: its logits are not finite; try a lower"
        ):
            run(config, tmp_path / "run")
    assert not list((tmp_path / "store").glob("[!.]*/logits.npz"))


def test_without_retrained_gaps_are_absent_and_the_report_says_so(config, tmp_path, monkeypatch):
    config.retrained = False
    monkeypatch.setattr(devices, "in_full", lambda mesh: True)  # as on a GPU
    report, text = run(config, tmp_path / "run")
    hint = devices.IN_FULL.format("--config.model.dtype=bfloat16, or ")
    assert f"\n{hint}\n" in f"\n{text}"
    assert list(report["models"]) == ["original", "finetune"]
    assert "gaps" not in report["models"]["finetune"]["mean"]
    assert report["reference"] == "original"
    assert "no Avg Gap" in text and "| Avg Gap |" not in (tmp_path / "run" / "table.md").read_text()
    assert not list((tmp_path / "run" / "predictions").glob("retrained*"))


@pytest.fixture(scope="module")
def class_request(tmp_path_factory):
    """Class 2 of three forgotten whole, which is malignant as class 1 is."""
    root = tmp_path_factory.mktemp("class")
    config = toy.experiment_config(toy.write_npz(root / "data.npz", num_classes=3), salun=FAST)
    config.data.malignant = (1, 2)
    config.forget.kind, config.forget.classes = "class", (2,)
    report, text = run(config, root / "run")
    return root, report, " ".join(text.split())


def test_a_class_request_is_judged_on_the_classes_that_are_left(class_request):
    root, report, _ = class_request
    for name in ("original", "retrained", "salun"):
        p = predictions(root, name, 0)
        assert len(p["test_labels"]) == 24 and set(p["test_labels"]) == {0, 1, 2}  # complete
        assert set(p["forget_labels"]) == {2} and set(p["retain_labels"]) == {0, 1}
        labels, answers = p["test_labels"], p["test_logits"].argmax(1)
        left, sick = labels != 2, labels == 1
        values = report["models"][name]["per_seed"][0]
        assert values["TA"] == pytest.approx(100 * (answers == labels)[left].mean())
        assert values["TA_forgotten"] == pytest.approx(100 * (answers == 2)[~left].mean())
        assert values["n"]["test"] == left.sum() and values["n"]["test_forgotten"] == sum(~left)
        missed, false = (answers == 0) & sick, (answers != 0) & (labels == 0)
        assert values["fnr"] == pytest.approx(missed.sum() / sick.sum())
        assert values["fpr"] == pytest.approx(false.sum() / (labels == 0).sum())
        risk = (20 * missed.sum() + false.sum()) / left.sum()
        assert values["risk"]["20:1"] == pytest.approx(risk)
        assert values["MIA"] == pytest.approx(mia_by_hand(p, left))
    assert report["models"]["retrained"]["mean"]["TA_forgotten"] == 0  # it never saw the class
    change = [
        ((p["test_logits"].argmax(1) == 0) & (p["test_labels"] == 1)).sum()
        for p in (predictions(root, "salun", 0), predictions(root, "retrained", 0))
    ]
    found = report["models"]["salun"]["per_seed"][0]["false_negatives"]
    assert [found["missed"], found["missed_reference"]] == change
    assert found["n_malignant"] == (predictions(root, "salun", 0)["test_labels"] == 1).sum()


def mia_by_hand(p, left):
    """MIA of the best threshold on p_y, every one tried, either side of it."""

    def confidence(which):
        logits = p[f"{which}_logits"].astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return chances[np.arange(len(logits)), p[f"{which}_labels"]]

    known, unknown, targets = confidence("retain"), confidence("test")[left], confidence("forget")
    best = {}
    for sign in (1, -1):
        for cut in sorted([*sign * known, *sign * unknown, np.inf]):
            right = (sign * known >= cut).mean() + (sign * unknown < cut).mean()
            best.setdefault(round(right, 9), (sign, cut))
    sign, cut = best[max(best)]
    # Cuts lie midway between values: no target may lie between those that the best is between.
    below = max([-np.inf, *(x for x in sign * np.append(known, unknown) if x < cut)])
    return 100 * np.mean(sign * targets < (cut if np.isinf(below + cut) else (below + cut) / 2))


def test_a_class_request_is_told_in_the_report(class_request):
    root, report, text = class_request
    assert report["split"]["forgotten_classes"] == ["2"]
    left = report["models"]["salun"]["mean"]["n"]["test"]
    for shown in (text, (root / "run" / "table.md").read_text()):
        assert "Forgotten whole: 2. TA, MIA (its non-members) and the clinical values" in shown
        assert f"are over the {left:.0f} of 24 test images of other classes" in shown
        assert "neither missed nor found: images of 2 enter no clinical value" in shown


@pytest.mark.parametrize("taken, undefined", [(1, "fnr"), (0, "fpr")])
def test_forgetting_all_malignant_or_all_benign_images_breaks_nothing(
    config, tmp_path, taken, undefined
):
    config.forget.kind, config.forget.classes = "class", (taken,)
    config.seeds = (0, 1)
    _, text = run(config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    model = written["models"]["finetune"]
    assert model["mean"][undefined] is model["interval"][undefined] is None
    assert model["per_seed"][0]["threshold"] == {"1:1": None, "20:1": None}
    verdict = model["verdicts"]["false_negatives"]["verdict"]
    assert (verdict == "unknown") == (taken == 1)
    assert "image is left to judge on" in " ".join(text.split())
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_test_set_of_nothing_but_forgotten_classes_is_told_before_training(config, tmp_path):
    data = dict(np.load(config.data.path))
    data["test_labels"][:] = 1
    np.savez(config.data.path, **data)
    config.forget.kind, config.forget.classes = "class", (1,)
    with pytest.raises(
        UserError, match="takes all of 1, and each of the 24 test images of data is"
    ) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_set_of_a_few_images_settles_nothing(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz", counts=(4, 20, 60), groups=False)
    config = toy.experiment_config(path, finetune=FAST)
    config.seeds, config.forget.fraction = (0, 1), 0.5
    report, text = run(config, tmp_path / "run")
    verdict = report["models"]["finetune"]["verdicts"]["false_negatives"]
    assert verdict["verdict"] == "no reliable difference"
    assert verdict["too_few"] == {"retain": 2, "seeds": 2}
    assert report["evidence"]["small"]["forget"] == 2 and report["evidence"]["one_step"]
    shown = " ".join(text.split())
    assert "too few to decide by (2 images to retain, 2 seeds)" in shown
    assert "The 2 images to retain fit in one batch of 16" in shown


def test_a_lock_is_not_held_while_another_model_is_made(config, tmp_path, monkeypatch):
    """Others would be told for as long that its run makes no progress."""
    making, held = store.Store.making, []

    @contextlib.contextmanager
    def watched(self, key, label):
        held.append(label)
        assert len(held) == 1
        with making(self, key, label) as alive:
            yield alive
        held.remove(label)

    monkeypatch.setattr(store.Store, "making", watched)
    config.methods = config_lib.methods(finetune=FAST)
    experiment.make_models(config, tmp_path / "run", "", 0, ("finetune",), Console(quiet=True))
    assert held == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"epsilon": np.float32(1.5), "trail": {"rho": jnp.ones(2)}}, [1.5, {"rho": [1.0, 1.0]}]),
        ({"epsilon": float("inf")}, None),
        ({"epsilon": {1, 2}}, None),
        ([1.5], None),
    ],
)
def test_claims_are_what_json_has_or_refused(given, kept):
    recipe = types.SimpleNamespace(name="mine", seed=3)
    if kept:
        assert [*trained._plain(recipe, given).values()] == kept
        return
    with pytest.raises(UserError, match=r"mine, seed 3: the method claims .*; allowed: a dict of"):
        trained._plain(recipe, given)


def test_an_original_that_was_hardly_trained_is_called_no_better_than_a_guess(config, tmp_path):
    config.train.lr = 1e-9
    report, text = run(config, tmp_path / "run")
    labels = np.load(config.data.path)["test_labels"]
    share = 100 * max((labels == label).mean() for label in (0, 1))
    assert report["majority"]["share"] == pytest.approx(share)
    expected = {
        name: [0]
        for name in ("original", "retrained")
        if report["models"][name]["mean"]["TA"] <= share + 1e-6
    }
    assert report["majority"]["no_better"] == expected != {}
    assert "cannot be told from that of a model that learned nothing" in " ".join(text.split())


MINE = """
from jaxunlearn.training import Pass, cross_entropy
import near_by

DEFAULTS = {"epochs": 1, "lr": 0.01, "batch_size": 16}

def passes(task, config):
    yield Pass(cross_entropy, task.retain, task.labels, config.lr)
    return {"epsilon": near_by.EPSILON}
"""


@pytest.mark.slow
def test_a_method_of_ones_own_runs_claims_and_is_made_again_when_its_code_changes(
    config, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_method.py").write_text(MINE)
    (tmp_path / "near_by.py").write_text("EPSILON = 1.5")
    config.methods = config_lib.methods(mine={"method": "own_method:passes"})
    report, text = run(config, tmp_path / "run")
    assert report["models"]["mine"]["per_seed"][0]["claims"] == {"epsilon": 1.5}
    assert "mine claims epsilon 1.5" in " ".join(text.split())
    _, text = run(config, tmp_path / "again")
    assert text.count("in the store") == 3
    (tmp_path / "near_by.py").write_text("EPSILON = 2.5  # imported by the method")
    with pytest.raises(UserError, match=r"near_by\.py has changed since it was imported: restart"):
        run(config, tmp_path / "edited")
    for name in ("near_by", "own_method"):
        importlib.reload(sys.modules[name])
    report, text = run(config, tmp_path / "edited")
    assert report["models"]["mine"]["per_seed"][0]["claims"] == {"epsilon": 2.5}
    assert text.count("in the store") == 2 and "mine: in the store" not in text


class Dropout(nn.Module):
    num_classes: int
    always: bool = False

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dropout(0.5, deterministic=not self.always and not train)(
            images.reshape(len(images), -1)
        )
        return nn.Dense(self.num_classes)(x)


@pytest.mark.slow
def test_a_module_with_dropout_trains_and_a_run_of_it_repeats(config, tmp_path, monkeypatch):
    make = lambda num_classes, **_: models.from_flax(Dropout(num_classes))  # noqa: E731
    monkeypatch.setitem(models.MODELS, "dropout", make)
    config.model.name = "dropout"
    config.methods = config_lib.methods(salun=FAST)
    for part in "ab":
        run(config, tmp_path / part / "run")
    for name in ("original", "salun"):
        path = f"run/predictions/{name}-seed0.npz"
        here, there = (store.read_npz(tmp_path / part / path) for part in "ab")
        assert all(here[k].tobytes() == there[k].tobytes() for k in there)


def test_a_users_module_that_fails_is_one_line(config, tmp_path, monkeypatch):
    make = lambda num_classes, **_: models.from_flax(Dropout(num_classes, always=True))  # noqa: E731
    monkeypatch.setitem(models.MODELS, "dropout", make)
    config.model.name = "dropout"
    with pytest.raises(
        UserError, match=r"'dropout', .* draws random numbers in eval.*PRNG"
    ) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_data_without_malignant_classes_has_no_clinical_columns(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz", num_classes=3, groups=False)
    config = toy.experiment_config(path)
    config.data.malignant = ()
    report, text = run(config, tmp_path / "run")
    assert "fnr" not in report["models"]["finetune"]["mean"]
    assert "malignant test" not in text and "Risk" not in text
