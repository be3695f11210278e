"""Methods that descend and ascend, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import training
from jaxunlearn.methods import METHODS, munba, random_label, salun_soft, sfron, ssd

ONE_STEP = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0}


def whole_batch(**changes):
    """Softmax regression where a pass is one step."""
    return toy.linear_task(batch_size=40, **changes)


def start(task):
    return task.original["params"]["w"].astype(np.float64)


def gradient(task, rows, labels=None):
    labels = task.labels if labels is None else labels
    return toy.cross_entropy_gradient(toy.inputs(task)[rows], labels[rows], start(task))


# Gradient ascent.


def test_a_step_of_gradient_ascent_by_hand_and_clipped():
    task = whole_batch()
    w, g = start(task), gradient(task, task.forget)
    found = toy.weights(toy.unlearn("gradient_ascent", task, lr=0.1, clip=0.0, **ONE_STEP))
    np.testing.assert_allclose(found, w + 0.1 * g, rtol=1e-4, atol=1e-7)
    norm = np.linalg.norm(g)
    found = toy.weights(toy.unlearn("gradient_ascent", task, lr=0.1, clip=norm / 4, **ONE_STEP))
    np.testing.assert_allclose(found, w + 0.1 * g / 4, rtol=1e-4, atol=1e-7)


def test_a_bound_stops_the_ascent():
    task = whole_batch()
    reached = toy.unlearn("gradient_ascent", task, lr=0.1, bound=1e-3, **ONE_STEP)
    assert toy.same_bits(reached.variables, task.original)
    free, bounded = (
        toy.unlearn("gradient_ascent", task, lr=0.1, bound=bound, **ONE_STEP)
        for bound in (0.0, 9.0)
    )
    np.testing.assert_allclose(toy.weights(free), toy.weights(bounded), rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_ascent_leaves_batch_statistics_alone_unless_asked(frozen):
    result = toy.unlearn("gradient_ascent", frozen_statistics=frozen)
    same = toy.same_bits(result.variables["batch_stats"], toy.initial()["batch_stats"])
    assert same is frozen


# Amnesiac.


def test_amnesiac_draws_wrong_labels_once():
    task = toy.task()
    passes = list(METHODS["amnesiac"].passes(task, toy.settings("amnesiac", epochs=3)))
    for action in passes:
        assert (action.labels == passes[0].labels).all()
        assert (action.labels[task.forget] != task.labels[task.forget]).all()
        assert (action.labels[task.retain] == task.labels[task.retain]).all()
    two = toy.task(labels=(task.labels > 0).astype(np.int32), num_classes=2)
    for action in METHODS["amnesiac"].passes(two, toy.settings("amnesiac")):
        assert (action.labels[two.forget] == 1 - two.labels[two.forget]).all()


# SalUn-soft.


@pytest.mark.parametrize("values", [[3, 1, 2, 2, 0, 7], [0, 0, 0], [1e-30, 1e30, 5]])
def test_the_kth_smallest(values):
    values = np.array(values, np.float32)
    for k in range(1, len(values) + 1):
        assert salun_soft.kth_smallest(values, k) == np.sort(values)[k - 1]
    assert salun_soft.kth_smallest(values, 0) == 0


def test_a_step_of_salun_soft_by_hand():
    """A step of random relabelling, whose movement is then thresholded at its median."""
    task = whole_batch()
    both = np.concatenate([task.forget, task.retain])
    w, labels = start(task), random_label.relabel(task, exclude_true=False)
    moved = -0.1 * gradient(task, both, labels)
    count = round(0.5 * moved.size)
    tau = np.sort(np.abs(moved).ravel())[count - 1]
    expected = w + np.sign(moved) * np.maximum(np.abs(moved) - tau, 0)
    found = toy.weights(toy.unlearn("salun_soft", task, lr=0.1, share=0.5, **ONE_STEP))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.sum(found == task.original["params"]["w"]) == count


def test_salun_soft_of_no_share_is_random_label_and_the_share_falls():
    task = whole_batch()
    ours, theirs = (
        toy.weights(toy.unlearn(name, task, lr=0.1, **more))
        for name, more in (("salun_soft", {"share": 0.0}), ("random_label", {}))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    settings = toy.settings("salun_soft", epochs=4, share=0.5)
    counts = [p.after[0].data[1] for p in METHODS["salun_soft"].passes(task, settings)]
    assert counts == [96, 72, 48, 24]  # of 192 weights


# MUNBa.


def test_the_bargain_solves_its_equation_and_knows_no_scale():
    rng = np.random.default_rng(0)
    for _ in range(5):
        g_r, g_f = rng.normal(size=(2, 7)).astype(np.float32)
        found = np.asarray(munba.bargain({"w": g_r}, {"w": g_f})["w"])
        cos = g_r @ g_f / np.linalg.norm(g_r) / np.linalg.norm(g_f)
        alpha = np.array([1 / np.linalg.norm(g) / np.sqrt(1 + cos) for g in (g_r, g_f)])
        gram = np.array([g_r, g_f]) @ np.array([g_r, g_f]).T
        np.testing.assert_allclose(gram @ alpha * alpha, 1, rtol=1e-5)  # G α = 1/α
        np.testing.assert_allclose(found, alpha @ np.array([g_r, g_f]), rtol=1e-4, atol=1e-6)
        assert np.linalg.norm(found) == pytest.approx(2**0.5, rel=1e-5)
        scaled = munba.bargain({"w": 100 * g_r}, {"w": g_f})["w"]
        np.testing.assert_allclose(scaled, found, rtol=1e-4, atol=1e-5)


def test_orthogonal_equal_opposite_and_absent_gradients():
    x, y = np.eye(2, dtype=np.float32)
    assert np.allclose(munba.bargain({"w": 3 * x}, {"w": y})["w"], x + y)
    assert np.allclose(munba.bargain({"w": 3 * x}, {"w": x})["w"], 2**0.5 * x)
    assert np.allclose(munba.bargain({"w": 3 * x}, {"w": -x})["w"], 0)
    assert np.isfinite(munba.bargain({"w": 0 * x}, {"w": x})["w"]).all()


def test_a_step_of_munba_by_hand():
    """Ten of each are paired: a step along the bisector of the two gradients, of norm lr."""
    task = whole_batch(retain=np.arange(10, 20))
    w, labels = start(task), random_label.relabel(task, exclude_true=False)
    g_r, g_f = gradient(task, task.retain), gradient(task, task.forget, labels)
    both = g_r / np.linalg.norm(g_r) + g_f / np.linalg.norm(g_f)
    found = toy.weights(toy.unlearn("munba", task, lr=0.1, **ONE_STEP))
    np.testing.assert_allclose(found, w - 0.1 * both / np.linalg.norm(both), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "forget, size, paired, rest",
    [
        (10, 5, (10, 10), 20),
        (30, 16, (30, 10), 0),
        (20, 10, (20, 20), 0),
        (1, 16, (1, 16), 23),  # one image bargains with a whole batch
        (9, 8, (9, 16), 15),
    ],
)
def test_munba_pairs_forget_with_retain_and_goes_on_with_the_rest(forget, size, paired, rest):
    task = toy.task(forget=np.arange(forget), retain=np.arange(forget, 40))
    settings = toy.settings("munba", epochs=1, batch_size=size)
    made = list(METHODS["munba"].passes(task, settings))
    assert tuple(map(len, made[0].streams)) == paired
    assert sum(len(action.indices) for action in made[1:]) == rest
    assert np.isfinite(
        toy.weights(toy.unlearn("munba", toy.linear_task(forget=task.forget, retain=task.retain)))
    ).all()


# SFRon.


def batch(weight):
    return training.Batch(None, jnp.eye(3), jnp.asarray(weight, jnp.float32), {})


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_sfrons_loss_by_hand(power):
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    losses = -np.log(np.diag(toy.softmax(logits)))
    shares = np.array([1, 1, 0]) * losses**-power
    expected = -5 * np.sum(shares / shares.sum() * losses)
    context = {"power": jnp.float32(power), "strength": jnp.float32(5)}
    found, slope = jax.value_and_grad(
        lambda z: sfron.objective(None, z, batch([1, 1, 0]), context)
    )(jnp.asarray(logits))
    assert found == pytest.approx(expected, rel=1e-5)
    # The weights are constants: d/dz = −5 · w · (p − e_y).
    by_hand = -5 * (shares / shares.sum())[:, None] * (toy.softmax(logits) - np.eye(3))
    np.testing.assert_allclose(slope, by_hand, rtol=1e-4, atol=1e-6)


def test_an_example_alone_has_the_whole_weight():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    alone = [
        sfron.objective(None, logits, batch([0, 1, 0]), {"power": jnp.float32(p), "strength": 1.0})
        for p in (0.0, 0.5)
    ]
    assert alone[0] == pytest.approx(float(alone[1]), rel=1e-6)


def test_sfrons_mask_at_its_ends():
    task = toy.linear_task()
    assert sfron.salient(task, 0.0)["w"].all()
    assert not sfron.salient(task, 1e30)["w"].any()
    marked = np.asarray(sfron.salient(task, 1.0)["w"])
    assert 0 < marked.mean() < 1
    forget, retain = (ssd.importance(task, s, "batch")["w"] for s in (task.forget, task.retain))
    np.testing.assert_array_equal(marked, forget >= retain)


def test_sfron_ascends_once_for_every_few_steps_on_retain():
    task = toy.task()
    settings = toy.settings("sfron", epochs=10, batch_size=10, every=5)
    made = list(METHODS["sfron"].passes(task, settings))
    assert [len(action.indices) for action in made] == [10, 50] * 6
    assert {action.total_passes for action in made} == {12}
    assert made[0].context["strength"] == 25 and made[0].lr == 0.01
    rates = [action.lr for action in made[::2]]
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.arange(6) / 6)))
    seen = np.concatenate([action.indices for action in made[1::2]])
    assert np.bincount(seen)[task.retain].tolist() == [10] * 30


def test_a_cycle_of_sfron_has_as_many_steps_where_retain_is_smaller_than_a_batch():
    settings = toy.settings("sfron", epochs=10, batch_size=64, every=5)
    made = list(METHODS["sfron"].passes(toy.task(), settings))
    assert [len(action.indices) for action in made] == [10, 320] * 2
    seen = np.bincount(np.concatenate([action.indices for action in made[1::2]]))[10:]
    assert seen.min() >= 21 and seen.max() <= 22  # 640 of 30 in turn


def test_the_last_cycle_of_sfron_has_the_steps_that_are_left():
    settings = toy.settings("sfron", epochs=1, batch_size=10, every=2)
    made = list(METHODS["sfron"].passes(toy.task(), settings))
    assert [len(action.indices) for action in made] == [10, 20, 10, 10]
    settings = toy.settings("sfron", epochs=1, batch_size=10, every=50)
    assert [len(a.indices) for a in METHODS["sfron"].passes(toy.task(), settings)] == [10, 30]


def test_a_cycle_of_sfron_by_hand():
    """One step up on forget under the mask, then one down on retain."""
    task = whole_batch()
    w, mask = start(task), np.asarray(sfron.salient(task, 1.0)["w"])
    x, p = toy.inputs(task)[:10], toy.softmax(toy.inputs(task)[:10] @ start(task))
    labels = task.labels[:10]
    losses = -np.log(p[np.arange(10), labels])
    shares = losses**-0.5 / np.sum(losses**-0.5)
    up = mask * (x.T @ (shares[:, None] * (p - np.eye(3)[labels]))) * -2.0
    up *= min(1, 0.1 / np.linalg.norm(up))
    w = w - 0.1 * up
    down = toy.cross_entropy_gradient(toy.inputs(task)[10:], task.labels[10:], w)
    settings = {"batch_size": 30, "every": 1, "strength": 2.0, "clip": 0.1}
    found = toy.weights(toy.unlearn("sfron", task, lr=0.1, **settings, **ONE_STEP))
    np.testing.assert_allclose(found, w - 0.1 * down, rtol=1e-4, atol=1e-6)
