"""The order of layers, from programs whose parameters' names say nothing of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import models
from jaxunlearn.errors import UserError
from jaxunlearn.methods import parts


def layers_of(model, shape=(8, 8, 1)):
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    return variables, parts.weight_layers(model, variables, shape)


def test_layers_of_a_resnet_are_in_the_order_of_the_forward_computation():
    """By Flax's counters, whose alphabetical order is another: Conv_10 stands before Conv_2."""
    variables, layers = layers_of(models.build("resnet18", num_classes=3, width=4))
    kernels = [f"params/Conv_{i}/kernel" for i in range(20)] + ["params/Dense_0/kernel"]
    assert [layer.kernel for layer in layers] == kernels
    assert kernels != sorted(kernels)
    for i, layer in enumerate(layers[:-1]):
        norm = f"BatchNorm_{i}"
        assert sorted(layer.params) == [f"params/{norm}/bias", f"params/{norm}/scale", kernels[i]]
        assert sorted(layer.state) == [f"batch_stats/{norm}/{name}" for name in ("mean", "var")]
        assert (layer.spatial, layer.inputs, layer.outputs) == ((0, 1), (2,), (3,))
        assert layer.is_conv
    head = layers[-1]
    assert head.params == ("params/Dense_0/kernel", "params/Dense_0/bias") and not head.state
    assert (head.is_conv, head.inputs, head.outputs) == (False, (0,), (1,))
    every = [path for layer in layers for path in layer.params]
    assert len(every) == len(set(every)) == len(jax.tree.leaves(variables["params"]))


class Odd(nn.Module):
    """A norm before the first layer, a shared layer, weight norm, attention."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train, name="first")(images)
        shared = nn.Conv(4, (3, 3), name="z")
        x = shared(jnp.tile(x, (1, 1, 1, 4)))
        x = nn.remat(nn.Conv)(4, (1, 1), name="y")(shared(x))
        x = nn.WeightNorm(nn.Dense(6, name="x"))(x.reshape(len(x), -1, 4))
        x = nn.MultiHeadDotProductAttention(2, name="w")(x)
        return nn.Dense(3, name="a")(x.mean(1))


def test_shared_normalised_and_wrapped_kernels_are_layers():
    variables, layers = layers_of(models.from_flax(Odd()))
    names = [layer.kernel.removeprefix("params/").removesuffix("/kernel") for layer in layers]
    assert names == ["z", "y", "x", "w/query", "w/key", "w/value", "w/out", "a"]
    first = layers[0]
    assert set(first.params) == {
        f"params/{name}" for name in ("first/scale", "first/bias", "z/kernel", "z/bias")
    }
    assert set(first.state) == {"batch_stats/first/mean", "batch_stats/first/var"}
    every = [path for layer in layers for path in layer.params]
    assert len(every) == len(set(every)) == len(jax.tree.leaves(variables["params"]))


def unfolded(layer, variables):
    """The layer's kernel as a matrix [fan-in, outputs]."""
    kernel = variables
    for name in layer.kernel.split("/"):
        kernel = kernel[name]
    axes = layer.inputs + layer.spatial
    return np.moveaxis(np.asarray(kernel), axes, range(len(axes))).reshape(layer.fan_in, -1)


def filled(model, shape):
    """Variables of a model, none of them 0, and images."""
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(variables)) + 1)
    leaves, structure = jax.tree.flatten(variables)
    values = [
        jnp.abs(leaf + 0.1 * jax.random.normal(key, leaf.shape))
        if leaf.ndim == 1
        else leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys[1:], strict=True)
    ]
    return jax.tree.unflatten(structure, values), jax.random.normal(keys[0], (3, *shape))


@pytest.mark.parametrize("jitted", [False, True])
def test_what_a_layer_sees_times_its_kernel_is_what_it_gives(jitted):
    """By Flax's own record of what its modules give, in a model of all kinds of layers."""
    model, module = models.from_flax(Odd()), Odd()
    variables, images = filled(model, (8, 8, 1))

    def seen(variables, images):
        found = parts.layer_inputs(lambda v, x: model.apply(v, x, False)[0], variables, images)
        return {layer.kernel: rows for layer, rows in found}

    rows = (jax.jit(seen) if jitted else seen)(variables, images)
    _, record = module.apply(
        variables, images, False, capture_intermediates=True, mutable="intermediates"
    )
    record = record["intermediates"]
    layers = {layer.kernel: layer for layer in parts.weight_layers(model, variables, (8, 8, 1))}
    assert set(rows) == set(layers)
    for name in ("z", "a", "w/query", "w/value"):
        path, own = f"params/{name}/kernel", variables["params"]
        given = record
        for part in name.split("/"):
            given, own = given[part], own[part]
        given = np.asarray(given["__call__"][0]).reshape(-1, own["bias"].size)
        expected = np.asarray(rows[path]) @ unfolded(layers[path], variables) + np.ravel(
            own["bias"]
        )
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)


def test_what_convolutions_of_any_stride_and_layout_see():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 9, 7, 3)).astype(np.float32))
    variables = {"params": {"k": jnp.asarray(rng.normal(size=(5, 3, 3, 2)).astype(np.float32))}}

    def apply(variables, images):
        return jax.lax.conv_general_dilated(
            images,
            variables["params"]["k"],
            (2, 1),
            ((1, 0), (0, 2)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )

    ((layer, rows),) = parts.layer_inputs(apply, variables, images)
    expected = np.asarray(apply(variables, images)).reshape(-1, 5)
    np.testing.assert_allclose(rows @ unfolded(layer, variables), expected, rtol=1e-4, atol=1e-4)


def test_layers_within_loops_are_known_and_what_they_see_is_not():
    variables = {"params": {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 3))}}

    def apply(variables, images):
        params, x = variables["params"], images.reshape(len(images), -1)[:, :4]
        x = jax.lax.fori_loop(0, 2, lambda i, x: x @ params["a"], x)
        return x @ params["b"]

    found = parts.layer_inputs(apply, variables, jnp.ones((2, 8, 8, 1)))
    assert [layer.kernel for layer, _ in found] == ["params/b"]
    np.testing.assert_array_equal(found[0][1], np.full((2, 4), 16.0))
    model = models.Model(None, lambda v, x, train, key: (apply(v, x), {}))
    layers = parts.weight_layers(model, variables, (8, 8, 1))
    assert [layer.kernel for layer in layers] == ["params/a", "params/b"]


def test_kernels_in_another_layout_are_told_by_the_program():
    """[out, in], transposed in use, and [out, in, height, width], as PyTorch keeps them."""

    def init(key, images):
        shapes = {"b": (5, 1, 3, 2), "a": (3, 5)}
        return {"params": {name: jnp.ones(shape) for name, shape in shapes.items()}}

    def apply(variables, images, train, key):
        params = variables["params"]
        numbers = ("NHWC", "OIHW", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, params["b"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return x.mean((1, 2)) @ params["a"].T, {}

    _, (conv, dense) = layers_of(models.Model(init, apply))
    assert (conv.kernel, conv.outputs, conv.inputs, conv.spatial) == (
        "params/b",
        (0,),
        (1,),
        (2, 3),
    )
    assert (dense.kernel, dense.outputs, dense.inputs) == ("params/a", (0,), (1,))


def test_a_model_whose_layers_cannot_be_told_is_an_error():
    def init(key, images):
        return {"params": {"w": jnp.ones((3 * 64,))}}

    def reshaped(variables, images, train, key):
        return images.reshape(len(images), -1) @ variables["params"]["w"].reshape(64, 3), {}

    def without(variables, images, train, key):
        return variables["params"]["w"][None, :3] * images.mean((1, 2, 3))[:, None], {}

    with pytest.raises(UserError, match=r"params/w of shape \(192,\) as \(64, 3\)"):
        layers_of(models.Model(init, reshaped))
    with pytest.raises(UserError, match="no convolution and no matrix product"):
        layers_of(models.Model(init, without))


def test_the_last_layers_alone_may_change():
    params = toy.initial()["params"]
    layers = parts.weight_layers(toy.setup().model, toy.initial(), (8, 8, 1))
    names = {0: set(), 1: {"Dense_0"}, 2: {"Dense_0", "Conv_2", "BatchNorm_2"}}
    for k in range(6):
        mask = parts.last(params, layers, k)
        assert jax.tree.structure(mask) == jax.tree.structure(params)
        changing = {
            name for name, part in mask.items() if all(leaf.all() for leaf in jax.tree.leaves(part))
        }
        frozen = {name for name in mask if not any(leaf.any() for leaf in mask[name].values())}
        assert changing == names.get(k, changing) and changing | frozen == set(params)
    assert changing == set(params)
