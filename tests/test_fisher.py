"""Fisher forgetting on softmax regression and on a small network, against its formulae in NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from jaxunlearn.methods import fisher, parts


def inputs():
    return (toy.images_and_labels()[0].reshape(40, -1) / 255 - 0.5) / 0.5


def probabilities(w, rows):
    z = inputs()[rows] @ w
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def settings(**changes):
    return toy.settings("fisher", **changes)


def test_the_information_of_softmax_regression_by_hand():
    """Σ_y p_y (p − e_y)² = p(1 − p), so F = E p(1 − p) ⊗ x²."""
    for size in (7, 16):
        task = toy.linear_task(batch_size=size)
        p = probabilities(task.original["params"]["w"].astype(np.float64), task.retain)
        expected = np.mean((inputs()[task.retain] ** 2)[:, :, None] * (p * (1 - p))[:, None], 0)
        found = fisher.information(task, "all")["w"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_second_request_meets_noise_of_its_own():
    """The same noise again would not add up as noise does, but double."""
    task = toy.linear_task()
    first = np.asarray(toy.weights(toy.unlearn("fisher", task, alpha=1e-3)))
    later = dataclasses.replace(task, original={"params": {"w": first}})
    second = toy.weights(toy.unlearn("fisher", later, alpha=1e-3))
    moves = [(first - task.original["params"]["w"]).ravel(), (second - first).ravel()]
    assert abs(np.corrcoef(*moves)[0, 1]) < 0.3
    again = toy.weights(toy.unlearn("fisher", task, alpha=1e-3))
    assert (again == first).all()


def test_labels_drawn_give_the_same_information_on_average():
    """Of one image many times over, by the frequencies of its labels."""
    image = toy.images_and_labels()[0][3]
    task = toy.linear_task(images=np.repeat(image[None], 40, 0), retain=np.arange(40))
    task = dataclasses.replace(task, original={"params": {"w": 3 * task.original["params"]["w"]}})
    w, x = task.original["params"]["w"].astype(np.float64), inputs()[3]
    draws = [
        fisher.information(dataclasses.replace(task, seed=seed), "drawn")["w"] for seed in range(8)
    ]
    p = np.exp(x @ w) / np.exp(x @ w).sum()
    expected = x[:, None] ** 2 * p * (1 - p)
    assert (draws[0] != draws[1]).any()
    np.testing.assert_allclose(np.mean(draws, 0), expected, rtol=0.3, atol=1e-6)


@pytest.mark.parametrize("form", fisher.FORMS)
def test_draws_have_the_variance_of_the_formula(form):
    task = toy.linear_task()
    w, f = task.original["params"]["w"], fisher.information(task, "all")["w"].astype(np.float64)
    if form == "paper":
        expected = 0.01 / np.sqrt(f + 1e-8)
    else:  # the only layer is the head: at most 100, the mean over inputs, ten times
        capped = np.minimum(1 / (f + 1e-8), 100)
        expected = np.broadcast_to(0.1 * capped.mean(0), f.shape)
    mean, variance = fisher.moments(task, settings(form=form, alpha=0.01))
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(variance["w"], expected, rtol=1e-4)
    draws = np.stack([fisher.drawn(mean, variance, rng)["w"] for _ in range(2000)])
    np.testing.assert_allclose(draws.var(0), expected, rtol=0.2)
    assert abs((draws.mean(0) - w) / np.sqrt(expected / 2000)).max() < 5


def test_the_released_variance_of_a_network_layer_by_layer():
    task, layers = toy.task(), parts.weight_layers(toy.setup().model, toy.initial(), (8, 8, 1))
    f = fisher.information(task, "all")
    mean, variance = fisher.moments(task, settings(alpha=0.5))
    assert toy.same_bits(mean, toy.initial()["params"])
    capped = np.minimum(1 / (f["Conv_1"]["kernel"].astype(np.float64) + 1e-8), 1000)
    expected = np.broadcast_to(0.5 * capped.mean(2, keepdims=True), capped.shape)
    np.testing.assert_allclose(variance["Conv_1"]["kernel"], expected, rtol=1e-4)
    scale = np.minimum(1 / (f["BatchNorm_0"]["scale"].astype(np.float64) + 1e-8), 1000)
    np.testing.assert_allclose(variance["BatchNorm_0"]["scale"], 5 * scale, rtol=1e-4)
    bias = np.minimum(1 / (f["Dense_0"]["bias"].astype(np.float64) + 1e-8), 100)
    np.testing.assert_allclose(variance["Dense_0"]["bias"], 5 * bias, rtol=1e-4)
    assert layers[-1].kernel == "params/Dense_0/kernel"


def test_the_head_of_a_class_that_is_gone_becomes_noise_as_published():
    labels = toy.images_and_labels()[1]
    task = toy.task(forget=np.flatnonzero(labels == 1), retain=np.flatnonzero(labels != 1))
    mean, variance = fisher.moments(task, settings())
    head, spread = mean["Dense_0"], variance["Dense_0"]
    assert not head["kernel"][:, 1].any() and head["bias"][1] == 0
    assert (spread["kernel"][:, 1] == 1e-3).all() and spread["bias"][1] == np.float32(1e-3)
    before = toy.initial()["params"]
    np.testing.assert_array_equal(head["kernel"][:, [0, 2]], before["Dense_0"]["kernel"][:, [0, 2]])
    rest, same = ({k: v for k, v in p.items() if k != "Dense_0"} for p in (mean, before))
    assert toy.same_bits(rest, same)
    in_paper, _ = fisher.moments(task, settings(form="paper"))
    assert toy.same_bits(in_paper, before)
    changed = jax.device_get(toy.unlearn("fisher", task, alpha=0.0).variables["params"])
    assert changed["Dense_0"]["kernel"][:, 1].std() == pytest.approx(1e-3**0.5, rel=0.5)
