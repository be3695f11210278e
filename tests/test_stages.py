"""Methods in stages, and the parts that methods are put together from."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from jaxunlearn import config as config_lib
from jaxunlearn import training
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import run
from jaxunlearn.methods import METHODS, actions
from jaxunlearn.methods.table import find


def staged(task, **changes):
    """The result of an entry of a config."""
    settings = config_lib.methods(it=changes)["it"]
    fields = ("optimizer", "momentum", "weight_decay")
    setup = dataclasses.replace(task.bench.setup, **{name: settings[name] for name in fields})
    task = dataclasses.replace(task, bench=task.bench._replace(setup=setup))
    made = actions(task, settings)
    return training.run(made, task.original, task.bench, stage="unlearn", seed=task.seed)


def test_an_edit_and_then_finetuning():
    """Finetuning starts from what the edit left: as the two would by hand."""
    task = toy.task_for("ssd")
    edited = toy.unlearn("ssd", task, alpha=0.5).variables
    after = toy.unlearn("finetune", dataclasses.replace(task, original=edited), epochs=2)
    both = staged(task, method=("ssd", "finetune"), ssd={"alpha": 0.5}, finetune={"epochs": 2})
    assert toy.same_bits(both.variables, after.variables)
    assert len(both.history) == 2


def test_a_method_of_a_package_of_ones_own_can_be_a_stage(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    (tmp_path / "lab" / "mine.py").write_text(
        "from jaxunlearn.training import Pass, cross_entropy\n"
        'DEFAULTS = {"epochs": 1, "lr": 0.01}\n'
        "def passes(task, config):\n"
        "    for _ in range(config.epochs):\n"
        "        yield Pass(cross_entropy, task.retain, task.labels, config.lr, config.epochs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("ssd", "lab.mine:passes")
    task = toy.task_for("ssd")
    both = staged(task, method=names, lab_mine_passes={"epochs": 2})
    assert len(both.history) == 2
    made = config_lib.default()
    made.methods = config_lib.methods(it={"method": names})
    made.update_from_flattened_dict({"methods.it.lab_mine_passes.epochs": 3})
    assert made.methods.it.lab_mine_passes.epochs == 3


def test_two_that_train_each_with_a_fresh_optimizer():
    task = toy.task_for("finetune")
    first = toy.unlearn("gradient_ascent", task, epochs=1).variables
    second = dataclasses.replace(task, original=first)
    # The second stage's epochs go on counting, so that their draws are the second epoch's.
    moves = staged(
        task,
        method=("gradient_ascent", "finetune"),
        gradient_ascent={"epochs": 1},
        finetune={"epochs": 0},
    )
    assert toy.same_bits(moves.variables, second.original)
    settings = config_lib.methods(
        it={"method": ("gradient_ascent", "finetune"), "gradient_ascent": {"epochs": 1}}
    )["it"]
    made = list(actions(task, settings))
    totals = [action.total_passes for action in made if isinstance(action, training.Pass)]
    assert totals == [1] + [11] * 10
    assert callable(made[1].variables)


def test_a_mask_holds_in_every_stage():
    task = toy.task_for("ssd")
    both = staged(
        task,
        method=("ssd", "finetune"),
        ssd={"alpha": 0.5},
        finetune={"epochs": 1},
        mask={"ratio": 0.25},
    )
    old, new = (jax.tree.leaves(v["params"]) for v in (task.original, both.variables))
    frozen = sum(int(np.sum(a == np.asarray(b))) for a, b in zip(old, new, strict=True))
    size = sum(leaf.size for leaf in old)
    assert frozen == size - round(0.25 * size)


def test_cra_under_any_relabelling_method():
    """Amnesiac with CRA: its objective on forgotten malignant examples."""
    task = toy.task()
    settings = toy.settings("amnesiac", cra={"target": "entropy"})
    made = next(METHODS["amnesiac"].passes(task, settings))
    assert made.examples["malignant"].sum() == np.sum(task.labels[:10] == 2)


@pytest.mark.parametrize(
    "names, message",
    [
        (("finetune",), "must be one name, or two or more different ones"),
        (("finetune", "finetune"), "must be one name, or two or more different ones"),
        (("finetune", "ssd"), "ssd starts from the original or from other values"),
        (("gradient_ascent", "cf_k"), "cf_k starts from the original or from other values"),
        (("finetune", "salun_soft"), "salun_soft starts from the original or from other values"),
        (("brought", "finetune"), "brought unlearns nothing; leave it out"),
        (("ssd", "finetun"), "unknown method 'finetun': did you mean"),
    ],
)
def test_stages_that_cannot_follow_each_other(names, message):
    with pytest.raises(UserError, match=message):
        find(names)


def test_a_stage_that_starts_anew_must_be_the_first():
    with pytest.raises(UserError, match="retrain starts from the original or from other values"):
        staged(toy.task(), method=("finetune", "retrain"), finetune={"epochs": 1})


def test_a_stage_that_must_be_the_first_by_its_settings_is_refused_before_anything_is_trained():
    head = {"part": "head", "backbone_never_saw_forget": True}

    def check(names, settings):
        entry = config_lib.methods(it={"method": names, "noisy_finetune": settings})["it"]
        find(names).check(entry, None, ())

    check(("noisy_finetune", "finetune"), head)
    check(("finetune", "noisy_finetune"), {})
    with pytest.raises(UserError, match="noisy_finetune starts from the original"):
        check(("finetune", "noisy_finetune"), head)


def test_a_stages_own_check_says_its_name():
    names = ("amun", "finetune")
    entry = config_lib.methods(it={"method": names})["it"]
    find(names).check(entry, None, ("crop_flip",))
    with pytest.raises(UserError, match="amun trains on images of its own and cannot be combined"):
        find(names).check(entry, None, ("mixup",))


def test_settings_of_stages_are_checked_as_any():
    entry = {"method": ("ssd", "finetune")}
    with pytest.raises(UserError, match=r"unknown field of config\.methods\.it\.ssd 'alfa'"):
        config_lib.methods(it={**entry, "ssd": {"alfa": 1.0}})
    config = config_lib.default()
    config.methods = config_lib.methods(it={**entry, "finetune": {"lr": -1.0}})
    with pytest.raises(UserError, match=r"config\.methods\.it\.finetune\.lr must be"):
        config_lib.check(config)


@pytest.mark.slow
def test_a_run_with_stages(tmp_path):
    """From a config to its table, and once more from its folder."""
    path = toy.write_npz(tmp_path / "data.npz")
    entry = {"method": ("ssd", "finetune"), "finetune": {"epochs": 1}, "batch_size": 16}
    config = toy.experiment_config(path, ssd_finetune=entry)
    report = run(config, tmp_path / "out")
    assert "ssd_finetune" in report["models"]
    assert run(config, tmp_path / "out")["models"] == report["models"]
