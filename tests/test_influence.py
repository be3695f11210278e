"""The influence step on softmax regression, where Gauss-Newton is the Hessian, against NumPy."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import toy

from jaxunlearn.methods import influence

DECAY = 0.1  # so that the minimum is near, and float32 tells it well
EVERYTHING = np.arange(40)


def inputs():
    return (toy.images_and_labels()[0].reshape(40, -1) / 255 - 0.5) / 0.5


def loss_and_gradient(w, rows):
    """Mean cross-entropy and half the decay's square norm, by hand."""
    x, y, w = inputs()[rows], np.eye(3)[toy.images_and_labels()[1][rows]], w.reshape(64, 3)
    z = x @ w
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    gradient = x.T @ (np.exp(log_p) - y) / len(rows) + DECAY * w
    return -(y * log_p).sum() / len(rows) + DECAY / 2 * np.sum(w**2), gradient.ravel()


def minimum(rows):
    found = scipy.optimize.minimize(
        loss_and_gradient, np.zeros(192), (rows,), "L-BFGS-B", True, tol=1e-14
    )
    return found.x.reshape(64, 3)


def hessian(w, rows, damping):
    """Of the same, by hand, and damped."""
    x, z = inputs()[rows], inputs()[rows] @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    middle = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    full = np.einsum("ni,nj,nab->iajb", x, x, middle).reshape(192, 192) / len(rows)
    return full + (DECAY + damping) * np.eye(192)


EXACT = {"weight_decay": DECAY, "max_step": 1e6, "samples": 0, "damping": 1e-6}


def settings(**changes):
    return toy.settings("influence", **{**EXACT, **changes})


def task_at(w, **changes):
    original = {"params": {"w": w.astype(np.float32)}}
    return dataclasses.replace(toy.linear_task(), original=original, **changes)


def test_the_product_is_that_of_the_hessian_by_hand():
    task = toy.linear_task(batch_size=7)
    rng, w = np.random.default_rng(0), task.original["params"]["w"]
    matrix = hessian(w.astype(np.float64), task.retain, -DECAY) * 30
    columns = []
    for _ in range(3):
        v = rng.normal(size=(64, 3)).astype(np.float32)
        found = task.sweep(influence.product, task.retain, context={"w": v})["w"]
        np.testing.assert_allclose(found.ravel(), matrix @ v.ravel(), rtol=1e-4, atol=1e-4)
        columns.append((v.ravel(), found.ravel()))
    (a, ga), (b, gb), _ = columns
    assert a @ gb == pytest.approx(b @ ga, rel=1e-4) and a @ ga > 0  # symmetric and positive


@pytest.mark.parametrize("form", influence.FORMS)
def test_conjugate_gradients_give_the_dense_solution(form):
    task = toy.linear_task()
    w = task.original["params"]["w"].astype(np.float64)
    matrix = hessian(w, task.retain, 0.05)
    if form == "newton":
        side = -loss_and_gradient(w, task.retain)[1]
    else:  # 10 forgotten examples, and the decay's share of each
        side = loss_and_gradient(w, task.forget)[1] * 10 / 30
    found = influence.step(task, settings(form=form, damping=0.05))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, side), atol=3e-4 * abs(found).max())


def test_newton_steps_end_at_the_retrained_minimum():
    task, retrained = task_at(minimum(EVERYTHING)), minimum(np.arange(10, 40))
    gaps = [abs(task.original["params"]["w"] - retrained).max()]
    for _ in range(3):
        moved = toy.unlearn("influence", task, form="newton", **EXACT).variables
        task = dataclasses.replace(
            task, original={"params": {"w": np.asarray(moved["params"]["w"])}}
        )
        gaps.append(abs(task.original["params"]["w"] - retrained).max())
    assert gaps[0] > 0.01 and gaps[1] < 0.2 * gaps[0] and gaps[-1] < 1e-4 * gaps[0]


def test_both_forms_agree_at_the_minimum_and_only_there():
    """They would not without the decay of the forgotten examples' share."""
    steps = [
        [influence.step(task, settings(form=form)) for form in influence.FORMS]
        for task in (task_at(minimum(EVERYTHING)), toy.linear_task())
    ]
    np.testing.assert_allclose(*steps[0], atol=1e-3 * abs(steps[0][0]).max())
    assert abs(steps[1][0] - steps[1][1]).max() > 0.1 * abs(steps[1][0]).max()


def test_at_the_optimum_the_step_is_linear_in_the_forget_set():
    task = toy.linear_task()
    parts = [task.forget[:4], task.forget[4:], task.forget]
    first, second, both = (
        influence.step(dataclasses.replace(task, forget=part), settings(form="at_optimum"))
        for part in parts
    )
    np.testing.assert_allclose(first + second, both, atol=1e-3 * abs(both).max())


def test_nothing_to_forget_moves_nothing():
    task = task_at(minimum(EVERYTHING), forget=EVERYTHING[:0], retain=EVERYTHING)
    assert np.linalg.norm(influence.step(task, settings(form="newton"))) < 1e-4


def test_the_step_is_cut_and_a_sample_is_drawn_by_the_seed():
    task = toy.linear_task()
    size = np.linalg.norm(task.original["params"]["w"])
    whole = influence.step(task, settings())
    assert np.linalg.norm(whole) > 0.1 * size
    cut = influence.step(task, settings(max_step=0.1))
    np.testing.assert_allclose(cut, whole * 0.1 * size / np.linalg.norm(whole), rtol=1e-6)
    of_seed = [
        influence.step(dataclasses.replace(task, seed=seed), settings(samples=12))
        for seed in (0, 0, 1)
    ]
    assert (of_seed[0] == of_seed[1]).all() and (of_seed[0] != of_seed[2]).any()
