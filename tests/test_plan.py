"""What the plan gives a recipe, and on what of it the store's key depends."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from flax.traverse_util import flatten_dict

from jaxunlearn import plan, trained
from jaxunlearn.errors import UserError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return toy.write_npz(tmp_path_factory.mktemp("plan") / "data.npz")


def planned(path, changes=None, devices=1, **methods):
    config = toy.experiment_config(path, **methods)
    config.update_from_flattened_dict(changes or {})
    return plan.make(config, devices)[0]


def test_a_recipe_has_the_entrys_settings_and_the_validation_set(path):
    entry = {"optimizer": "adam", "momentum": 0.5, "weight_decay": 0.1, "batch_size": 24}
    one = planned(path, {"data.mean": (0.4,), "data.std": (0.2,)}, finetune=entry)
    recipe = one.recipes(0)["finetune"]
    assert {field: getattr(recipe.setup, field) for field in entry} == entry
    assert (recipe.setup.mean, recipe.setup.std) == ((0.4,), (0.2,))
    assert recipe.inputs["val"] is one.dataset.val and recipe.inputs["malignant"] == (1,)
    np.testing.assert_array_equal(recipe.inputs["forget"], one.split.forget)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.mean": (0.4,)},
        {"data.std": (0.4,)},
        {"augment": "crop_flip"},
        {"train.lr": 0.05},
        {"model.width": 9},
    ],
)
def test_what_changes_a_model_changes_its_key(path, changes):
    usual, other = (planned(path, given).recipes(0) for given in (None, changes))
    assert all(usual[name].key != other[name].key for name in usual)


def test_a_switch_of_jaxs_arithmetic_changes_the_key(path):
    usual = planned(path).recipes(0)["original"].key
    with jax.default_matmul_precision("highest"):
        assert planned(path).recipes(0)["original"].key != usual


def test_what_classes_mean_is_read_by_methods_alone(path):
    """A class named malignant later must not cost hours of training again."""
    usual = planned(path)
    other, renamed = (
        planned(path, {"data.malignant": (0,)}),
        dataclasses.replace(usual.dataset, class_names=("a", "b")),
    )
    ours, theirs = usual.recipes(0), other.recipes(0)
    for name in ("original", "retrained"):
        assert ours[name].key == theirs[name].key
    assert ours["finetune"].key != theirs["finetune"].key
    again = usual._replace(dataset=renamed).recipes(0)
    assert {name: recipe.key for name, recipe in again.items()} == {
        name: recipe.key for name, recipe in ours.items()
    }
    assert renamed.fingerprint != usual.dataset.fingerprint


def test_the_batch_size_of_what_is_trained_alone_must_fit_the_devices(path, tmp_path):
    entry = {"finetune": {"epochs": 1, "batch_size": 9}}
    with pytest.raises(UserError, match=r"config\.train\.batch_size must be a multiple of 3"):
        planned(path, devices=3, **entry)
    original = planned(path).recipes(0)["original"]
    made = original.setup.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    np.savez(tmp_path / "original.npz", **flatten_dict(jax.device_get(made), sep="/"))
    brought = {"original.path": str(tmp_path / "original.npz"), "retrained": False}
    brought |= {"train.batch_size": 256, "train.epochs": 182}  # as they are: nothing reads them
    one = planned(path, brought, devices=3, **entry)
    assert one.recipes(0)["finetune"].setup.batch_size == 9


@pytest.mark.parametrize("names", ["noisy_finetune", ("noisy_finetune", "finetune")])
def test_an_original_that_is_trained_here_has_seen_the_forget_set(path, tmp_path, names):
    head = {"part": "head", plan.BACKBONE: True}
    entry = {"method": names, **(head if isinstance(names, str) else {"noisy_finetune": head})}
    with pytest.raises(UserError, match=r"methods\.it\..*never_saw_forget=True, and original is"):
        planned(path, it=entry)
    original = planned(path).recipes(0)["original"]
    made = original.setup.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    np.savez(tmp_path / "original.npz", **flatten_dict(jax.device_get(made), sep="/"))
    assert planned(path, {"original.path": str(tmp_path / "original.npz")}, it=entry)


def test_what_is_to_be_tuned_are_settings(path, tmp_path, monkeypatch):
    (tmp_path / "mistuned.py").write_text(
        "DEFAULTS = {'epochs': 1, 'strength': 0.5}\n"
        "TUNE = {'strenght': (0.1, 0.5)}\n"
        "def passes(task, config):\n"
        "    yield\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"mine": {"method": "mistuned:passes"}}
    assert planned(path, **entry)
    with pytest.raises(UserError, match=r"unknown setting in TUNE, .*did you mean 'strength'"):
        planned(path, {"tune.trials": 2}, **entry)


def test_a_folder_of_what_diverged_has_a_name_that_file_systems_take(path):
    recipe = planned(path, finetune={"epochs": 1}).recipes(0)["finetune"]
    assert trained._left(Path("d"), recipe) == Path("d/finetune-seed0")
    long = trained._left(Path("d"), dataclasses.replace(recipe, name="é" * 150)).name
    assert 190 < len(long.encode()) <= 200 and long.startswith("éééé")


def test_a_fill_has_a_level_for_each_channel(path):
    changes = {"augment": "random_erasing", "augment_params.random_erasing.fill": (10, 20, 30)}
    with pytest.raises(UserError, match=r"fill must be 1 number.*, got \(10, 20, 30\)"):
        planned(path, changes)
    changes["augment_params.random_erasing.fill"] = (10,)
    assert planned(path, changes)


def test_stains_are_of_colours(path):
    with pytest.raises(UserError, match="stain_jitter needs colour images"):
        planned(path, {"augment": "stain_jitter"})


def test_an_axis_may_not_overrule_what_was_chosen(path, tmp_path):
    (tmp_path / "tuning.json").write_text(
        '{"methods": {"finetune": {"chosen": {"settings": {"lr": 0.1}}}}}'
    )
    changes = {
        "tune.chosen": str(tmp_path / "tuning.json"),
        "axes": (("methods.finetune.lr", (0.5, 0.25)),),
    }
    with pytest.raises(UserError, match=r"config\.axes varies 'methods\.finetune\.lr', and config"):
        planned(path, changes)
