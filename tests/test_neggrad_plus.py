"""NegGrad+ against its formula, on softmax regression."""

import numpy as np
import pytest
import toy

from jaxunlearn import keys
from jaxunlearn.methods import METHODS


def inputs(task):
    return (np.asarray(task.bench.images).reshape(40, -1) / 255 - 0.5) / 0.5


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def weights(result):
    return np.asarray(result.variables["params"]["w"])


def steps_of(task, action, epoch, size=16):
    """The batches of a pass's streams: rows by stream for each step."""
    rng = keys.stage_rng("unlearn", task.seed, epoch)
    streams = [rng.permutation(indices) for indices in action.indices]
    parts = [[s[i : i + size] for i in range(0, len(s), size)] for s in streams]
    return [[part[i % len(part)] for part in parts] for i in range(len(parts[0]))]


@pytest.mark.parametrize("forget", [1, 10, 33])  # fewer and more than retain has
def test_neggrad_plus_equals_its_formula_in_numpy(forget):
    """Streams that go round, last batches, α and momentum."""
    task = toy.linear_task(forget=np.arange(forget), retain=np.arange(forget, 40))
    settings = {"epochs": 2, "lr": 0.1, "alpha": 0.8, "momentum": 0.5}
    actions = METHODS["neggrad_plus"].passes(task, toy.settings("neggrad_plus", **settings))
    w, x, velocity = np.array(task.original["params"]["w"], np.float64), inputs(task), 0
    for epoch, action in enumerate(actions):
        for rows in steps_of(task, action, epoch):
            gradient = 0
            for sign, chunk in zip((0.8, -0.2), rows, strict=True):
                p = softmax(x[chunk] @ w)
                gradient += sign * x[chunk].T @ (p - np.eye(3)[task.labels[chunk]]) / len(chunk)
            velocity = 0.5 * velocity + gradient
            w = w - 0.1 * velocity
    found = weights(toy.unlearn("neggrad_plus", task, **settings))
    np.testing.assert_allclose(found, w, rtol=1e-3, atol=1e-5)


def test_neggrad_plus_at_alpha_one_is_finetune():
    """On a model without batch statistics, which the forget stream would move."""
    task, same = toy.linear_task(), {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    np.testing.assert_allclose(
        weights(toy.unlearn("neggrad_plus", task, alpha=1.0, **same)),
        weights(toy.unlearn("finetune", task, **same)),
        rtol=1e-5,
        atol=1e-7,
    )


def test_neggrad_plus_of_the_same_images_on_both_sides_moves_nothing():
    task = toy.linear_task(forget=np.arange(16), retain=np.arange(16))
    found = weights(toy.unlearn("neggrad_plus", task, alpha=0.5, lr=1.0))
    np.testing.assert_allclose(found, task.original["params"]["w"], atol=1e-6)
