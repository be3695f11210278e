"""Convolution as in PyTorch, and batch norm: the fast one computes what the plain one does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.models import layers

KEYS = jax.random.split(jax.random.key(0), 3)


def assert_close(actual, expected, tolerance=2e-6):
    """Within `tolerance` of the largest entry, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_stride_2_of_3x3_pads_both_sides_alike():
    # PyTorch's padding=1: on an even image the last row and column are seen, the pad after is not.
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y = layers.conv(image, jnp.ones((3, 3, 1, 1)), 2)
    expected = [[0 + 1 + 4 + 5, 1 + 2 + 3 + 5 + 6 + 7], [4 + 5 + 8 + 9 + 12 + 13, 90]]
    np.testing.assert_array_equal(y[0, :, :, 0], expected)


def normalised(plain, x, scale, bias):
    """Output and gradients of batch norm."""
    rule = layers.plain_normalise if plain else layers.normalise

    def loss(x, scale, bias):
        y, *moments = rule(x, scale, bias)
        return jnp.sum(y * jax.random.normal(KEYS[2], y.shape)), (y, *moments)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias)


@pytest.mark.parametrize("shape", [(8, 6, 6, 4), (3, 5, 7, 1)])
def test_batch_norm_equals_its_plain_self(shape):
    x = 3 + 2 * jax.random.normal(KEYS[0], shape)
    scale, bias = (1 + jax.random.uniform(key, (1, 1, 1, shape[-1])) for key in KEYS[1:])
    (_, (y, mean, variance)), fast = normalised(False, x, scale, bias)
    (_, plain_outputs), plain = normalised(True, x, scale, bias)
    assert_close((y, mean, variance), plain_outputs, 1e-5)
    assert_close(fast, plain, 1e-5)
    np.testing.assert_allclose(mean.ravel(), np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance.ravel(), np.var(x, (0, 1, 2)), rtol=1e-5)


def test_gradients_of_gradients_go_through_the_moments():
    x = 3 + 2 * jax.random.normal(KEYS[0], (8, 5, 5, 3))
    weight = jax.random.normal(KEYS[1], x.shape)

    def sensitivity(normalise, scale):
        """‖∇ₓ‖² of a function of batch norm's output, as methods have it."""
        one = jnp.ones((1, 1, 1, 3))

        def total(x):
            return jnp.sum(weight * jnp.tanh(normalise(x, one, 0 * one)[0]))

        return jnp.sum(jnp.square(jax.grad(total)(scale * x)))

    fast, plain = (
        jax.grad(functools.partial(sensitivity, each))(1.5)
        for each in (layers.normalise, layers.plain_normalise)
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-4)


@pytest.mark.parametrize("shape", [(256, 64, 64, 16), (256, 32, 32, 64), (64, 28, 28, 64)])
def test_moments_of_large_batches_are_as_exact_as_float32_allows(shape):
    x = np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)
    _, mean, variance = jax.jit(layers.normalise)(x, *np.ones((2, 1, 1, 1, shape[-1]), np.float32))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean.ravel(), exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance.ravel(), exact.var((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_variance_survives_a_mean_far_from_zero(plain):
    # E[x²] − E[x]² in float32 would leave nothing of a variance of 1 under a mean of 10⁴.
    x = 1e4 + jax.random.normal(KEYS[0], (32, 8, 8, 3))
    (_, (_, _, variance)), _ = normalised(plain, x, *jnp.ones((2, 1, 1, 1, 3)))
    np.testing.assert_allclose(variance.ravel(), np.var(np.float64(x), (0, 1, 2)), rtol=1e-2)
    constant = jnp.full((4, 4, 4, 2), 7.0)
    (_, (y, _, variance)), (dx, _, _) = normalised(plain, constant, *jnp.ones((2, 1, 1, 1, 2)))
    np.testing.assert_allclose(variance, 0, atol=1e-8)
    assert jnp.isfinite(y).all() and jnp.isfinite(dx).all()


def test_running_moments_move_by_a_tenth_in_training_only():
    module = layers.BatchNorm()
    x = 5 + 3 * jax.random.normal(KEYS[0], (16, 4, 4, 2))
    variables = module.init(KEYS[1], x, False)
    _, state = module.apply(variables, x, True, mutable=["batch_stats"])
    mean, variance = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    y = module.apply(variables, x, False)
    np.testing.assert_allclose(np.asarray(y), x / np.sqrt(1 + layers.EPSILON), rtol=1e-6)


def test_batch_sharded_over_devices_gives_the_same_numbers():
    images = jax.random.normal(KEYS[0], (16, 14, 14, 4))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    parameters = jnp.ones((2, 1, 1, 1, 4))
    assert_close(
        normalised(False, sharded, *parameters), normalised(False, images, *parameters), 1e-5
    )
