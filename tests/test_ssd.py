"""SSD and its variants against their formulae, by hand and on softmax regression."""

import numpy as np
import toy

from jaxunlearn.methods import assd, lfssd, ssd


def test_no_weight_matters_more_to_forget_than_n_over_n_f_times_what_it_does_to_all():
    """So an alpha of n / n_f or more selects none: 4 where a quarter is forgotten."""
    task = toy.linear_task()
    forget, whole = ssd.importances(task, "example")
    ratio = np.asarray(forget["w"]) / np.maximum(np.asarray(whole["w"]), 1e-30)
    assert 1 < ratio.max() <= 4.0 * (1 + 1e-5)
    kept = toy.unlearn("ssd", task, alpha=4.001).variables
    assert toy.same_bits(kept, task.original)
    assert not toy.same_bits(toy.unlearn("ssd", task, alpha=1.0).variables, task.original)


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


# Label-free SSD.


def test_lfssds_importance_is_the_mean_absolute_gradient_by_hand():
    """Of a linear model: |∂‖xᵀW‖²/∂W| = |2 x (xᵀW)| for each example, whatever the batch size."""
    for size in (4, 16, 40):
        task = toy.linear_task(batch_size=size)
        x, w = toy.inputs(task)[:7], task.original["params"]["w"].astype(np.float64)
        gradients = 2 * x[:, :, None] * (x @ w)[:, None]
        found = ssd.importance(task, np.arange(7), "example", lfssd.ABSOLUTE)["w"]
        np.testing.assert_allclose(found, np.abs(gradients).mean(0), rtol=1e-4, atol=1e-6)
        parts = [gradients[i : i + size] for i in range(0, 7, size)]
        found = ssd.importance(task, np.arange(7), "batch", lfssd.ABSOLUTE)["w"]
        expected = np.mean([np.abs(part.mean(0)) for part in parts], 0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_lfssd_of_everything_selects_nothing_or_halves_what_has_a_gradient():
    everything = np.arange(40)
    task = toy.linear_task(forget=everything, retain=everything[:0])
    assert toy.same_bits(toy.unlearn("lfssd", task, alpha=1.0).variables, task.original)
    half = toy.weights(toy.unlearn("lfssd", task, alpha=0.5, dampening=0.5))
    np.testing.assert_allclose(half, 0.5 * task.original["params"]["w"], rtol=1e-6)


# Adaptive SSD.


def test_assd_selects_the_published_share_of_the_parameters():
    rng = np.random.default_rng(0)
    forget, whole = (
        {"a": rng.exponential(size=(400, 100)).astype(np.float32), "b": np.ones(10, np.float32)}
        for _ in range(2)
    )
    whole["b"][:] = 0  # never used: neither counted nor selected
    for share, percent in ((0.001, 0.0953), (0.01, 0.693), (0.1, 2.398), (0.5, 3.932)):
        alpha = assd.threshold(forget, whole, share)
        selected = (forget["a"] > alpha * whole["a"]).sum()
        assert abs(selected - percent / 100 * 40000) <= 2


def test_assd_dampens_as_ssd_does_with_that_threshold():
    task = toy.linear_task()
    alpha = assd.threshold(*ssd.importances(task, "example"), 10 / 40)
    assert toy.same_bits(
        toy.unlearn("assd", task).variables, toy.unlearn("ssd", task, alpha=alpha).variables
    )
    assert not toy.same_bits(toy.unlearn("assd", task).variables, task.original)


def test_assd_dampens_all_that_only_the_forget_set_uses():
    """More than its share of them: they tie."""
    images, _ = toy.images_and_labels()
    images[10:, :4] = 0
    task = toy.linear_task(images=images, mean=(0.0,))
    before, after = task.original["params"]["w"], toy.weights(toy.unlearn("assd", task))
    np.testing.assert_allclose(after[:32], before[:32] / 4, rtol=1e-5)
    np.testing.assert_array_equal(after[32:], before[32:])


def test_assd_of_everything_changes_nothing():
    everything = np.arange(40)
    task = toy.linear_task(forget=everything, retain=everything[:0])
    assert toy.same_bits(toy.unlearn("assd", task).variables, task.original)


def test_assd_of_a_model_without_gradients_changes_nothing():
    task = toy.linear_task(images=np.zeros((40, 8, 8, 1), np.uint8), mean=(0.0,))
    assert toy.same_bits(toy.unlearn("assd", task).variables, task.original)
