import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import sklearn.svm
import toy
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, models, store, training
from jaxunlearn.errors import UserError
from jaxunlearn.methods import METHODS

FAST = {"epochs": 2, "batch_size": 16}


def run(config, workdir):
    """Runs an experiment; returns its report and what it printed."""
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))
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
    lab_setup = toy.setup(
        model=models.build("cnn", num_classes=2, width=8),
        num_classes=2,
    )
    logits = training.predict(variables, data["test_images"][..., :1], lab_setup, toy.programs(), 8)
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

    monkeypatch.setattr(training, "run", never)
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
    config.eval.attack = "svc"
    config.store = str(finished[1] / "store")
    report, _ = run(config, tmp_path / "run")
    p = store.read_npz(tmp_path / "run" / "predictions" / "finetune-seed0.npz")

    def confidence(which):
        logits = p[f"{which}_logits"].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return probabilities[np.arange(len(logits)), p[f"{which}_labels"]]

    retain, test = confidence("retain"), confidence("test")
    count = min(len(retain), len(test))
    drawn = np.random.default_rng(0).choice(len(retain), count, replace=False)
    members = retain[np.sort(drawn)]
    attack = sklearn.svm.SVC(C=3, kernel="rbf", gamma="auto")
    attack.fit(np.concatenate([members, test])[:, None], np.repeat([1, 0], count))
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
        ("data.name", "lesion", r"unknown dataset 'lesion': did you mean 'lesions'\?"),
        ("data.path", "/nowhere/x.npz", r"/nowhere/x\.npz"),
        ("model.name", "resnet19", r"unknown model 'resnet19': did you mean 'resnet18'"),
        ("model.width", 0, r"width 0: .*1 or more"),
        ("augment", "crop_flop", r"unknown augmentation 'crop_flop'"),
        ("forget.fraction", 1.0, r"fraction.* 1\.0.*allowed"),
        ("forget.fraction", 0.0, r"fraction.* 0\.0.*allowed"),
        ("forget.kind", "patients", r"unknown .*'patients'"),
        ("train.lr", -1.0, r"config\.train\.lr is -1\.0; allowed: more than 0"),
        ("train.optimizer", "sdg", r"config\.train\.optimizer is 'sdg'; allowed: sgd, adam, adamw"),
        ("train.schedule", "cosin", r"config\.train\.schedule is 'cosin'; allowed: constant, cos"),
        ("methods.finetune.epochs", -1, r"config\.methods\.finetune\.epochs is -1; allowed: 0"),
        ("seeds", (2**32,), r"config\.seeds is .*allowed: different whole numbers"),
        ("eval.scenarios", (), r"config\.eval\.scenarios is \(\); allowed: pairs"),
        ("data.mean", (0.5, 0.5, 0.5), r"config\.data\.mean is .*images of 1 channels; allowed: 1"),
        ("train.batch_size", 0, r"config\.train\.batch_size is 0; allowed: 1 or more"),
        ("seeds", ("a",), r"config\.seeds is \('a',\); allowed: different whole numbers"),
        ("seeds", (1.5,), r"config\.seeds is \(1\.5,\); allowed: different whole numbers"),
        ("data.malignant", ("a",), r"config\.data\.malignant is \('a',\); allowed: labels"),
        ("data.mean", ("a",), r"config\.data\.mean is \('a',\); allowed: 1 or 3 numbers"),
        ("forget.groups", ("a",), r"config\.forget\.groups is \('a',\); allowed: whole"),
        ("forget.classes", (-1,), r"config\.forget\.classes is \(-1,\); allowed: labels"),
        ("forget.fractions", ("a",), r"config\.forget\.fractions is \('a',\); allowed: numb"),
        ("seeds", (), r"config\.seeds is \(\); allowed: different whole numbers"),
        ("seeds", (1, 1), r"config\.seeds is \(1, 1\); allowed: different whole numbers"),
        ("eval.scenarios", ((0.0, 1.0),), r"config\.eval\.scenarios is .*allowed: pairs"),
        ("eval.attack", "svm", r"unknown .*'svm'"),
        ("eval.malignant_rule", "max", r"unknown .*'max'"),
        ("devices", 9, r"devices is 9; allowed: 1 to 4"),
        ("data.malignant", (5,), r"data\.malignant names the class 5; allowed: 0 to 1"),
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
    with pytest.raises(UserError, match="salun_cra on data: 0 of 2 classes are malignant"):
        run(config, tmp_path / "run")
    config.methods = config_lib.methods(finetune={"batch_size": 6})
    config.devices = 4
    with pytest.raises(UserError, match=r"methods\.finetune\.batch_size is 6 on 4 devices"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "section, value, message",
    [
        ("methods", {"salun": {}}, r"config\.methods\.salun is no method; make it by"),
        ("methods", {"salun": 3}, r"config\.methods\.salun is no method; make it by"),
        ("forget", {"fraction": 0.1}, r"config\.forget\.\w+ is missing; build the config on"),
        ("augment_params", {"mixup": 3}, r"config\.augment_params\.\w+ is missing"),
    ],
)
def test_sections_that_were_replaced(config, tmp_path, section, value, message):
    config = ConfigDict({**config.to_dict(), section: value})
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 2.5}, r"methods\.salun\.epochs is 2\.5; allowed: int"),
        ({"relabel": {"exclude_true": "no"}}, r"exclude_true is 'no'; allowed: bool"),
        ({"mask": 0.5}, r"methods\.salun\.mask is 0\.5; allowed: a dict of settings"),
    ],
)
def test_settings_of_methods_keep_their_types(changes, message):
    with pytest.raises(UserError, match=message):
        config_lib.methods(salun=changes)


def test_none_is_no_value(config, tmp_path):
    config.train.lr = None
    with pytest.raises(UserError, match=r"config\.train\.lr is None; allowed: more than 0"):
        run(config, tmp_path / "run")


def test_a_workdir_with_a_config_of_something_else(config, tmp_path):
    (tmp_path / "run").mkdir()
    for text in ("{", "[1]"):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json cannot be read as a run's config"):
            run(config, tmp_path / "run")


def test_misspelt_fields_and_methods_name_the_near_ones():
    with pytest.raises(UserError, match=r"unknown method 'saluun': did you mean 'salun'"):
        config_lib.methods(saluun={})
    with pytest.raises(
        UserError, match=r"unknown field of methods\.salun 'epoch': did you mean 'ep"
    ):
        config_lib.methods(salun={"epoch": 3})
    with pytest.raises(
        UserError, match=r"unknown field of methods\.salun\.mask 'ration': .*'ratio'"
    ):
        config_lib.methods(salun={"mask": {"ration": 3}})
    with pytest.raises(AttributeError, match="width"):
        config_lib.default().model.widht = 3


def test_results_keep_the_order_of_the_methods():
    config = config_lib.default()
    config.methods = config_lib.methods(salun={}, finetune={}, retrain={})
    assert list(config.methods) == ["salun", "finetune", "retrain"]


def test_every_methods_defaults_pass_the_check():
    config = config_lib.default()
    config.methods = config_lib.methods(**{name: {} for name in METHODS})
    config_lib.check(config)


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
    config.train.lr = 1e30
    with pytest.raises(
        UserError, match=r"original, seed 0: the loss became .* epoch \d+, step"
    ) as e:
        run(config, tmp_path / "run")
    saved = store.load_tree(tmp_path / "run" / "diverged" / "original-seed0")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
    assert "diverged/original-seed0" in str(e.value)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_method_whose_logits_are_not_finite_is_named_and_not_kept(config, tmp_path, monkeypatch):
    predict = training.predict
    monkeypatch.setattr(training, "predict", lambda *args: predict(*args) * np.inf)
    for _ in range(2):
        with pytest.raises(UserError, match="original, seed 0: its logits are not finite; a lower"):
            run(config, tmp_path / "run")
    assert not list((tmp_path / "store").glob("[!.]*/logits.npz"))


def test_edited_code_makes_models_anew(finished, tmp_path, monkeypatch):
    config = finished[0].copy_and_resolve_references()
    config.seeds, config.store = (0,), str(finished[1] / "store")
    config.methods = config_lib.methods(finetune=FAST)
    monkeypatch.setattr(experiment, "_hash_code", lambda *parts: str("methods" in parts))
    _, text = run(config, tmp_path / "run")
    assert "in the store" not in text
    monkeypatch.setattr(
        experiment, "_hash_code", lambda *parts: "new" if "methods" in parts else "False"
    )
    _, text = run(config, tmp_path / "other")
    assert text.count("in the store") == 2 and "finetune: in the store" not in text


def test_the_hash_of_the_code_follows_the_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text("a = 1")
    (tmp_path / "b.py").write_text("b = 1")
    parts = str(tmp_path / "folder"), str(tmp_path / "b.py")
    hash_code = experiment._hash_code.__wrapped__
    first = hash_code(*parts)
    assert first == hash_code(*parts)
    (tmp_path / "folder" / "a.py").write_text("a = 2")
    assert first != hash_code(*parts)
    assert hash_code("training.py") != hash_code("training.py", "methods")


class Dropout(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(x)


def test_a_users_module_that_fails_is_one_line(config, tmp_path, monkeypatch):
    make = lambda num_classes, **_: models.from_flax(Dropout(num_classes))  # noqa: E731
    monkeypatch.setitem(models.MODELS, "dropout", make)
    config.model.name = "dropout"
    with pytest.raises(UserError, match=r"original, seed 0: the model fails: .*PRNG") as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_data_without_malignant_classes_has_no_clinical_columns(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz", num_classes=3, groups=False)
    config = toy.experiment_config(path)
    config.data.malignant = ()
    report, text = run(config, tmp_path / "run")
    assert "fnr" not in report["models"]["finetune"]["mean"]
    assert "malignant test" not in text and "Risk" not in text
