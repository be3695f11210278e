"""SCRUB against its formula, by hand and on softmax regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import training
from jaxunlearn.methods import METHODS, scrub


def test_scrub_without_its_maximising_pass_and_its_teacher_is_finetune():
    same = {"lr": 0.01, "optimizer": "sgd", "weight_decay": 0.0}
    ours = toy.unlearn("scrub", max_epochs=0, gamma=1.0, alpha=0.0, decay_after=(), **same)
    finetune = toy.unlearn("finetune", **same)
    for a, b in zip(
        jax.tree.leaves(ours.variables), jax.tree.leaves(finetune.variables), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)


def test_scrubs_forgetting_loss_has_no_gradient_at_the_original():
    """Without batch statistics, augmentation or weight decay; so has its retain loss at γ = 0."""
    task = toy.linear_task()
    values = {"lr": 10.0, "optimizer": "sgd", "weight_decay": 0.0, "epochs": 1, "max_epochs": 1}
    found = toy.weights(toy.unlearn("scrub", task, gamma=0.0, **values))
    np.testing.assert_allclose(found, task.original["params"]["w"], atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_scrubs_gradient_in_logits(temperature):
    """Of −KL_T: T·(p_o − p) at temperature T for each example, over the batch."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    batch = training.Batch(
        None, None, jnp.ones(5), {}, logits_of=lambda variables: variables["logits"]
    )
    context = {"temperature": jnp.float32(temperature), "teacher": {"logits": teacher}}
    gradient = jax.grad(lambda logits: scrub.forget_objective(None, logits, batch, context))(
        jnp.asarray(student)
    )
    p_o, p = toy.softmax(teacher / temperature), toy.softmax(student / temperature)
    np.testing.assert_allclose(gradient, temperature * (p_o - p) / 5, rtol=1e-4, atol=1e-6)


def test_scrub_maximises_first_and_in_its_first_epochs_only():
    settings = toy.settings("scrub", epochs=4, max_epochs=2, decay_after=(3,))
    actions = list(METHODS["scrub"].passes(toy.task(), settings))
    assert [len(action.indices) for action in actions] == [10, 30, 10, 30, 30, 30]
    assert [action.lr for action in actions] == pytest.approx([5e-4] * 5 + [5e-5])
    assert {action.total_passes for action in actions} == {6}


def test_scrub_leaves_its_teacher_alone():
    task = toy.task()
    before = jax.tree.map(np.copy, task.original)
    toy.unlearn("scrub", task, lr=0.05)
    assert toy.same_bits(before, task.original)


@pytest.mark.parametrize(
    "errors, reference, expected", [([0.1, 0.4, 0.9], 0.5, 1), ([0.25, 0.75], 0.5, 0)]
)
def test_rewind_takes_the_closest_epoch_and_of_equals_the_earlier(errors, reference, expected):
    assert scrub.closest(errors, reference) == expected


def test_rewind_returns_the_epoch_that_its_errors_point_to():
    task, values = toy.task(), {"lr": 0.02, "max_epochs": 2, "decay_after": ()}
    # The first epochs of a run are a shorter run.
    by_epoch = [toy.unlearn("scrub", task, epochs=n, **values).variables for n in (1, 2, 3)]
    like = np.isin(task.val.labels, task.labels[task.forget])

    def error(logits, labels):
        return np.mean(logits.argmax(1) != labels)

    errors = [error(task.logits(task.forget, v), task.labels[task.forget]) for v in by_epoch]
    reference = error(task.val_logits(by_epoch[-1])[like], task.val.labels[like])
    expected = by_epoch[int(np.argmin(np.abs(np.array(errors) - reference)))]
    rewound = toy.unlearn("scrub", task, epochs=3, rewind=True, **values)
    assert toy.same_bits(rewound.variables, expected)
