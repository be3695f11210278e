import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import devices, keys, training
from jaxunlearn.errors import UserError
from jaxunlearn.training import step

TRACES = Counter()


def counted_objective(params, logits, batch, context):
    TRACES["counted"] += 1
    return training.cross_entropy(params, logits, batch, context)


def failing_objective(params, logits, batch, context):
    """NaN as soon as an example with the mark comes by."""
    marked = jnp.sum(batch.weight * batch.examples["marked"]) > 0
    return jnp.where(marked, jnp.nan, training.cross_entropy(params, logits, batch, context))


def train(passes, task=None, **kwargs):
    task = task or toy.task()
    return training.run(
        passes,
        task.original,
        task.bench,
        stage="train",
        seed=task.seed,
        **kwargs,
    )


def epochs(count, labels, objective=training.cross_entropy, indices=None, lr=0.05, **kwargs):
    indices = np.arange(40) if indices is None else indices
    return [training.Pass(objective, indices, labels, lr, count, **kwargs) for _ in range(count)]


@pytest.mark.parametrize("shape", [(5, 28, 28, 1), (4, 96, 96, 3), (3, 131, 131, 1)])
def test_images_lie_in_rows_and_come_as_they_were(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    index = np.array([[2, 0], [1, 2]])
    for aligned in (False, True):
        made = training.Images.of(images, aligned)
        assert made.shape == shape and len(made) == shape[0]
        if aligned:
            assert made.rows.ndim == 2 and made.rows.shape[1] % 128 == 0
            there = jax.ShapeDtypeStruct(shape, np.uint8)
            assert training.Images.of(there, aligned).rows.shape == made.rows.shape
        else:
            assert np.shares_memory(made.rows, images)
        placed = jax.tree.map(jnp.asarray, made)
        taken = jax.jit(lambda made, index: made[index])(placed, index)
        assert np.array_equal(taken, images[index])
        assert np.array_equal(np.asarray(made), images)


def test_batches_pad_with_real_examples_that_do_not_count():
    order, weight = step.batches(np.arange(10, 17), 4)
    assert order.tolist() == [[10, 11, 12, 13], [14, 15, 16, 10]]
    assert weight.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    # A set smaller than a batch is one batch all the same, whatever the number of devices.
    order, weight = step.batches(np.arange(3), 8)
    assert order.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]] and weight.tolist() == [[1] * 3 + [0] * 5]


def test_batch_mean_ignores_padding():
    batch = training.Batch(None, None, jnp.array([1.0, 1.0, 0.0]), {})
    assert batch.mean(jnp.array([2.0, 4.0, 100.0])) == 3.0


def test_sgd_equals_pytorchs_formula_computed_by_hand():
    model = toy.linear_model()
    setup = toy.setup(model=model, batch_size=16, momentum=0.9, weight_decay=0.01)
    task = toy.task(the_setup=setup)
    w = np.array(model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))["params"]["w"], np.float64)
    task = dataclasses.replace(task, original={"params": {"w": w.astype(np.float32)}})
    result = train(epochs(2, task.labels, lr=0.1), task)

    velocity = np.zeros_like(w)
    x = (np.asarray(task.bench.images).reshape(40, -1) / 255 - 0.5) / 0.5
    for epoch in range(2):
        shuffled = keys.stage_rng("train", 0, epoch).permutation(np.arange(40))
        for chunk in (shuffled[:16], shuffled[16:32], shuffled[32:]):  # the last of 8 only
            logits = x[chunk] @ w
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            gradient = x[chunk].T @ (p - np.eye(3)[task.labels[chunk]]) / len(chunk)
            velocity = 0.9 * velocity + gradient + 0.01 * w  # m ← μm + (g + λθ)
            w = w - 0.1 * velocity
    np.testing.assert_allclose(result.variables["params"]["w"], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_and_adamw_by_hand(optimizer):
    """m ← μm + (1 − μ)g, v ← 0.999v + 0.001g²; decay is of the gradient, or of the step."""
    task = toy.linear_task(optimizer=optimizer, momentum=0.5, weight_decay=0.1, batch_size=40)
    result = train(epochs(2, task.labels, lr=0.01), task)
    x, w = toy.inputs(task), task.original["params"]["w"].astype(np.float64)
    m = v = np.zeros_like(w)
    for t in (1, 2):
        gradient = toy.cross_entropy_gradient(x, task.labels, w)
        gradient = gradient + 0.1 * w * (optimizer == "adam")
        m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - 0.01 * (direction + 0.1 * w * (optimizer == "adamw"))
    np.testing.assert_allclose(result.variables["params"]["w"], w, rtol=1e-4, atol=1e-6)


def test_the_history_counts_no_padding():
    task = toy.linear_task(batch_size=16)
    rows = np.arange(33)
    (found,) = train(epochs(1, task.labels, indices=rows, lr=0.0), task).history
    p = toy.softmax(toy.inputs(task)[rows] @ task.original["params"]["w"])
    labels = task.labels[rows]
    assert found["loss"] == pytest.approx(-np.log(p[rows, labels]).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((p.argmax(1) == labels).mean())


def test_a_pass_over_nothing_is_a_users_error():
    with pytest.raises(UserError, match="pass 1 is over no example"):
        train(epochs(1, toy.task().labels, indices=np.arange(0)))


@pytest.mark.parametrize("optimizer", sorted(step.OPTIMIZERS))
def test_every_optimizer_learns(optimizer):
    setup = toy.setup(optimizer=optimizer)
    task = toy.task(the_setup=setup)
    result = train(epochs(12, task.labels, lr=0.05 if optimizer == "sgd" else 0.005), task)
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]


def test_the_step_is_traced_once_for_all_epochs_rates_and_runs():
    labels = toy.task().labels
    traces = set()
    for lr, count in ((0.1, 40), (0.01, 30), (0.01, 17)):  # sets of different sizes too
        train(epochs(3, labels, counted_objective, lr=lr, indices=np.arange(count)))
        traces.add(TRACES["counted"])
    # An accelerator's program of a whole epoch first asks what a step gives.
    assert traces == {1 if jax.default_backend() == "cpu" else 2}


def test_same_seed_same_bits_other_seed_other_model():
    task = toy.task()
    first, second = (train(epochs(2, task.labels)).variables for _ in range(2))
    assert toy.same_bits(first, second)
    other = train(epochs(2, task.labels), toy.task(seed=1)).variables
    assert not toy.same_bits(first, other)


def test_the_start_is_left_as_it_was():
    before = jax.tree.map(np.copy, toy.initial())
    train(epochs(1, toy.task().labels))
    assert toy.same_bits(before, toy.initial())


def test_four_devices_give_the_numbers_of_one():
    """Batch norm included: its moments are over the whole batch, wherever its parts lie."""
    labels = toy.task().labels
    one = train(epochs(3, labels), toy.task(count=1))
    four = train(epochs(3, labels), toy.task(count=4))
    assert len(jax.tree.leaves(four.variables)[0].devices()) == 4
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(four.variables), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)
    assert one.history[-1]["loss"] == pytest.approx(four.history[-1]["loss"], rel=1e-3)


def test_the_scanned_epoch_of_accelerators_equals_the_loop(monkeypatch):
    task = toy.task()
    looped = train(epochs(2, task.labels))
    logits = task.logits(np.arange(40), looped.variables)
    monkeypatch.setattr(devices, "on_cpu", lambda mesh: False)
    scanned = train(epochs(2, task.labels))
    assert scanned.history[-1]["accuracy"] == looped.history[-1]["accuracy"]
    for a, b in zip(
        jax.tree.leaves(looped.variables), jax.tree.leaves(scanned.variables), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)
    mapped = task.logits(np.arange(40), looped.variables)
    np.testing.assert_allclose(logits, mapped, rtol=1e-4, atol=1e-5)


def copied(point):
    """The point with its state on the host, as a store keeps it."""
    return point._replace(state=[np.array(leaf) for leaf in jax.device_get(point.state)])


def test_the_best_of_asked_and_saved_is_restored_and_resumes_to_the_same_bits():
    task, points = toy.task(), []
    heard = []

    def best(values):
        """As a method that keeps the pass with the largest of made-up accuracies."""
        heard.clear()
        values = iter(values)
        top = -1.0
        for action in epochs(4, task.labels):
            yield action
            answer = yield training.Ask(lambda variables: next(values))
            heard.append(answer)
            if answer > top:
                top = answer
                yield training.Save("best")
        yield training.Restore("best")

    def checkpoint(point):
        points.append(copied(point))

    two = train(epochs(2, task.labels))
    whole = train(best([0.1, 0.7, 0.3, 0.7]), checkpoint=checkpoint)  # a tie keeps the first
    assert heard == [0.1, 0.7, 0.3, 0.7]
    assert toy.same_bits(two.variables, whole.variables)
    for point in points:
        # What was answered before is not asked again.
        resumed = train(best([0.1, 0.7, 0.3, 0.7][len(point.history) - 1 :]), resume=point)
        assert heard == [0.1, 0.7, 0.3, 0.7]
        assert toy.same_bits(whole.variables, resumed.variables)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resuming_after_any_pass_gives_the_same_bits(done):
    task, points = toy.task(), {}

    def checkpoint(point):
        points[point.done] = copied(point)

    whole = train(epochs(4, task.labels), checkpoint=checkpoint)
    resumed = train(epochs(4, task.labels), resume=points[done])
    assert toy.same_bits(whole.variables, resumed.variables)
    assert whole.history == resumed.history


def test_a_loss_that_is_not_finite_stops_with_place_hint_and_last_good_parameters():
    task = toy.task()
    marked = np.zeros(40, np.float32)
    second_epoch = keys.stage_rng("train", 0, 1).permutation(np.arange(40))
    passes = epochs(2, task.labels, failing_objective, examples={"marked": marked})
    marked_later = marked.copy()
    marked_later[second_epoch[16]] = 1  # first example of the second batch
    passes[1] = dataclasses.replace(passes[1], examples={"marked": marked_later})
    with pytest.raises(training.DivergedError, match=r"epoch 2, step 2 of 3 .*rate") as caught:
        train(passes)
    leaves = jax.tree.leaves(caught.value.variables)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert not toy.same_bits(caught.value.variables, task.original)  # the good steps are in them


@pytest.mark.parametrize(
    "place, step, advice",
    [(0, 1, "before any update: the initial values, the images or"), (16, 2, "try a lower")],
)
def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate(place, step, advice):
    marked = np.zeros(40, np.float32)
    marked[keys.stage_rng("train", 0, 0).permutation(np.arange(40))[place]] = 1
    passes = epochs(1, toy.task().labels, failing_objective, examples={"marked": marked})
    with pytest.raises(training.DivergedError, match=f"epoch 1, step {step} of 3 .*{advice}") as e:
        train(passes)
    assert ("try a lower" in str(e.value)) == (step > 1)


def test_replace_starts_over():
    task = toy.task()
    fresh = toy.initial(7)
    result = train([*epochs(1, task.labels), training.Replace(fresh)])
    assert toy.same_bits(result.variables, fresh)


def test_progress_counts_every_image_and_ends_at_one():
    calls = []
    train(epochs(2, toy.task().labels), progress=lambda *row: calls.append(row))
    assert sum(images for _, images, _, _ in calls) == 2 * 40
    shares = [share for share, _, _, _ in calls]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_prediction_does_not_depend_on_the_batch_size():
    task = toy.task()
    a, b, c = (
        training.predict(task.original, task.bench.images, task.bench, size) for size in (7, 40, 64)
    )
    assert a.shape == (40, toy.NUM_CLASSES) and a.dtype == np.float32
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


def test_one_program_predicts_sets_of_any_size():
    task = toy.task()
    task.bench.programs._compiled.clear()
    for count in (40, 3):
        images = np.asarray(task.bench.images)[:count]
        assert len(training.predict(task.original, images, task.bench, 16)) == count
    assert len(task.bench.programs) == 1


def test_normalise_is_per_channel():
    images = np.full((1, 1, 1, 3), 255, np.uint8)
    out = training.normalise(jnp.asarray(images), (0.5, 0.0, 1.0), (0.5, 1.0, 2.0))
    np.testing.assert_allclose(np.ravel(out), [1, 1, 0], atol=1e-6)


@pytest.mark.parametrize("name", sorted(step.OPTIMIZERS))
def test_a_fresh_optimizer_is_all_zeros(name):
    """So that a state can be made without a program for each shape of a parameter."""
    setup = toy.setup(optimizer=name)
    variables = toy.tiny_initial()
    made = step.start_state(variables, setup, toy.programs().mesh).opt_state
    wanted = step.optimizer(setup).init(variables["params"])
    assert toy.same_bits(made, wanted)
