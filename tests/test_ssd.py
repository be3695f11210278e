"""SSD against its formula, by hand and on softmax regression."""

import numpy as np
import toy

from jaxunlearn.methods import ssd


def test_ssds_importance_is_the_mean_squared_gradient_by_hand():
    """Of softmax regression: ((p − e_y) xᵀ)² for each example, whatever the batch size."""
    for size in (4, 16, 40):
        task = toy.linear_task(batch_size=size)
        x, w = toy.inputs(task)[:7], task.original["params"]["w"].astype(np.float64)
        gradients = x[:, :, None] * (toy.softmax(x @ w) - np.eye(3)[task.labels[:7]])[:, None]
        found = ssd.importance(task, np.arange(7), "example")["w"]
        np.testing.assert_allclose(found, np.mean(gradients**2, 0), rtol=1e-3, atol=1e-8)
        parts = [gradients[i : i + size] for i in range(0, 7, size)]
        found = ssd.importance(task, np.arange(7), "batch")["w"]
        expected = np.mean([part.mean(0) ** 2 for part in parts], 0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-8)


def test_dampening_by_hand():
    theta, forget, whole = (
        {"w": np.array(values, np.float32)}
        for values in ([1, 2, -3, 4, 5], [4, 1, 8, 0, 6], [1, 1, 2, 0, 3])
    )
    # I_f > 2·I_D for the first and the third (6 > 6 is false, and 0 > 0): β = min(λ·I_D/I_f, 1)
    assert ssd.dampen(theta, forget, whole, 2.0, 1.0)["w"].tolist() == [0.25, 2, -0.75, 4, 5]
    assert ssd.dampen(theta, forget, whole, 2.0, 9.0)["w"].tolist() == [1, 2, -3, 4, 5]


def test_ssd_of_everything_selects_nothing_or_halves_what_has_a_gradient():
    everything = np.arange(40)
    task = toy.linear_task(forget=everything, retain=everything[:0])
    assert toy.same_bits(toy.unlearn("ssd", task, alpha=1.0).variables, task.original)
    half = toy.weights(toy.unlearn("ssd", task, alpha=0.5, dampening=0.5))
    w, important = task.original["params"]["w"], ssd.importance(task, everything, "example")["w"]
    np.testing.assert_allclose(half, np.where(important > 0, 0.5 * w, w), rtol=1e-6)
