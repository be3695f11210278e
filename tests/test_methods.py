import dataclasses
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toy

from jaxunlearn import config as config_lib
from jaxunlearn import training
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError
from jaxunlearn.methods import METHODS, actions, cra, describe, random_label
from jaxunlearn.methods.method import NEEDS
from jaxunlearn.methods.saliency import saliency_mask

# What every method must keep; a new method joins by being in the table.


# Settings with which a method that has no epochs, or that does more than train, changes nothing.
NOTHING = {
    "assd": {"dampening": 1e30},
    "fisher": {"alpha": 0.0},
    "influence": {"iterations": 0},
    "lfssd": {"alpha": 1e30},
    "ssd": {"alpha": 1e30},
    "svd_projection": {"alpha_forget": 0.0},
    "unsir": {"impair_epochs": 0, "repair_epochs": 0},
}
DRAW_NOTHING = ("assd", "influence", "lfssd", "ssd")  # the same for every seed
# What does not train, or not at the end.
EDITS = tuple(name for name, method in METHODS.items() if "optimizer" in method.reads)
# Settings with which every method changes something on the toy problem, and soon.
SOMETHING = {
    "cf_k": {"k": 2},
    "eu_k": {"k": 2},
    "amun": {"steps": 3, "radius": 1.0},
    "lfssd": {"alpha": 0.5},
    "lotus": {"stop": 2.0},
    "scrub": {"lr": 0.01},
    "ssd": {"alpha": 0.5},
    "unsir": {"noise_steps": 2, "noise_count": 4, "noise_copies": 2},
}


def run(method, task=None, **changes):
    """The method's result on the toy problem."""
    return toy.unlearn(
        method, task or toy.task_for(method), **{**SOMETHING.get(method, {}), **changes}
    )


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


def test_same_seed_same_bits_and_another_seed_another_model(method):
    first, again = run(method).variables, run(method).variables
    assert toy.same_bits(first, again)
    other = run(method, toy.task_for(method, seed=1)).variables
    assert toy.same_bits(first, other) is (method in DRAW_NOTHING)


def test_order_of_the_methods_does_not_matter():
    """All in turn and all in reverse, on one task: what one leaves behind reaches no other."""
    tasks = {name: toy.task_for(name) for name in METHODS}
    forwards = {name: run(name, task).variables for name, task in tasks.items()}
    for name in reversed(METHODS):
        assert toy.same_bits(forwards[name], run(name, tasks[name]).variables)


def test_an_empty_budget_returns_what_it_was_given(method):
    nothing = NOTHING.get(method, {"epochs": 0})
    assert toy.same_bits(run(method, **nothing).variables, toy.tiny_initial())


@pytest.mark.parametrize("compat", [False, True])
def test_any_method_leaves_what_a_mask_freezes_bit_identical(method, compat):
    """Momentum and weight decay included; under compat these move it, but no replacement does."""
    task, mask_settings = toy.task_for(method), {"ratio": 0.5, "compat": compat}
    changes = {"mask": mask_settings, "weight_decay": 0.05}
    result = run(method, task, **changes)
    mask = saliency_mask(task, toy.settings(method, **changes).mask)
    moved = {True: 0, False: 0}
    for m, before, after in zip(
        jax.tree.leaves(jax.device_get(mask)),
        jax.tree.leaves(toy.tiny_initial()["params"]),
        jax.tree.leaves(jax.device_get(result.variables["params"])),
        strict=True,
    ):
        differs = before.view(np.int32) != np.asarray(after).view(np.int32)
        moved[True] += differs[m].sum()
        moved[False] += differs[~m].sum()
    assert moved[True] > 0
    assert bool(moved[False]) is (compat and method not in EDITS)


def test_structure_shapes_and_types_are_kept(method):
    before, after = toy.tiny_initial(), run(method).variables
    assert jax.tree.structure(before) == jax.tree.structure(jax.device_get(after))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and np.isfinite(b).all()


def test_the_second_run_compiles_nothing(method):
    task = toy.task_for(method)
    run(method, task)
    compiled = len(task.bench.programs)
    run(method, task, **({"lr": 0.001} if "lr" in METHODS[method].defaults else {}))
    assert len(task.bench.programs) == compiled


def test_the_original_changes(method):
    changed = run(method).variables
    assert not toy.same_bits(changed, toy.tiny_initial())


def test_a_method_reads_only_what_it_says_it_needs(method):
    """Other images, or other labels, in place of those that it does not need: the same bits."""
    task = toy.task_for(method, malignant=())
    images, labels = toy.images_and_labels()
    noise = np.random.default_rng(9).integers(0, 256, images.shape).astype(np.uint8)
    forgotten = np.isin(np.arange(40), task.forget)[:, None, None, None]
    shuffled = ((labels + 1 + np.arange(40) % 2) % toy.NUM_CLASSES).astype(np.int32)
    poisoned = {
        "forget": {"images": np.where(forgotten, noise, images)},
        "retain": {"images": np.where(forgotten, images, noise)},
        "val": {"val": Examples(noise[:30], shuffled[:30])},
        "labels": {"labels": shuffled},
    }
    sets = {"forget": task.forget, "retain": task.retain, "malignant": ()}
    settings = {"rewind": True} if method == "scrub" else {}
    expected = run(method, task, **settings).variables
    for need in set(NEEDS) - set(METHODS[method].needs):
        changed = toy.task_for(method, **{**sets, **poisoned[need]})
        assert toy.same_bits(expected, run(method, changed, **settings).variables), need


def test_the_page_of_methods_is_what_the_code_says():
    page = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"
    assert page.read_text() == describe.page(), "python -m jaxunlearn.methods.describe"


def test_a_method_reads_nothing_that_earlier_requests_took(method):
    """Examples in neither forget nor retain, of other images and labels: the same bits."""
    task = toy.task_for(method)
    sets = {"forget": task.forget, "retain": task.retain[:-5]}
    images, labels = toy.images_and_labels()
    images[task.retain[-5:]] = 255 - images[task.retain[-5:]]
    labels[task.retain[-5:]] = (labels[task.retain[-5:]] + 1) % toy.NUM_CLASSES
    expected = run(method, toy.task_for(method, **sets)).variables
    changed = run(method, toy.task_for(method, **sets, images=images, labels=labels)).variables
    assert toy.same_bits(expected, changed)


def test_every_setting_is_read_and_documented(method):
    text = describe.text(METHODS[method])
    assert METHODS[method].cost and set(METHODS[method].needs) <= set(NEEDS)
    assert "http" in text or method == "retrain"
    assert ": " in text.partition("\n")[0]
    for rule in METHODS[method].rules:
        value = METHODS[method].defaults
        for part in rule.split("."):
            value = value[part]
        assert METHODS[method].rules[rule][0](value)


# Retrain.


def test_retrain_owes_nothing_to_the_original():
    other = jax.tree.map(lambda leaf: leaf + 1, toy.initial())
    assert toy.same_bits(
        toy.unlearn("retrain").variables,
        toy.unlearn("retrain", toy.task(original=other)).variables,
    )


# Random labels.


def test_random_labels_are_uniform_over_all_classes_as_published():
    drawn = [random_label.relabel(toy.task(seed=s), False)[:10] for s in range(600)]
    counts = np.bincount(np.concatenate(drawn), minlength=toy.NUM_CLASSES)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_random_labels_without_the_true_one_are_uniform_over_the_others():
    task = toy.task()
    shift = [
        (random_label.relabel(toy.task(seed=s), True) - task.labels)[:10] % toy.NUM_CLASSES
        for s in range(600)
    ]
    counts = np.bincount(np.concatenate(shift), minlength=toy.NUM_CLASSES)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("exclude_true", [True, False])
def test_random_labels_are_of_classes_that_no_earlier_request_took(exclude_true):
    labels = toy.images_and_labels()[1]
    left = np.flatnonzero(labels != 1)
    task = toy.task(forget=left[:10], retain=left[10:])
    drawn = np.stack(
        [
            random_label.relabel(dataclasses.replace(task, seed=seed), exclude_true)[task.forget]
            for seed in range(60)
        ]
    )
    truth = labels[task.forget]
    if exclude_true:
        assert (drawn == 2 - truth).all()
    else:
        assert set(drawn.ravel()) == {0, 2} and abs((drawn == truth).mean() - 0.5) < 0.1
    one = np.flatnonzero(labels == 0)  # a class alone: the others, though they are gone
    alone = random_label.relabel(toy.task(forget=one[:5], retain=one[5:]), exclude_true)[one[:5]]
    assert not exclude_true or alone.all()


def test_random_labels_leave_the_retain_set_and_the_truth_alone():
    task = toy.task()
    before = task.labels.copy()
    assert (random_label.relabel(task, True)[10:] == before[10:]).all()
    assert (task.labels == before).all()


def test_labels_are_drawn_as_a_replay_in_numpy_draws_them():
    """Anew in every epoch, over all classes, from a stream of their own: by the published code."""
    task = toy.task(seed=5)
    passes = METHODS["random_label"].passes(task, toy.settings("random_label", epochs=3))
    for epoch, action in enumerate(passes):
        rng = np.random.default_rng([zlib.crc32(b"relabel"), 5, epoch])
        expected = task.labels.copy()
        for example, label in zip(range(10), rng.integers(0, toy.NUM_CLASSES, 10), strict=True):
            expected[example] = label
        assert (action.labels == expected).all()
        assert sorted(action.indices) == list(range(40))  # one shuffled stream of both
    assert epoch == 2


def test_labels_are_drawn_once_or_every_epoch():
    for every_epoch in (False, True):
        settings = toy.settings("random_label", epochs=4, relabel={"every_epoch": every_epoch})
        labels = [p.labels for p in METHODS["random_label"].passes(toy.task(), settings)]
        same = all((labels[0] == other).all() for other in labels[1:])
        assert same is not every_epoch


def test_forget_first_runs_the_forget_set_then_the_retain_set():
    settings = toy.settings("random_label", relabel={"order": "forget_first"})
    task = toy.task()
    passes = list(METHODS["random_label"].passes(task, settings))
    assert [len(p.indices) for p in passes] == [10, 30, 10, 30]
    assert {p.total_passes for p in passes} == {4}
    (mixed, _) = METHODS["random_label"].passes(task, toy.settings("random_label"))
    assert sorted(mixed.indices) == list(range(40))


# SalUn.


def test_salun_with_a_whole_mask_is_random_label():
    whole = toy.unlearn("salun", mask={"ratio": 1.0})
    assert toy.same_bits(whole.variables, toy.unlearn("random_label").variables)


# SalUn-CRA.


@pytest.mark.parametrize("kind", cra.TARGETS[1:])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_cra_objective_equals_its_formula_in_numpy(kind, weight):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 2
    labels = np.array([0, 1, 2, 3, 2, 1])
    unsure = np.array([False, True, True, False, True, False])
    real = np.array([1, 1, 1, 1, 1, 0], np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = []
    for row in range(5):  # the sixth is padding
        if not unsure[row]:
            losses.append(-np.log(p[row, labels[row]]))
        elif kind == "entropy":
            losses.append(weight * np.sum(p[row] * np.log(p[row] * 4)))
        else:
            q = np.full(4, 0.25) if kind == "uniform" else np.array([1 / 6, 1 / 6, 0.5, 1 / 6])
            losses.append(weight * np.sum(q * np.log(q / p[row])))
    objective = cra.entropy_objective if kind == "entropy" else cra.target_objective
    batch = training.Batch(
        None, jax.nn.one_hot(labels, 4), jnp.asarray(real), {"malignant": jnp.asarray(unsure)}
    )
    context = {
        "weight": jnp.float32(weight),
        "target": jnp.asarray(cra.target(kind, 4, (2,))),
    }
    value = objective(None, jnp.asarray(logits), batch, context)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)


def test_risk_neutral_target_puts_half_on_the_malignant_classes():
    q = cra.target("risk_neutral", 7, (0, 1, 4))
    assert q.sum() == pytest.approx(1) and q[[0, 1, 4]].sum() == pytest.approx(0.5)
    assert cra.target("uniform", 7, (0, 1, 4))[[0, 1, 4]].sum() == pytest.approx(3 / 7)


def test_cra_marks_the_forgotten_malignant_examples_only():
    task = toy.task()
    (action, _) = METHODS["salun_cra"].passes(task, toy.settings("salun_cra"))
    marked = np.flatnonzero(action.examples["malignant"])
    assert marked.tolist() == [i for i in range(10) if task.labels[i] == 2]
    assert marked.size


@pytest.mark.parametrize(
    "kind, expected",
    [("entropy", [1 / 3] * 3), ("uniform", [1 / 3] * 3), ("risk_neutral", [0.25, 0.25, 0.5])],
)
def test_descending_the_cra_objective_ends_at_its_target(kind, expected):
    objective = cra.entropy_objective if kind == "entropy" else cra.target_objective
    batch = training.Batch(
        None,
        jax.nn.one_hot(jnp.array([2, 1]), 3),
        jnp.ones(2),
        {"malignant": jnp.array([True, False])},
    )
    context = {"weight": jnp.float32(1), "target": jnp.asarray(cra.target(kind, 3, (2,)))}
    gradient = jax.jit(jax.grad(lambda logits: objective(None, logits, batch, context)))
    logits = jnp.array([[0.0, -1.0, 2.0], [1.0, 0.0, 0.5]])
    for _ in range(200):
        logits = logits - gradient(logits)
    p = jax.nn.softmax(logits)
    np.testing.assert_allclose(p[0], expected, atol=0.02)
    assert p[1, 1] > 0.95  # the other example, by cross-entropy


@pytest.mark.parametrize("kind", ["entropy", "uniform"])
def test_cra_pulls_to_no_class_that_the_data_have_not(kind):
    objective = cra.entropy_objective if kind == "entropy" else cra.target_objective
    marked = {"malignant": jnp.array([True])}
    batch = training.Batch(None, jax.nn.one_hot(jnp.array([1]), 9), jnp.ones(1), marked)
    context = {"weight": jnp.float32(1), "target": jnp.asarray(cra.target(kind, 2, (1,)))}
    gradient = jax.jit(jax.grad(lambda logits: objective(None, logits, batch, context)))
    logits = jnp.array([[1.0, 3.0, *[0.0] * 7]])
    for _ in range(200):
        logits = logits - gradient(logits)
    assert abs(logits[0, 0] - logits[0, 1]) < 0.01
    if kind == "entropy":
        assert (logits[0, 2:] == 0).all()
    else:
        assert jax.nn.softmax(logits)[0, :2].sum() > 0.95


@pytest.mark.parametrize("target", ["uniform", "risk_neutral"])
def test_cra_leaves_forgotten_malignant_examples_unsure_where_finetune_does_not(target):
    """The entropy's gradient fades where a model is certain, as on this easy problem."""

    def entropy(variables):
        logits = training.predict(variables, task.bench.images, task.bench, 40)
        p = np.asarray(jax.nn.softmax(jnp.asarray(logits[rows])))
        return -(p * np.log(p)).sum(1).mean()

    task = toy.task()
    trained = toy.unlearn("retrain", task, epochs=8, lr=0.1, batch_size=16).variables
    task = toy.task(original=jax.device_get(trained))
    rows = [i for i in range(10) if task.labels[i] == 2]
    values = {"epochs": 20, "lr": 0.05}
    unlearned = toy.unlearn("salun_cra", task, cra={"weight": 3.0, "target": target}, **values)
    finetuned = toy.unlearn("finetune", task, **values)
    assert entropy(unlearned.variables) > 0.2 > 10 * entropy(finetuned.variables)


def dataset(malignant):
    examples = Examples(*toy.images_and_labels())
    return Dataset("toy", examples, examples, examples, ("a", "b", "c"), malignant)


@pytest.mark.parametrize("malignant", [(), (0, 1, 2)])
def test_cra_without_both_kinds_is_a_users_error(malignant):
    with pytest.raises(
        UserError, match=r"needs at least one malignant and one benign .*data\.malig"
    ):
        METHODS["salun_cra"].check(toy.settings("salun_cra"), dataset(malignant), ())


@pytest.mark.parametrize("policy", ["mixup", "cutmix"])
def test_cra_does_not_take_mixed_examples(policy):
    settings, data = toy.settings("salun_cra"), dataset((2,))
    with pytest.raises(UserError, match=f"combined with {policy}, which mixes .*; remove one of"):
        METHODS["salun_cra"].check(settings, data, ("crop_flip", policy))
    METHODS["salun_cra"].check(settings, data, ("crop_flip", "trivialaugment"))
    METHODS["random_label"].check(toy.settings("random_label"), dataset(()), (policy,))


def test_milestones_are_the_papers():
    config = toy.settings("retrain", epochs=182, lr=1.0)
    _, *actions = METHODS["retrain"].passes(toy.task(), config)
    # ×0.1 at epochs 91 and 136 of 182
    expected = [1.0] * 91 + [0.1] * 45 + [0.01] * 46
    assert [action.lr for action in actions] == pytest.approx(expected)


def test_the_epoch_kept_is_the_first_of_the_best_on_validation():
    def train(epochs, keep):
        task = toy.task(the_setup=toy.setup(batch_size=16))
        values = {"epochs": epochs, "lr": 0.1, "schedule": "constant", "batch_size": 16}
        return toy.unlearn("retrain", task, keep=keep, **values).variables

    task = toy.task()
    by_epoch = [train(epochs, "last") for epochs in range(1, 11)]
    accuracies = [task.val_accuracy(variables) for variables in by_epoch]
    best = int(np.argmax(accuracies))
    assert best < 9  # earlier than the last
    assert toy.same_bits(train(10, "best_val"), by_epoch[best])


def test_cra_is_an_objective_that_any_relabelling_method_takes():
    by_config = toy.unlearn("random_label", cra={"target": "entropy"}, mask={"ratio": 0.5})
    assert toy.same_bits(by_config.variables, toy.unlearn("salun_cra").variables)


# Methods of one's own.

MINE = """
from jaxunlearn.training import Pass, cross_entropy

DEFAULTS = {"epochs": 10, "lr": 0.01}

def passes(task, config):
    for _ in range(config.epochs):
        yield Pass(cross_entropy, task.retain, task.labels, config.lr, config.epochs)
    return {"epsilon": 1.5}
"""


def test_a_method_of_ones_own_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "methods_of_ones_own.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    settings = config_lib.methods(mine={"method": "methods_of_ones_own:passes", "epochs": 2})[
        "mine"
    ]
    task = toy.task()
    mine = training.run(actions(task, settings), task.original, task.bench, stage="unlearn", seed=0)
    assert toy.same_bits(mine.variables, toy.unlearn("finetune").variables)
    assert mine.claims == {"epsilon": 1.5}
