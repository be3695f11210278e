"""Methods that learn from a teacher's answers, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import training
from jaxunlearn.methods import METHODS, bad_teacher, delete, lotus

ONE_STEP = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd"}


def logits(count, seed=0, classes=3):
    return np.random.default_rng(seed).normal(0, 2, (count, 5, classes)).astype(np.float32)


def batch(forgotten=(1, 1, 0, 0, 0), labels=(0, 1, 2, 0, 1), classes=3, key=None):
    """Five examples; a teacher's variables are its logits."""
    return training.Batch(
        None,
        jax.nn.one_hot(jnp.array(labels), classes),
        jnp.ones(5),
        {"forgotten": jnp.array(forgotten, bool)},
        key=key,
        logits_of=lambda variables: variables,
    )


# Bad teacher.


def test_the_bad_teachers_gradient_in_logits():
    """(p_T − t)/T over the batch, t the uniform answer on forget and the original's on retain."""
    student, good = logits(2)
    context = {"good": good, "temperature": jnp.float32(2), "classes": jnp.int32(3)}
    gradient = jax.grad(lambda z: bad_teacher.from_uniform(None, z, batch(), context))(
        jnp.asarray(student)
    )
    t = np.where(np.arange(5)[:, None] < 2, 1 / 3, toy.softmax(good / 2))
    by_hand = (toy.softmax(student / 2) - t) / 2 / 5
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_a_bad_teacher_answers_with_classes_of_the_data(kind):
    student, good, bad = logits(3)
    context = {"good": good, "bad": bad, "temperature": jnp.float32(2), "classes": jnp.int32(2)}
    objective = bad_teacher.from_uniform if kind == "uniform" else bad_teacher.from_random
    gradient = jax.grad(lambda z: objective(None, z, batch(), context))(jnp.asarray(student))
    t = np.full((5, 2), 0.5) if kind == "uniform" else toy.softmax(bad[:, :2] / 2)
    t = np.pad(t, ((0, 0), (0, 1)))
    by_hand = (toy.softmax(student / 2) - t)[:2] / 2 / 5
    np.testing.assert_allclose(gradient[:2], by_hand, rtol=1e-4, atol=1e-6)


def test_the_original_under_its_own_teaching_has_no_gradient():
    """Where nothing is forgotten, and where the bad teacher is the original itself."""
    good, bad = logits(2)
    for forgotten, wrong in (((0,) * 5, bad), ((1, 1, 0, 0, 0), good)):
        context = {"good": good, "bad": wrong, "temperature": jnp.float32(1), "classes": 3}

        def loss(z, forgotten=forgotten, context=context):
            return bad_teacher.from_random(None, z, batch(forgotten), context)

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(good))
        assert abs(value) < 1e-6
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_all_of_forget_and_a_share_of_retain_are_taught():
    task = toy.task(seed=3)
    (made,) = METHODS["bad_teacher"].passes(task, toy.settings("bad_teacher", epochs=1))
    assert set(task.forget) <= set(made.indices)
    assert len(made.indices) == 10 + 9
    assert (made.examples["forgotten"].nonzero()[0] == task.forget).all()
    assert toy.same_bits(made.context["good"], task.original)
    assert toy.same_bits(made.context["bad"], task.fresh())
    assert not toy.same_bits(made.context["bad"], task.original)


# DELETE.


def test_the_true_class_is_taken_out():
    teacher, labels = logits(1)[0], jnp.array([0, 1, 2, 0, 1])
    t = np.asarray(delete.without(teacher, labels))
    assert (t[np.arange(5), labels] == 0).all()
    np.testing.assert_allclose(t.sum(1), 1, rtol=1e-6)
    p = toy.softmax(teacher)
    np.testing.assert_allclose(t[0, 1] / t[0, 2], p[0, 1] / p[0, 2], rtol=1e-5)


def test_deletes_gradient_in_logits():
    """p − t; so none where the model gives t."""
    student, teacher = logits(2)

    def loss(z):
        return delete.objective(None, z, batch(), teacher)

    t = np.asarray(delete.without(teacher, jnp.array([0, 1, 2, 0, 1])))
    gradient = jax.grad(loss)(jnp.asarray(student))
    np.testing.assert_allclose(gradient, (toy.softmax(student) - t) / 5, rtol=1e-4, atol=1e-6)
    reached = jnp.log(jnp.maximum(t, 1e-12))
    assert abs(loss(reached)) < 1e-5


def test_of_two_classes_delete_teaches_the_other_one():
    student, teacher = logits(2, classes=2)
    found = delete.objective(
        None, jnp.asarray(student), batch(labels=(0, 1, 1, 0, 1), classes=2), teacher
    )
    others = np.array([1, 0, 0, 1, 0])
    expected = -np.mean(np.log(toy.softmax(student))[np.arange(5), others])
    assert found == pytest.approx(expected, rel=1e-5)


# LoTUS.


def test_lotus_targets_at_their_limits():
    teacher, zeros = logits(1)[0], np.zeros((5, 3), np.float32)
    all_of_them = jnp.ones(5, bool)
    hard = np.eye(3)[teacher.argmax(1)]
    for tau, expected in ((1e8, np.full((5, 3), 1 / 3)), (1e-4, hard), (1.0, toy.softmax(teacher))):
        found = lotus.targets(teacher, zeros, all_of_them, jnp.float32(tau))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    mixed = lotus.targets(teacher, zeros, jnp.array([1, 0, 0, 0, 0], bool), jnp.float32(1))
    np.testing.assert_allclose(mixed[1:], hard[1:])


@pytest.mark.parametrize("tau", [1e-6, 1.0, 1e26])
def test_lotus_targets_are_classes_of_the_data(tau):
    student, teacher = logits(2)
    teacher[:, 2] += 9
    context = {"original": teacher, "tau": jnp.float32(tau), "classes": jnp.int32(2)}
    data = batch(key=jax.random.key(0))
    gradient = jax.grad(lambda z: lotus.objective(None, z, data, context))(jnp.asarray(student))
    # p − t: nothing is taught to the third
    np.testing.assert_allclose(gradient[:, 2] * 5, toy.softmax(student)[:, 2], rtol=1e-4)
    assert np.isfinite(gradient).all()


def test_hard_targets_are_samples_of_the_originals_answer():
    teacher = logits(1)[0]
    noise = jax.random.gumbel(jax.random.key(0), (20_000, *teacher.shape))
    none = jnp.zeros(5, bool)
    drawn = jax.vmap(lambda g: lotus.targets(teacher, g, none, 1.0))(noise)
    np.testing.assert_allclose(drawn.mean(0), toy.softmax(teacher), atol=0.015)


def test_lotus_sets_its_temperature_by_the_accuracies_and_stops():
    task = toy.task()
    settings = toy.settings("lotus", epochs=3, alpha=2.0, stop=0.1)

    def follow(answers):
        method, made = METHODS["lotus"].passes(task, settings), []
        answers = iter(answers)
        action = next(method)
        while True:
            try:
                if isinstance(action, training.Ask):
                    action = method.send(next(answers))
                else:
                    made.append(float(action.context["tau"]))
                    assert (np.flatnonzero(action.examples["forgotten"]) == task.forget).all()
                    assert set(task.forget) <= set(action.indices)
                    action = next(method)
            except StopIteration:
                return made

    # validation, then forget before every epoch
    assert follow([0.5, 1.0, 0.5, 0.45]) == pytest.approx(np.exp([1.0, 0.0, -0.1]))
    assert follow([0.5, 0.9, 0.39, 1.0]) == pytest.approx([np.exp(0.8)])


def test_a_whole_class_is_to_be_forgotten_down_to_nothing():
    labels = toy.images_and_labels()[1]
    whole = {"forget": np.flatnonzero(labels == 1), "retain": np.flatnonzero(labels != 1)}
    for task, expected in ((toy.task(**whole), 0.0), (toy.task(), toy.task().val_accuracy())):
        first = next(METHODS["lotus"].passes(task, toy.settings("lotus")))
        assert first.question(task.original) == expected


def test_unseen_accuracy_leaves_out_classes_that_are_gone():
    """Of a sequence, where an earlier request took a class: neither forget nor retain has it."""
    labels = toy.images_and_labels()[1]
    left = np.flatnonzero(labels != 2)
    task = toy.task(forget=left[:5], retain=left[5:])
    first = next(METHODS["lotus"].passes(task, toy.settings("lotus")))
    known = task.val.labels != 2
    right = task.val_logits().argmax(1) == task.val.labels
    assert first.question(task.original) == right[known].mean() != right.mean()


def test_lotus_temperature_is_never_0():
    task = toy.task()
    settings = toy.settings("lotus", epochs=1, alpha=100.0, stop=1.0)
    method = METHODS["lotus"].passes(task, settings)
    next(method)
    method.send(0.95)
    assert method.send(0.0).context["tau"] == np.float32(1e-6)
