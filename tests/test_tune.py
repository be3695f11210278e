"""Tuning without a retrained model: what is tried, what is chosen, and what that may read."""

import io
import json
import math

import numpy as np
import pytest
import toy
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, files, plan, rehearsal, rules, store, trained, tune
from jaxunlearn.errors import Diverged, UserError
from jaxunlearn.methods.table import METHODS, find
from jaxunlearn.metrics import proxy, results
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.training.step import OPTIMIZER

FEW = {"batch_size": 16}
METHODS_TRIED = {
    "finetune": {"epochs": 4, **FEW},
    "salun": {"epochs": 2, **FEW},
    "gradient_ascent": {"epochs": 2, **FEW},
}


def config_of(path, trials=4, **methods):
    config = toy.experiment_config(str(path), **(methods or METHODS_TRIED))
    config.tune.trials = trials
    return config


def run(config, folder):
    console = Console(width=120, record=True, file=io.StringIO())
    return experiment.run(config, folder, console), console.export_text()


def tuning(folder):
    return json.loads((folder / "tuning.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.write_npz(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    config = config_of(data)
    config.seeds = (0, 1)
    report, text = run(config, root / "run")
    return config, root, report, text


# The search


def test_candidates_are_the_entry_and_half_decades_around_its_rates_and_the_methods_values():
    settings = toy.settings("salun", lr=0.02, mask={"ratio": 0.5})
    made = tune.candidates({"lr": None, "mask.ratio": (0.5, 0.9)}, settings, 99, seed=0)
    assert made[0] == {"lr": 0.02, "mask.ratio": 0.5} and len(made) == 14
    rates = sorted({each["lr"] for each in made})
    by_hand = [0.000632, 0.002, 0.00632, 0.02, 0.0632, 0.2, 0.632]
    np.testing.assert_allclose(rates, by_hand, rtol=2e-3)
    assert {each["mask.ratio"] for each in made} == {0.5, 0.9}
    few = tune.candidates({"lr": None, "mask.ratio": (0.5, 0.9)}, settings, 5, seed=0)
    assert few[0] == made[0] and len(few) == 5 and all(each in made for each in few)
    assert few == tune.candidates({"lr": None, "mask.ratio": (0.5, 0.9)}, settings, 5, seed=0)
    others = [tune.candidates({"lr": None}, settings, 3, seed) for seed in range(5)]
    assert any(each != others[0] for each in others)


@pytest.mark.parametrize(
    "epochs, count, ladder",
    [
        (10, 8, [(2, 8), (3, 4), (5, 2), (10, 1)]),
        (10, 35, [(1, 35), (2, 18), (3, 9), (5, 5), (10, 3)]),
        (4, 1, [(4, 1)]),
        (1, 7, [(1, 7)]),
    ],
)
def test_rungs_end_at_the_entrys_epochs(epochs, count, ladder):
    assert tune.rungs(toy.settings("finetune", epochs=epochs), count) == ladder


def test_a_method_without_epochs_has_one_rung():
    assert tune.rungs(toy.settings("ssd"), 5) == [(None, 5)]


def test_halving_by_hand():
    """Scores at 1, 2 and 4 epochs; b is infinite, and c overtakes a at 2 epochs."""
    scores = {
        ("a", 1): 3.0,
        ("b", 1): math.inf,
        ("c", 1): 4.0,
        ("d", 1): 9.0,
        ("a", 2): 5.0,
        ("c", 2): 2.0,
        ("c", 4): 2.5,
    }
    asked = []

    def score(point, epochs):
        asked.append((point["x"], epochs))
        return scores[point["x"], epochs]

    tune.halving([{"x": x} for x in "abcd"], [(1, 4), (2, 2), (4, 1)], score)
    assert asked == list(scores)


def test_halving_ends_where_all_are_infinite():
    asked = []
    tune.halving([{}, {}], [(1, 2), (2, 1)], lambda p, e: asked.append(e) or math.inf)
    assert asked == [1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_lets_be_tuned_are_settings_of_its_within_its_rules(name):
    method = METHODS[name]
    settings = toy.settings(name)
    made = tune.candidates(method.tune, settings, 10**6, seed=0) if method.tune else []
    for changes in made:
        changed = toy.settings(name)
        changed.update_from_flattened_dict(changes)
        rules.check(changed, {**method.rules}, name)
        assert set(changed) == {"method", *OPTIMIZER, *method.defaults}
    assert len(made) == len({json.dumps(each) for each in made})


def test_what_claims_and_what_is_the_gold_standard_are_not_tuned():
    assert {name for name, method in METHODS.items() if not method.tune} == {
        "noisy_finetune",
        "retrain",
    }
    assert find(("ssd", "salun")).tune == {
        "ssd.alpha": METHODS["ssd"].tune["alpha"],
        "salun.lr": None,
        "mask.ratio": METHODS["salun"].tune["mask.ratio"],
    }
    assert find(("ssd", "noisy_finetune")).tune == {}


# The score


def answers(logits, labels, groups=None):
    groups = None if groups is None else np.array(groups)
    return Predictions(np.array(logits, np.float32), np.array(labels), groups)


def confident(p):
    """Logits of two classes by the probabilities of class 0."""
    return np.log(np.stack([p, 1 - np.array(p)], axis=1))


def test_the_proxy_gap_by_hand():
    """Forget is 3 of class 0 and 1 of class 1; validation 2 of each.

    The original: validation right on 1 of 2 of class 0 and on both of class 1, so UA* = (3 · 50 +
    1 · 0) / 4 = 37.5, TA* = 75; RA* = 100. The model: forget right on 2 of 4, UA = 50; retain right
    on 3 of 4, RA = 75; validation right on 2 of 4, TA = 50. Confidences p_y of retain are 0.9, 0.9,
    0.9, 0.2, of validation 0.3, 0.6 (class 0) and 0.2, 0.7 (class 1): the best threshold is 0.9, at
    which 1 of 4 members is missed and no non-member is called one. Forget's p_y are 0.95, 0.92,
    0.4, 0.1: MIA = 50; all validation examples are called non-members: MIA* = 100.
    """
    original = {
        "forget": answers(confident([0.9, 0.9, 0.9, 0.1]), [0, 0, 0, 1]),
        "retain": answers(confident([0.9, 0.9, 0.1, 0.1]), [0, 0, 1, 1]),
        "val": answers(confident([0.9, 0.2, 0.1, 0.1]), [0, 0, 1, 1]),
    }
    model = {
        "forget": answers(confident([0.95, 0.92, 0.4, 0.9]), [0, 0, 0, 1]),
        "retain": answers(confident([0.9, 0.9, 0.1, 0.8]), [0, 0, 1, 1]),
        "val": answers(confident([0.3, 0.6, 0.8, 0.3]), [0, 0, 1, 1]),
    }
    gaps = proxy.proxy_gaps(model, original, "threshold", "all")
    assert gaps == pytest.approx({"UA": 12.5, "RA": 25, "VA": 25, "MIA": 50})
    same = proxy.proxy_gaps(original, original, "threshold", "all")
    assert (same["RA"], same["VA"]) == (0, 0)
    # the test set is not even there
    assert proxy.proxy_gaps({**model, "test": None}, original, "threshold", "all") == gaps


def test_more_missed_malignant_validation_images_are_told_by_mcnemar():
    """The original finds all 8 of class 0; six newly missed have p = 2 · 2⁻⁶ = 0.031."""
    labels, retain = [0] * 8 + [1] * 4, answers(confident([0.9, 0.1]), [0, 1], [90, 91])
    sets = {"forget": retain, "retain": retain}

    def sees(missed, false_alarms=0, groups=range(12)):
        p = (
            [0.1] * missed
            + [0.9] * (8 - missed)
            + [0.9] * false_alarms
            + [0.1] * (4 - false_alarms)
        )
        return {**sets, "val": answers(confident(p), labels, list(groups))}

    def more(model, original, malignant=(0,)):
        return proxy.misses_more(model, original, malignant, "argmax")

    assert more(sees(6), sees(0)) and more(sees(6, false_alarms=4), sees(0))
    assert not more(sees(5), sees(0))  # p = 0.0625
    assert not more(sees(0), sees(6)) and not more(sees(6), sees(6))
    assert not more(sees(6), sees(0), ()) and not more(sees(0, false_alarms=4), sees(0), ())
    # Patients that train has are not unseen.
    groups = [90, *range(1, 12)]
    assert not more(sees(6, groups=groups), sees(0, groups=groups))


def test_shares_are_in_forgets_mix():
    forget, is_so = np.array([0, 0, 0, 1, 2]), np.array([True, False, False])
    # (3 · ½ + 1 · 0 + 1 · 1) / 5: class 2 has no example
    assert proxy.in_mix_of(forget, is_so, np.array([0, 0, 1])) == pytest.approx(50)


def test_of_a_class_forgotten_whole_all_is_wrong_and_outside():
    """Class 1 goes: forget is to be 100% wrong and outside, and validation is of class 0 alone."""
    original = {
        "forget": answers(confident([0.1, 0.1]), [1, 1]),
        "retain": answers(confident([0.9, 0.9]), [0, 0]),
        "val": answers(confident([0.8, 0.1, 0.1, 0.1]), [0, 0, 1, 1]),
    }
    model = {**original, "forget": answers(confident([0.7, 0.1]), [1, 1])}
    gaps = proxy.proxy_gaps(model, original, "threshold", "all")
    # Of p_y of retain 0.9 and of validation 0.8 and 0.1, the threshold is 0.9; forget has 0.3, 0.9.
    assert gaps == pytest.approx({"UA": 50, "RA": 0, "VA": 0, "MIA": 50})
    perfect = {**original, "forget": answers(confident([0.7, 0.8]), [1, 1])}
    assert proxy.proxy_gaps(perfect, original, "threshold", "all") == dict.fromkeys(gaps, 0)


def test_validation_examples_of_patients_of_train_do_not_count():
    p, labels = confident([0.9, 0.1]), [0, 1]
    sets = {
        "forget": answers(p, labels, [1, 2]),
        "retain": answers(p, labels, [3, 4]),
        "val": answers(confident([0.9, 0.1, 0.9]), [0, 1, 1], [5, 6, 4]),
    }
    gaps = proxy.proxy_gaps(sets, sets, "threshold", "all")
    assert gaps["UA"] == 0  # with the wrong answer of patient 4 it were 25
    sets["val"] = answers(confident([0.9, 0.1, 0.9]), [0, 1, 1], [5, 2, 4])
    with pytest.raises(UserError, match=r"of the 3 there are none of class 1, of which some are"):
        proxy.proxy_gaps(sets, sets, "threshold", "all")


def test_some_validation_example_must_be_of_a_class_that_stays():
    p = confident([0.9, 0.1])
    sets = {"forget": answers(p, [1, 1]), "retain": answers(p, [0, 0]), "val": answers(p, [1, 1])}
    with pytest.raises(UserError, match="there are none of the classes that stay"):
        proxy.check(sets)


# Runs


def test_results_are_of_what_was_chosen_and_tell_what_that_took(finished):
    config, root, report, text = finished
    found = tuning(root / "run")
    assert found["seed"] == 0 and set(found["methods"]) == set(METHODS_TRIED)
    for name, entry in found["methods"].items():
        per_seed = report["models"][name]["per_seed"]
        assert per_seed[0]["key"] == entry["chosen"]["key"] != per_seed[1]["key"]
        for values in per_seed:
            made_by = values["made_by"]
            flat = {**made_by, "mask.ratio": made_by["mask"]["ratio"]}
            assert {field: flat[field] for field in entry["chosen"]["settings"]} == (
                entry["chosen"]["settings"]
            )
        scores = [(trial["misses_more"], trial["proxy_gap"]) for trial in entry["all"]]
        assert (entry["chosen"]["misses_more"], entry["chosen"]["proxy_gap"]) == min(scores)
        for trial in entry["all"]:
            assert trial["proxy_gap"] == pytest.approx(np.mean(list(trial["gaps"].values())))
        epochs = config.methods[name].epochs
        assert entry["given"]["settings"] == {**entry["all"][0]["settings"], "epochs": epochs}
        spent = report["tuning"][name]
        assert spent == {
            "trials": len(scores),
            "diverged": 0,
            "miss_more": sum(more for more, _ in scores),
            "seconds": entry["seconds"],
        }
        assert spent["seconds"] == pytest.approx(sum(t["seconds"] for t in entry["all"]))
        assert f"{name} tuned in {spent['seconds']:.1f} s, {len(scores)} trials: lr=" in text
    assert [t["settings"]["epochs"] for t in found["methods"]["finetune"]["all"]][:7] == (
        [1] * 4 + [2] * 2 + [4]
    )
    assert config.methods.finetune.epochs == 4  # what was given is left alone


def test_what_one_run_chose_is_used_by_another(finished, tmp_path):
    config, root, report, _ = finished
    path = str(root / "run" / "tuning.json")
    later = config_of(config.data.path, trials=0, **METHODS_TRIED, scrub={"epochs": 1, **FEW})
    later.tune.chosen, later.seeds, later.store = path, (1,), str(root / "store")
    again, _ = run(later, tmp_path / "run")
    for name in METHODS_TRIED:  # the very models of the tuned run's other seed
        theirs = report["models"][name]["per_seed"][1]
        assert again["models"][name]["per_seed"][0]["key"] == theirs["key"]
    assert again["models"]["scrub"]["per_seed"][0]["made_by"]["epochs"] == 1
    assert again["tuning"] == {} and not (tmp_path / "run" / "tuning.json").exists()
    assert any(path in note and "not counted" in note for note in again["notes"])
    assert later.methods.finetune.epochs == 4  # what was given is left alone
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    chosen = tuning(root / "run")["methods"]["finetune"]["chosen"]["settings"]
    assert {field: kept["methods"]["finetune"][field] for field in chosen} == chosen


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"cannot be read as what a run has chosen; give the tuning\.json of a run"),
        ("{", "cannot be read as what a run has chosen"),
        ('{"methods": {"finetune": {}}}', "cannot be read as what a run has chosen"),
        ('{"methods": []}', "cannot be read as what a run has chosen"),
        (
            '{"methods": {"other": {"chosen": {"settings": {"lr": 0.1}}}}}',
            "has settings of other, and config.methods names finetune, salun, gradient_ascent",
        ),
        (
            '{"methods": {"finetune": {"chosen": {"settings": {"mask.size": 1}}}}}',
            r"unknown field of what .* has for config\.methods\.finetune\.mask 'size'",
        ),
        (
            '{"methods": {"finetune": {"method": "salun", "chosen": {"settings": {"lr": 0.1}}}}}',
            r"has settings of salun for config\.methods\.finetune, which is finetune; give one",
        ),
        (
            '{"methods": {"finetune": {"chosen": {"settings": {"epochs": "two"}}}}}',
            r"has for config\.methods\.finetune\.epochs must be of type int",
        ),
    ],
)
def test_what_was_chosen_must_fit(data, tmp_path, content, message):
    config = config_of(data, trials=0)
    config.tune.chosen = str(tmp_path / "tuning.json")
    if content is not None:
        (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trials_and_what_was_chosen_exclude_each_other(data, tmp_path):
    config = config_of(data)
    config.tune.chosen = "tuning.json"
    with pytest.raises(UserError, match="chooses anew by trials or uses what was chosen"):
        run(config, tmp_path / "run")


def test_what_misses_more_cancers_comes_last(data, tmp_path, monkeypatch):
    config = config_of(data, finetune={"epochs": 2, **FEW})
    run(config, tmp_path / "run")
    usual = tuning(tmp_path / "run")["methods"]["finetune"]
    assert not any(trial["misses_more"] for trial in usual["all"])
    gaps = proxy.proxy_gaps

    def more(model, original, malignant, rule):
        assert (malignant, rule) == ((1,), "argmax")
        return gaps(model, original, config.eval.attack, "all") == usual["chosen"]["gaps"]

    monkeypatch.setattr(proxy, "misses_more", more)
    config.eval.members = "all"
    run(config, tmp_path / "without")
    entry = tuning(tmp_path / "without")["methods"]["finetune"]
    others = [trial for trial in entry["all"] if not trial["misses_more"]]
    assert entry["miss_more"] == len(entry["all"]) - len(others) > 0
    assert entry["chosen"]["key"] != usual["chosen"]["key"]
    assert entry["chosen"]["proxy_gap"] == min(trial["proxy_gap"] for trial in others)

    monkeypatch.setattr(proxy, "misses_more", lambda *args: True)
    _, text = run(config, tmp_path / "all")
    entry = tuning(tmp_path / "all")["methods"]["finetune"]
    assert entry["chosen"]["key"] == usual["chosen"]["key"]  # the best of what there is
    assert "each of them reliably misses more malignant validation images than the original" in (
        " ".join(text.split())
    )


def test_regret_is_against_the_best_avg_gap_of_all_trials(finished):
    _, root, report, _ = finished
    for name, entry in tuning(root / "run")["methods"].items():
        gaps = [trial["avg_gap"] for trial in entry["all"]]
        assert entry["best"]["avg_gap"] == min(gaps)
        assert entry["regret"] == entry["chosen"]["avg_gap"] - min(gaps) >= 0
        of_run = results.avg_gaps(report, name)[0]
        assert entry["chosen"]["avg_gap"] == pytest.approx(of_run)
    table = (root / "run" / "tuning.md").read_text()
    assert table.count("\n| ") == 4 and "regret" in table
    for row in table.splitlines()[2:5]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        entry = tuning(root / "run")["methods"][cells[0]]
        chosen, given = entry["chosen"], entry["given"]
        values = [chosen["proxy_gap"], given["proxy_gap"], chosen["avg_gap"]]
        values += [entry["best"]["avg_gap"], entry["regret"], given["avg_gap"]]
        assert cells[-6:] == [f"{value:.2f}" for value in values]


def test_a_second_run_trains_nothing(finished, monkeypatch):
    config, root, report, _ = finished
    monkeypatch.setattr(store.Store, "put", None)
    monkeypatch.setattr(trained, "run", None)
    assert run(config, root / "run")[0] == report


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    config, root, _, _ = finished
    config = config_of(config.data.path)
    put, made = store.Store.put, []

    def count(self, key, **parts):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(key)
        put(self, key, **parts)

    monkeypatch.setattr(store.Store, "put", count)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    first = list(made)
    monkeypatch.setattr(store.Store, "put", lambda *a, **k: made.append(a[1]) or put(*a, **k))
    run(config, tmp_path / "run")
    assert made[:5] == first and len(made) == len(set(made))
    ours, theirs = (tuning(folder / "run")["methods"] for folder in (tmp_path, root))
    for name in METHODS_TRIED:
        keys = [[trial["key"] for trial in each[name]["all"]] for each in (ours, theirs)]
        assert keys[0] == keys[1]


def chosen(folder):
    """All trials' scores and the choice, to the bit."""
    return [
        (name, trial["settings"], trial["gaps"], trial is entry["chosen"])
        for name, entry in tuning(folder)["methods"].items()
        for trial in [*entry["all"], entry["chosen"]]
    ]


def test_the_choice_reads_no_retrained_model(finished, tmp_path):
    config, root, _, _ = finished
    config = config_of(config.data.path)
    config.retrained = False
    report, _ = run(config, tmp_path / "run")
    assert "retrained" not in report["models"]
    assert chosen(tmp_path / "run") == chosen(root / "run")
    entry = tuning(tmp_path / "run")["methods"]["salun"]
    assert "regret" not in entry and "avg_gap" not in entry["chosen"]
    assert "regret" not in (tmp_path / "run" / "tuning.md").read_text()


def test_the_choice_reads_no_test_set(finished, tmp_path):
    config, root, _, _ = finished
    arrays = store.read_npz(config.data.path)
    arrays["test_labels"] = 1 - arrays["test_labels"]
    arrays["test_images"] = 255 - arrays["test_images"]
    files.write_npz(tmp_path / "data.npz", arrays)
    config = config_of(tmp_path / "data.npz")
    run(config, tmp_path / "run")
    assert chosen(tmp_path / "run") == chosen(root / "run")


def diverging(monkeypatch, diverges):
    """Makes those runs diverge whose settings say so; returns the names of all."""
    asked, train = [], trained.Trainer._train

    def maybe(self, recipe, *args):
        asked.append(recipe.name)
        if recipe.parent is not None and diverges(recipe.settings):
            self._fail(recipe, "the loss is nan in epoch 0", {"params": {"w": np.zeros(2)}})
        return train(self, recipe, *args)

    monkeypatch.setattr(trained.Trainer, "_train", maybe)
    return asked


def test_a_trial_that_diverges_is_the_worst_and_is_not_tried_again(data, tmp_path, monkeypatch):
    asked = diverging(monkeypatch, lambda settings: settings.lr > 0.02)
    config = config_of(data, trials=7, finetune={"epochs": 2, **FEW})
    report, text = run(config, tmp_path / "run")
    entry = tuning(tmp_path / "run")["methods"]["finetune"]
    lost = [trial for trial in entry["all"] if trial["proxy_gap"] is None]
    assert len(lost) == entry["diverged"] == 3 and all(t["avg_gap"] is None for t in lost)
    assert {trial["settings"]["epochs"] for trial in lost} == {1}  # none of them went on
    assert entry["chosen"]["settings"]["lr"] <= 0.02 and "3 of them diverged" in text
    assert report["models"]["finetune"]["per_seed"][0]["key"] == entry["chosen"]["key"]
    asked.clear()
    again, _ = run(config, tmp_path / "run")
    assert asked == [] and again == report


def test_what_was_chosen_is_kept_though_it_diverges_on_another_seed(data, tmp_path, monkeypatch):
    config = config_of(data, trials=2, finetune={"epochs": 1, **FEW})
    config.seeds = (0, 1)
    train = trained.Trainer._train

    def maybe(self, recipe, *args):
        if recipe.name.startswith("finetune") and recipe.seed == 1:
            self._fail(recipe, "the loss is nan in epoch 0", {"params": {"w": np.zeros(2)}})
        return train(self, recipe, *args)

    monkeypatch.setattr(trained.Trainer, "_train", maybe)
    with pytest.raises(UserError, match="the loss is nan"):
        run(config, tmp_path / "run")
    entry = tuning(tmp_path / "run")["methods"]["finetune"]
    assert entry["chosen"]["settings"] and len(entry["all"]) == 2 and "regret" not in entry
    config.tune.trials, config.seeds = 0, (0,)
    config.tune.chosen = str(tmp_path / "run" / "tuning.json")
    report, _ = run(config, tmp_path / "other")
    assert report["models"]["finetune"]["per_seed"][0]["key"] == entry["chosen"]["key"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 2.0), r"TUNE of config\.methods\.salun, mask\.ratio has 2\.0: .* must be"),
        (("a",), r"TUNE of config\.methods\.salun, mask\.ratio has 'a': .* of type float"),
        (None, ""),
    ],
)
def test_what_a_setting_cannot_be_is_not_tried(data, monkeypatch, values, message):
    method = METHODS["salun"]._replace(tune={"mask.ratio": values})
    monkeypatch.setattr(tune, "find", lambda name: method)
    config = config_of(data, trials=2, salun=FEW)
    if message:
        with pytest.raises(UserError, match=message):
            tune.check_candidates(config)
    method = METHODS["salun"]._replace(tune={"epochs": None})
    with pytest.raises(UserError, match=r"salun, epochs: None stands for factors of a rate"):
        tune.check_candidates(config)


def test_where_all_diverge_the_method_is_named(data, tmp_path, monkeypatch):
    diverging(monkeypatch, lambda settings: True)
    config = config_of(data, trials=2, finetune={"epochs": 2, **FEW})
    with pytest.raises(UserError, match=r"config\.methods\.finetune: each of its 3 trials diverg"):
        run(config, tmp_path / "run")


def test_of_several_methods_one_whose_trials_all_diverge_is_left_out(data, tmp_path, monkeypatch):
    asked = diverging(monkeypatch, lambda settings: settings.method == "finetune")
    config = config_of(data, trials=2, finetune={"epochs": 2, **FEW}, ssd=FEW)
    report, text = run(config, tmp_path / "run")
    assert "finetune" not in asked  # nor is it tried once more, as it was given
    assert "finetune" not in report["models"] and "ssd" in report["models"]
    assert list(tuning(tmp_path / "run")["methods"]) == ["ssd"]
    assert "config.methods.finetune: each of its 3 trials diverged" in " ".join(text.split())
    assert any("finetune is left out, as it diverged" in note for note in report["notes"])


def test_an_original_that_diverges_is_no_trial(data, tmp_path, monkeypatch):
    def fail(self, recipe, *args):
        self._fail(recipe, "the loss is nan", {"params": {"w": np.zeros(2)}})

    monkeypatch.setattr(trained.Trainer, "_train", fail)
    with pytest.raises(Diverged, match="original, seed 0: the loss is nan"):
        run(config_of(data), tmp_path / "run")


def test_whole_classes_and_edits_and_what_is_not_tuned(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz", num_classes=3)
    config = config_of(path, ssd=FEW, retrain={"epochs": 1, **FEW})
    config.forget.kind, config.forget.classes = "class", (2,)
    config.retrained = False
    report, text = run(config, tmp_path / "run")
    found = tuning(tmp_path / "run")["methods"]
    assert set(found) == {"ssd"} and "retrain as it is" in text
    assert set(found["ssd"]["chosen"]["settings"]) == {"alpha"} and len(found["ssd"]["all"]) == 4
    UA = 100 - report["models"]["ssd"]["per_seed"][0]["UA"]
    assert found["ssd"]["chosen"]["gaps"]["UA"] == pytest.approx(UA)


@pytest.mark.slow
def test_each_cell_of_a_grid_is_tuned(data, tmp_path):
    config = config_of(data, trials=2, finetune={"epochs": 1, **FEW})
    config.axes = (("tune.trials", (0, 2)), ("forget.fraction", (0.1, 0.5)))
    report, text = run(config, tmp_path / "run")
    assert [bool(cell["tuning"]) for cell in report["cells"]] == [False, False, True, True]
    for cell in report["cells"][2:]:
        entry = tuning(tmp_path / "run" / cell["folder"])["methods"]["finetune"]
        assert cell["models"]["finetune"]["per_seed"][0]["key"] == entry["chosen"]["key"]
    assert "tune.trials=2,forget.fraction=0.5: settings were chosen on seed 0" in text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: setattr(c.tune, "trials", -1), r"tune\.trials must be a whole number, 0 or mor"),
        (
            lambda c: setattr(c, "requests", ({"fraction": 0.1}, {"fraction": 0.2})),
            r"config\.tune and config\.requests exclude each other",
        ),
        (
            lambda c: setattr(c, "axes", (("methods.finetune.lr", (0.1, 0.2)),)),
            r"config\.axes varies 'methods\.finetune\.lr', and config\.tune chooses",
        ),
        (
            lambda c: setattr(c, "methods", config_lib.methods()),
            r"config\.tune\.trials is 4, which nothing reads here; name methods that can be tuned",
        ),
        (
            lambda c: setattr(c, "methods", config_lib.methods(retrain=FEW)),
            r"config\.tune\.trials is 4, which nothing reads here; name methods that can be tuned",
        ),
        (
            lambda c: setattr(
                c, "axes", (("tune.trials", (0, 2)), ("methods.finetune.lr", (0.1, 0.2)))
            ),
            r"config\.axes varies 'methods\.finetune\.lr', and config\.tune chooses",
        ),
        (lambda c: setattr(c, "axes", (("a", 1, 2),)), r"config\.axes holds"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(data, change, message):
    config = config_of(data)
    change(config)
    with pytest.raises(UserError, match=message):
        plan.make(config, 1)


def test_a_class_without_validation_examples_is_told_before_training(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz", groups=False)
    arrays = store.read_npz(path)
    arrays["val_labels"][:] = 0
    files.write_npz(tmp_path / "data.npz", arrays)
    with pytest.raises(UserError, match="of the 20 there are none of 1, of which some are to be"):
        plan.make(config_of(path), 1)
    plan.make(config_of(path, trials=0), 1)


def test_models_are_not_made_in_parts(data, tmp_path):
    from launch.jobs import make_jobs

    for make in (
        lambda config: experiment.make_models(config, tmp_path, "", 0, ("original",)),
        lambda config: make_jobs(config, str(tmp_path)),
    ):
        with pytest.raises(UserError, match="run the config as a whole"):
            make(config_of(data))


def test_a_rehearsal_counts_the_trials_and_makes_none(data, tmp_path):
    console = Console(file=io.StringIO(), width=120)
    rehearsal.rehearse(config_of(data), tmp_path / "run", console)
    text = console.file.getvalue()
    # 4 at 1 epoch, 2 at 2, 1 at 4, and the entry as it is
    assert "finetune, up to 8 trials" in text and "salun, up to 7 trials" in text
    assert list(tmp_path.iterdir()) == []
