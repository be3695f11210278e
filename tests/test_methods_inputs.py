"""Methods that look at images' neighbours or make images, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxunlearn import training
from jaxunlearn.errors import UserError
from jaxunlearn.methods import (
    METHODS,
    amun,
    boundary_expand,
    boundary_shrink,
    mu_mis,
    pixels,
    unsir,
)
from jaxunlearn.models.model import shipped

ONE_STEP = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd"}


# Boundary shrink.


@pytest.mark.parametrize("epsilon", [0.0, 10 / 255, 60 / 255])
def test_the_class_across_the_boundary_by_hand(epsilon):
    """x + ε · sign(W (p − e_y)) in levels of 0 to 1, cut to them: of the images as they are."""
    task = toy.linear_task()
    w, x = task.original["params"]["w"].astype(np.float64), toy.inputs(task)[:10]
    slope = (toy.softmax(x @ w) - np.eye(3)[task.labels[:10]]) @ w.T
    levels = np.clip(np.round(255 * ((x + 1) / 2 + epsilon * np.sign(slope))) / 255, 0, 1)
    expected = ((2 * levels - 1) @ w).argmax(1)
    found = boundary_shrink.nearest_classes(task, epsilon)
    assert (found == expected).all()
    if not epsilon:
        assert (found == (x @ w).argmax(1)).all()


def test_two_classes_are_crossed_where_the_margin_is_below_the_steps_reach():
    """Of images that neither rounding nor cutting touches: margin < ε · ‖w_0 − w_1‖₁."""
    labels = np.arange(40, dtype=np.int32) % 2
    images = np.random.default_rng(0).integers(60, 196, (40, 8, 8, 1)).astype(np.uint8)
    w = np.random.default_rng(1).normal(0, 0.05, (64, 2)).astype(np.float32)
    task = toy.linear_task(
        images=images, labels=labels, num_classes=2, original={"params": {"w": w}}
    )
    x = toy.inputs(task)[:10]
    margin = (x @ w)[np.arange(10), labels[:10]] - (x @ w)[np.arange(10), 1 - labels[:10]]
    for epsilon in np.array([2, 5, 10, 20]) / 255:
        reach = 2 * epsilon * np.abs(w[:, 0] - w[:, 1]).sum()  # 2: inputs are 2 · level − 1
        crossed = boundary_shrink.nearest_classes(task, epsilon) != labels[:10]
        assert (crossed == (margin < reach)).all()


def test_boundary_shrink_teaches_forget_alone_the_new_labels():
    task = toy.linear_task()
    made = list(METHODS["boundary_shrink"].passes(task, toy.settings("boundary_shrink")))
    for action in made:
        assert (action.indices == task.forget).all()
        assert (action.labels[10:] == task.labels[10:]).all()
        assert (action.labels[:10] == boundary_shrink.nearest_classes(task, 0.1)).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_boundary_shrink_leaves_batch_statistics_alone_where_asked(frozen):
    changes = {} if not frozen else {"frozen_statistics": True}
    found = toy.unlearn("boundary_shrink", **changes).variables["batch_stats"]
    assert toy.same_bits(found, toy.initial()["batch_stats"]) is frozen


# Boundary expand.


def test_the_widened_model_gives_the_originals_logits_and_one_more():
    task = toy.task_for("boundary_expand")
    wide, model = boundary_expand.expanded(task), toy.tiny_model()
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    logits, _ = boundary_expand.widened(model).apply(wide, images, False)
    narrow, _ = model.apply(task.original, images, False)
    extra = wide["params"][boundary_expand.EXTRA]
    assert (logits[:, :-1] == narrow).all()
    by_hand = model.features(task.original, images) @ extra["kernel"] + extra["bias"][None]
    np.testing.assert_allclose(logits[:, -1:], by_hand, rtol=1e-5, atol=1e-6)


def test_a_step_of_boundary_expand_by_hand():
    task = toy.task_for("boundary_expand", forget=np.arange(16), retain=np.arange(16, 40))
    wide, model = boundary_expand.expanded(task), toy.tiny_model()
    images = (np.asarray(task.bench.images)[:16].astype(np.float32) / 255 - 0.5) / 0.5

    def loss(params):
        net = {"params": params, "batch_stats": task.original["batch_stats"]}
        extra = wide["params"][boundary_expand.EXTRA]
        logits, _ = model.apply(net, images, False)
        more = model.features(net, images) @ extra["kernel"] + extra["bias"][None]
        wider = jnp.concatenate([logits, more], 1)
        return jnp.mean(jax.nn.logsumexp(wider, 1) - wider[:, -1])

    slope = jax.grad(loss)(task.original["params"])
    found = toy.unlearn("boundary_expand", task, lr=0.1, **ONE_STEP).variables["params"]
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, task.original["params"], slope)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-6)


def test_boundary_expand_needs_features():
    with pytest.raises(UserError, match=r"boundary_expand adds an output .* tells no features"):
        toy.unlearn("boundary_expand", toy.linear_task())


# UNSIR.


def test_the_noises_gradient_by_hand():
    """−∂CE/∂z + 0.2 · z/b, of a linear model."""
    task = toy.linear_task()
    w, z = task.original["params"]["w"], np.random.default_rng(0).normal(size=(6, 8, 8, 1))
    z = z.astype(np.float32)
    labels = np.array([1, 1, 1, 2, 2, 2], np.int32)
    found = task.sweep(
        unsir.noise_gradient, task.retain[:1], context={"noise": z, "labels": labels}
    )
    flat = z.reshape(6, 64)
    by_hand = -(toy.softmax(flat @ w) - np.eye(3)[labels]) @ w.T / 6 + 0.2 * flat / 6
    np.testing.assert_allclose(found.reshape(6, 64), by_hand, rtol=1e-4, atol=1e-6)


def test_noise_is_learned_for_each_class_under_its_own_label():
    labels = toy.images_and_labels()[1]
    two = {"forget": np.flatnonzero(labels > 0), "retain": np.flatnonzero(labels == 0)}
    task = toy.linear_task(**two)
    settings = toy.settings("unsir", noise_count=4, noise_copies=3, noise_steps=30, per_class=5)
    impair, fresh, repair = METHODS["unsir"].passes(task, settings)
    assert impair.labels[40:].tolist() == [1] * 4 + [2] * 4
    assert np.bincount(impair.indices, minlength=48)[40:].tolist() == [3] * 8
    assert isinstance(fresh, training.Replace)
    assert len(repair.indices) == 5 and set(repair.indices) <= set(task.retain)
    assert not set(task.forget) & set(impair.indices)
    z = pixels.to_seen(impair.images / 255, pixels.scale(task)).reshape(8, 64)
    p = toy.softmax(z @ task.original["params"]["w"])
    assert p[np.arange(8), impair.labels[40:]].max() < 0.05  # the original errs on all of it


# AMUN.


def two_classes(sure=1, **changes):
    """A linear problem of two classes, whose nearest boundary is known; logits times `sure`."""
    labels = np.arange(40, dtype=np.int32) % 2
    images = np.random.default_rng(0).integers(60, 196, (40, 8, 8, 1)).astype(np.uint8)
    w = sure * np.random.default_rng(1).normal(0, 0.05, (64, 2)).astype(np.float32)
    return toy.linear_task(
        images=images, labels=labels, num_classes=2, original={"params": {"w": w}}, **changes
    )


@pytest.mark.parametrize("sure", [1, 1000])
def test_the_neighbours_are_the_nearest_of_another_label(sure):
    """‖x' − x‖ is within a step of margin / ‖w_y − w_j‖, and what is wrong already stays."""
    task = two_classes(sure)
    w, x, labels = task.original["params"]["w"], toy.inputs(task)[:10], task.labels[:10]
    out = x @ w
    margin = out[np.arange(10), labels] - out[np.arange(10), 1 - labels]
    nearest = margin / np.linalg.norm(w[:, 0] - w[:, 1]) / 2  # 2: inputs are 2 · level − 1
    settings = toy.settings("amun", radius=0.04, steps=50)
    levels, wrong = amun.neighbours(task, settings)
    distance = np.linalg.norm(
        (levels - np.asarray(task.bench.images)[:10] / 255).reshape(10, -1), axis=1
    )
    right = margin > 0
    assert 2 < right.sum() < 10
    assert (wrong != labels).all()
    assert (distance[~right] < 1e-5).all()
    step = 0.004 * 2 ** np.maximum(0, np.ceil(np.log2(nearest[right] / 0.04)))
    assert (distance[right] >= nearest[right] - 1e-4).all()
    assert (distance[right] <= nearest[right] + step + 1e-4).all()
    assert ((2 * levels.reshape(10, -1) - 1) @ w).argmax(1).tolist() == wrong.tolist()


def test_the_margins_gradient_points_where_cross_entropys_does():
    logits = jnp.array([[1.0, 0.5, -2.0], [0.0, 3.0, 1.0]])
    targets = jnp.eye(3)[jnp.array([0, 1])]
    slope, of_margin = (
        np.asarray(jax.grad(lambda z, f=f: jnp.sum(f(z, targets)))(logits))
        for f in (optax.softmax_cross_entropy, pixels.margin)
    )
    p = np.exp(-optax.softmax_cross_entropy(logits, targets))
    np.testing.assert_allclose(slope, (1 - p)[:, None] * of_margin, rtol=1e-5)
    by_hand = np.log(np.exp(0.5) + np.exp(-2)) - 1, np.log(1 + np.e) - 3
    np.testing.assert_allclose(pixels.margin(logits, targets), by_hand, rtol=1e-5)


def test_what_boundary_shrink_finds_does_not_depend_on_how_sure_a_linear_model_is():
    found = [boundary_shrink.nearest_classes(two_classes(sure), 0.1) for sure in (1, 1000)]
    assert (found[0] == found[1]).all() and (found[0] != two_classes().labels[:10]).any()


def test_amun_trains_on_neighbours_forget_and_retain_at_a_falling_rate():
    task = two_classes()
    settings = toy.settings("amun", epochs=3, lr_epochs=2)
    made = list(METHODS["amun"].passes(task, settings))
    assert [action.lr for action in made] == pytest.approx([0.01, 0.01, 0.001])
    assert sorted(made[0].indices) == list(range(50))
    assert (made[0].labels[:40] == task.labels).all()
    levels, wrong = amun.neighbours(task, settings)
    assert (made[0].labels[40:] == wrong).all()
    np.testing.assert_allclose(made[0].images, np.asarray(levels) * 255, atol=0.5 + 1e-3)
    assert made[0].images.shape == (10, 8, 8, 1) and made[0].images.max() <= 255
    (alone,) = METHODS["amun"].passes(task, toy.settings("amun", epochs=1, keep_forget=False))
    assert not set(alone.indices) & set(task.forget)


# MU-Mis.


def test_mu_mis_loss_of_a_linear_model():
    """‖W_c‖² − ‖W_c'‖² exactly, its gradient 2 W_c and −2 W_c'."""
    w = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 2, 2, 1)).astype(np.float32)
    for label in (0, 1):
        batch = training.Batch(
            jnp.asarray(x),
            jax.nn.one_hot(jnp.full(3, label), 2),
            jnp.ones(3),
            {},
            key=jax.random.key(0),
            forward=lambda params, images: images.reshape(len(images), -1) @ params,
        )

        def loss(params, batch=batch):
            return mu_mis.objective(params, x.reshape(3, -1) @ params, batch, jnp.int32(2))

        value, slope = jax.value_and_grad(loss)(jnp.asarray(w))
        sizes = np.sum(w**2, 0)
        assert value == pytest.approx(sizes[label] - sizes[1 - label], rel=1e-4)
        sign = np.where(np.arange(2) == label, 1, -1)
        np.testing.assert_allclose(slope, 2 * w * sign, rtol=1e-4)


def test_the_other_class_is_uniform_among_the_others():
    drawn = mu_mis.another(jax.random.key(0), jnp.full(3000, 1), 3)
    assert set(np.unique(drawn)) == {0, 2}
    assert abs(np.mean(drawn == 0) - 0.5) < 0.03


def test_mu_mis_stops_where_sensitivity_has_recovered():
    series, fired = [1, 0.8, 0.6, 0.9, 1.1], []
    for i in range(1, len(series) + 1):
        fired.append(mu_mis.has_recovered(series[:i], 1.0))
    assert fired == [False] * 4 + [True]
    assert mu_mis.has_recovered(series[:4], 0.8)


# All that look at the number of outputs.


@pytest.mark.parametrize(
    "method", ["bad_teacher", "boundary_expand", "cfw", "fcs", "fisher", "lotus", "mu_mis", "prmq"]
)
def test_a_model_may_have_more_outputs_than_there_are_classes(method):
    wide = shipped(toy.Tiny, num_classes=5)
    start = jax.device_get(jax.jit(wide.init)(jax.random.key(0), np.zeros((1, 8, 8, 1))))
    task = toy.task_for(method, the_setup=toy.setup(model=wide), original=start)
    assert task.num_logits == 5 and task.num_classes == 3
    kernel = start["params"]["Dense_0"]["kernel"]
    result = jax.device_get(toy.unlearn(method, task).variables)
    assert jax.tree.structure(result) == jax.tree.structure(start)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    if method == "mu_mis":  # of one more logit nothing is looked at
        assert not np.array_equal(result["params"]["Dense_0"]["kernel"][:, :3], kernel[:, :3])
        assert np.array_equal(result["params"]["Dense_0"]["kernel"][:, 3:], kernel[:, 3:])
    if method == "boundary_expand":
        made = [each for each in METHODS[method].passes(task, toy.settings(method))]
        assert set(made[1].labels) == {5}


@pytest.mark.parametrize("policy", ["mixup", "cutmix"])
@pytest.mark.parametrize("method", ["amun", "bad_teacher", "delete", "lotus", "mu_mis", "unsir"])
def test_examples_with_images_teachers_or_classes_of_their_own_are_not_mixed(method, policy):
    settings = toy.settings(method)
    METHODS[method].check(settings, None, ["crop_flip"])
    with pytest.raises(UserError, match=f"^{method} .* cannot be combined with {policy}, which"):
        METHODS[method].check(settings, None, ["crop_flip", policy])
