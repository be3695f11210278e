"""What a pass can say, on softmax regression, against the same steps in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import devices, keys, models, training

KEY = jax.random.key(5)


def train(actions, task):
    return training.run(actions, task.original, task.bench, stage="train", seed=task.seed)


def linear(**changes):
    """The linear task without momentum."""
    return toy.linear_task(momentum=0.0, **changes)


def inputs(task):
    return (np.asarray(task.bench.images).reshape(40, -1) / 255 - 0.5) / 0.5


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def replay(task, action, gradient_of):
    """The weights after the pass, by `gradient_of(w, x, rows)`."""
    w, x = np.array(task.original["params"]["w"], np.float64), inputs(task)
    shuffled = keys.stage_rng("train", task.seed, 0).permutation(action.indices)
    for start in range(0, len(shuffled), 16):
        w = w - action.lr * gradient_of(w, x, shuffled[start : start + 16])
    return w


def assert_weights(result, expected):
    np.testing.assert_allclose(result.variables["params"]["w"], expected, rtol=1e-3, atol=1e-5)


def test_soft_targets():
    task, targets = linear(), softmax(np.random.default_rng(1).normal(size=(40, 3)))
    action = training.Pass(training.cross_entropy, np.arange(33), targets, 0.2)
    assert_weights(
        train([action], task),
        replay(task, action, lambda w, x, c: x[c].T @ (softmax(x[c] @ w) - targets[c]) / len(c)),
    )


def distil(params, logits, batch, context):
    """Towards a teacher's answers on the same images."""
    teacher = jax.nn.softmax(batch.logits_of(context))
    return batch.mean(-jnp.sum(teacher * jax.nn.log_softmax(logits), -1))


def test_a_teacher_sees_the_same_images_and_another_one_compiles_nothing():
    task, w_t = linear(), np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32)
    action = training.Pass(distil, np.arange(40), task.labels, 0.2, context={"params": {"w": w_t}})
    assert_weights(
        train([action], task),
        replay(
            task,
            action,
            lambda w, x, c: x[c].T @ (softmax(x[c] @ w) - softmax(x[c] @ w_t)) / len(c),
        ),
    )
    compiled = len(task.bench.programs)
    train([dataclasses.replace(action, context={"params": {"w": 2 * w_t}})], task)
    assert len(task.bench.programs) == compiled


def black(images, targets, key):
    return images * 0, targets


def test_images_of_ones_own_follow_those_of_train_and_are_not_augmented():
    own = np.random.default_rng(3).normal(100, 60, (5, 8, 8, 1)).astype(np.float32)
    task = linear(augment=black)
    labels, indices = np.append(task.labels, [0, 1, 2, 1, 0]), np.array([3, 41, 7, 44, 40])
    action = training.Pass(training.cross_entropy, indices, labels, 0.2, images=own)
    x = np.concatenate([np.zeros((40, 64)), own.reshape(5, -1)])[indices] / 255 * 2 - 1
    w = np.array(task.original["params"]["w"], np.float64)
    assert_weights(
        train([action], task), w - 0.2 * x.T @ (softmax(x @ w) - np.eye(3)[labels[indices]]) / 5
    )


@pytest.mark.slow
def test_streams_have_batch_statistics_of_their_own_and_the_running_ones_see_both():
    task, one, two = toy.task(), np.arange(16), np.arange(16, 32)
    in_turn = [training.Pass(training.cross_entropy, i, task.labels, 0.0) for i in (one, two)]
    both = training.Pass(training.cross_entropy, (one, two), task.labels, 0.0)
    for a, b in zip(
        jax.tree.leaves(train([both], task).variables["batch_stats"]),
        jax.tree.leaves(train(in_turn, task).variables["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_four_devices_give_the_numbers_of_one_with_two_streams():
    def weights(count):
        task = toy.task(count=count)
        streams = (task.retain, task.forget)
        return train([training.Pass(training.cross_entropy, streams, task.labels, 0.05)], task)

    one, four = (jax.tree.leaves(weights(count).variables) for count in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_evaluation_mode_leaves_batch_statistics_alone():
    task = toy.task()
    action = training.Pass(training.cross_entropy, task.retain, task.labels, 0.05, train=False)
    result = train([action], task)
    assert toy.same_bits(result.variables["batch_stats"], task.original["batch_stats"])
    assert not toy.same_bits(result.variables["params"], task.original["params"])


def test_a_pass_with_a_model_of_its_own():
    """A head of one output more."""
    task = linear()
    wider = models.Model(lambda key, images: {}, toy.linear_model().apply)
    wide = np.concatenate([task.original["params"]["w"], np.zeros((64, 1), np.float32)], 1)
    labels = np.full(40, 3)
    action = training.Pass(training.cross_entropy, np.arange(16), labels, 0.1, model=wider)
    x = inputs(task)[:16]
    assert_weights(
        train([training.Replace({"params": {"w": wide}}), action], task),
        wide - 0.1 * x.T @ (softmax(x @ wide) - np.eye(4)[labels[:16]]) / 16,
    )


def sensitivity(params, logits, batch, context):
    """Mean squared gradient of the summed logits with respect to the inputs."""

    def total(images):
        return jnp.sum(batch.forward(params, images))

    return batch.mean(jnp.sum(jax.grad(total)(batch.images) ** 2, (1, 2, 3)))


def test_an_objective_may_differentiate_with_respect_to_inputs():
    """Of a linear model it is ‖W·1‖², with gradient 2·(W·1)·1ᵀ."""
    task = linear()
    w = task.original["params"]["w"].astype(np.float64)
    action = training.Pass(sensitivity, np.arange(16), task.labels, 0.01)
    assert_weights(train([action], task), w - 0.01 * 2 * w.sum(1, keepdims=True))


def drawing(params, logits, batch, context):
    """A loss whose gradient is a draw of the batch's key."""
    return jnp.sum(params["w"] * jax.random.normal(batch.key, params["w"].shape))


def test_an_objectives_draws_are_new_in_every_step_and_the_same_in_every_run():
    task = linear()
    action = training.Pass(drawing, np.arange(32), task.labels, 1.0)
    first, again = (train([action], task).variables for _ in range(2))
    assert toy.same_bits(first, again)
    moved = np.asarray(first["params"]["w"]) - task.original["params"]["w"]
    assert moved.std() == pytest.approx(np.sqrt(2), rel=0.15)  # two steps; one draw twice gives 2


# Links.


def test_clipping_shrinks_to_the_norm_and_never_lengthens():
    link = training.clip_norm(5.0)
    clipped = link.apply({"a": jnp.array([6.0]), "b": jnp.array([8.0])}, None, link.data, KEY)
    assert [float(v[0]) for v in clipped.values()] == pytest.approx([3.0, 4.0])
    assert link.apply({"a": jnp.array([3.0])}, None, link.data, KEY)["a"].tolist() == [3.0]
    assert link.apply({"a": jnp.zeros(2)}, None, link.data, KEY)["a"].tolist() == [0, 0]


def test_noise_has_its_standard_deviation_and_every_leaf_its_own():
    link = training.add_noise(0.3)
    noisy = link.apply({"a": jnp.ones(4000), "b": jnp.ones(4000)}, None, link.data, KEY)
    a, b = np.asarray(noisy["a"]) - 1, np.asarray(noisy["b"]) - 1
    assert a.std() == pytest.approx(0.3, rel=0.05) and a.mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_weight_decay_as_a_link_is_added_after_a_clip():
    clip, decay = training.clip_norm(1.0), training.add_decay(0.5)
    gradient, params = {"a": jnp.array([8.0])}, {"a": jnp.array([-4.0])}
    for link in (clip, decay):
        gradient = link.apply(gradient, params, link.data, KEY)
    assert gradient["a"].tolist() == [-1.0]


def test_a_plain_pass_leaves_the_optimizer_aside():
    """One of SGD without momentum and decay, whatever the run's is, whose state it keeps."""
    action = training.Pass(
        training.cross_entropy, np.arange(32), toy.task().labels, 0.1, plain=True
    )
    expected = train([dataclasses.replace(action, plain=False)], linear()).variables
    for changes in ({"momentum": 0.9, "weight_decay": 0.1}, {"optimizer": "adam"}):
        task = toy.linear_task(**changes)
        found = train([action], task).variables["params"]["w"]
        np.testing.assert_allclose(found, expected["params"]["w"], rtol=1e-6)
    # Momentum from before goes on after it.
    task = toy.linear_task(momentum=0.9)
    still = dataclasses.replace(action, plain=False, lr=0.0)
    tail = dataclasses.replace(action, plain=False, objective=nothing)
    moved = train([still, dataclasses.replace(action, lr=0.0), tail], task).variables["params"]["w"]
    assert np.abs(np.asarray(moved) - task.original["params"]["w"]).max() > 1e-3


def nothing(params, logits, batch, context):
    """A loss without a gradient: only momentum moves."""
    return 0.0 * jnp.sum(params["w"])


def test_links_run_in_their_order_around_the_update():
    """Clipped before the optimizer, noisy after it, and frozen last of all."""
    task, mask = linear(), np.zeros((64, 3), bool)
    mask[:, 0] = True
    action = training.Pass(
        training.cross_entropy,
        np.arange(16),
        task.labels,
        1.0,
        before=(training.clip_norm(0.01),),
        after=(training.add_noise(0.5), training.keep({"w": mask})),
    )
    w = task.original["params"]["w"]
    found = np.asarray(train([action], task).variables["params"]["w"])
    assert found[:, 1:].tobytes() == w[:, 1:].tobytes()
    assert (found - w)[:, 0].std() == pytest.approx(0.5, rel=0.3)
    quiet = dataclasses.replace(action, after=(training.keep({"w": mask}),))
    moved = np.asarray(train([quiet], task).variables["params"]["w"]) - w
    assert 0 < np.linalg.norm(moved) < 0.01


def test_what_a_generator_returns_is_its_claim():
    task = linear()

    def claiming():
        yield training.Pass(training.cross_entropy, task.retain, task.labels, 0.1)
        return {"epsilon": 1.0, "delta": 1e-5}

    assert train(claiming(), task).claims == {"epsilon": 1.0, "delta": 1e-5}
    assert train([], task).claims == {}


# Sweeps.


def moments(variables, batch, context):
    """Sum of the images' means, and of a context over the examples."""
    means = jnp.mean(batch.images, (1, 2, 3))
    return {"sum": jnp.sum(batch.weight * means), "n": context * jnp.sum(batch.weight)}


def rows(variables, batch, context):
    return jnp.mean(batch.images, (1, 2, 3)), jnp.argmax(batch.targets, -1)


@pytest.mark.parametrize("count, scan", [(1, False), (1, True), (4, False), (4, True)])
def test_sweeps_sum_and_stack_every_example_once(count, scan, monkeypatch):
    monkeypatch.setattr(devices, "on_cpu", lambda mesh: not scan)
    task, indices = toy.task(count=count), np.array([5, 39, 0, *range(10, 30)])  # 16 and 7
    images = np.asarray(task.bench.images)[indices]
    expected = ((images / 255 - 0.5) / 0.5).mean((1, 2, 3))
    total = task.sweep(moments, indices, context=np.float32(2))
    assert total["sum"] == pytest.approx(expected.sum(), rel=1e-5) and total["n"] == 46
    means, labels = task.sweep(rows, indices, reduce="stack")
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    assert (labels == task.labels[indices]).all()
