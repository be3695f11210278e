"""The fast layers compute what the plain ones compute, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.models import layers

KEYS = jax.random.split(jax.random.key(0), 3)


def operands(shape, features, size=3, dtype=jnp.float32):
    images = jax.random.normal(KEYS[0], shape)
    kernel = jax.random.normal(KEYS[1], (size, size, shape[-1], features))
    return images.astype(dtype), kernel.astype(dtype)


def gradients(conv, images, kernel):
    """Of a weighted sum of the outputs, so that every output has a cotangent of its own."""

    def loss(images, kernel):
        y = conv(images, kernel)
        return jnp.sum(y * jax.random.normal(KEYS[2], y.shape).astype(y.dtype), dtype=jnp.float32)

    return jax.jit(jax.grad(loss, (0, 1)))(images, kernel)


def assert_close(actual, expected, tolerance=2e-6):
    """Within `tolerance` of the largest entry, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((8, 14, 14, 4), 8),
        ((13, 15, 15, 3), 5),  # odd sizes, a batch that chunks do not divide
        ((3, 16, 14, 1), 4),  # fewer images than chunks, one channel, not square
        ((1, 14, 14, 2), 3),
        ((2, 1, 1, 2), 3),  # every tap but one sees padding alone
    ],
)
def test_conv3x3_gradients_equal_those_of_the_plain_convolution(shape, features):
    images, kernel = operands(shape, features)
    np.testing.assert_array_equal(layers.conv3x3(images, kernel), layers.plain_conv(images, kernel))
    assert_close(
        gradients(layers.conv3x3, images, kernel), gradients(layers.plain_conv, images, kernel)
    )


def test_conv3x3_in_bfloat16_sums_in_float32():
    images, kernel = operands((32, 14, 14, 4), 4, dtype=jnp.bfloat16)
    dx, dw = gradients(layers.conv3x3, images, kernel)
    assert dx.dtype == dw.dtype == jnp.bfloat16
    _, exact = gradients(layers.plain_conv, images.astype(jnp.float32), kernel.astype(jnp.float32))
    assert_close(dw.astype(jnp.float32), exact, 2**-7)


def test_vmap_of_gradients_is_the_gradient_of_each():
    images, kernel = operands((5, 14, 14, 3), 4)

    @jax.jit
    def one(image):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(layers.conv3x3(image[None], kernel))))(
            kernel
        )

    assert_close(jax.vmap(one)(images), jnp.stack([one(image) for image in images]))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_module_equals_its_plain_self(size, stride):
    height = 15 if size == 3 else 14
    images, kernel = operands((4, height, height, 3), 5, size)
    outputs = []
    for custom_gradients in (True, False):
        module = layers.Conv(5, size=size, stride=stride, custom_gradients=custom_gradients)

        def conv(images, kernel, module=module):
            return module.apply({"params": {"kernel": kernel}}, images)

        outputs.append((conv(images, kernel), *gradients(conv, images, kernel)))
    assert outputs[0][0].shape == (4, -(-height // stride), -(-height // stride), 5)
    assert_close(*outputs)


def test_stride_2_of_3x3_pads_both_sides_alike():
    # PyTorch's padding=1: on an even image the last row and column are seen, the pad after is not.
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y = layers.plain_conv(image, jnp.ones((3, 3, 1, 1)), 2)
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
    images, kernel = operands((16, 14, 14, 3), 4)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))

    def block(images, kernel):
        y = layers.conv3x3(images, kernel)
        return layers.normalise(y, *jnp.ones((2, 1, 1, 1, 4)))[0]

    assert_close(gradients(block, sharded, whole), gradients(block, images, kernel), 1e-5)
