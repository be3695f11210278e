"""JiT's loss on linear models, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import training
from jaxunlearn.methods import METHODS, jit

W = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(4, 2, 3, 2)).astype(np.float32)
WEIGHT = np.array([1, 1, 1, 0], np.float32)  # the fourth is padding


def linear(params, images):
    return images.reshape(len(images), -1) @ params


def batch(forward=linear, seed=0):
    return training.Batch(
        jnp.asarray(IMAGES),
        None,
        jnp.asarray(WEIGHT),
        {},
        key=jax.random.key(seed),
        forward=forward,
    )


def value(objective, params, sigmas, seed=0, forward=linear):
    data = batch(forward, seed)
    return objective(params, forward(params, data.images), data, sigmas)


SIGMAS = jnp.full(20000, 0.1)


@pytest.mark.parametrize("objective", [jit.released, jit.paper])
def test_the_loss_of_a_linear_model_is_how_much_it_stretches_noise(objective):
    """‖Wᵀξ‖/‖ξ‖, whatever x and σ; summed over the three images."""
    noise = np.random.default_rng(2).normal(size=(200000, 12))
    stretch = np.linalg.norm(noise @ W, axis=1) / np.linalg.norm(noise, axis=1)
    for sigma in (0.1, 2.0):
        found = float(value(objective, jnp.asarray(W), SIGMAS * sigma * 10))
        assert found == pytest.approx(3 * stretch.mean(), rel=0.01)


def test_held_fixed_the_gradient_of_a_linear_model_is_zero_on_average():
    sigmas = 10 * SIGMAS  # large beside x, for a mean of small variance
    grad = [
        jax.grad(lambda w, objective=objective: value(objective, w, sigmas))(jnp.asarray(W))
        for objective in (jit.released, jit.paper)
    ]
    assert np.linalg.norm(grad[0]) < 0.05 * np.linalg.norm(grad[1])
    # ‖Wᵀξ‖ is homogeneous of degree 1 in W: the gradient along W is the loss
    loss = float(value(jit.paper, jnp.asarray(W), sigmas))
    assert float(jnp.sum(grad[1] * W)) == pytest.approx(loss, rel=1e-4)


def test_the_loss_against_a_plain_computation_with_its_own_draws():
    sigmas = jnp.array([0.1, 0.1, 0.1], jnp.float32)

    def bent(params, images):
        return jnp.tanh(linear(params, images))

    noise = np.asarray(jax.random.normal(jax.random.key(5), (3, *IMAGES.shape))) * 0.1
    total = 0.0
    for x, real, xis in zip(IMAGES, WEIGHT, noise.swapaxes(0, 1), strict=True):
        for xi in xis:
            gap = np.tanh(x.ravel() @ W) - np.tanh((x + xi).ravel() @ W)
            total += real * np.linalg.norm(gap) / np.linalg.norm(xi) / 3
    found = value(jit.released, jnp.asarray(W), sigmas, 5, bent)
    assert float(found) == pytest.approx(total, rel=1e-4)


def test_a_constant_has_no_loss_and_a_finite_gradient():
    def flat(params, images):
        return jnp.zeros((len(images), 3)) + params.sum()

    sigmas = SIGMAS[:5]
    found, gradient = jax.value_and_grad(lambda w: value(jit.paper, w, sigmas, forward=flat))(W)
    assert float(found) < 1e-9 and not np.asarray(gradient).any()


def test_only_forget_images_are_passed_over_and_batch_statistics_stay_where_they_are_frozen():
    passes = list(METHODS["jit"].passes(toy.task(), toy.settings("jit", samples=3)))
    assert all((action.indices == np.arange(10)).all() for action in passes)
    given = {"samples": 3, "detach": False, "lr": 0.01}
    moving = toy.unlearn("jit", **given).variables
    assert not toy.same_bits(moving["batch_stats"], toy.initial()["batch_stats"])
    found = toy.unlearn("jit", **given, frozen_statistics=True).variables
    assert toy.same_bits(found["batch_stats"], toy.initial()["batch_stats"])
