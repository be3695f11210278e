"""Architectures, their variables, and that the fast ones compute what the plain ones compute."""

import dataclasses
import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import models
from jaxunlearn.errors import UserError
from jaxunlearn.models.resnet import ResNet

IMAGES = jax.random.normal(jax.random.key(0), (8, 14, 14, 3))


def shapes_of(model, shape):
    """Variables, logits and new state for images of this shape, without computing."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def train(variables, images):
        return model.apply(variables, images, True, None)

    return variables, *jax.eval_shape(train, variables, images)


def gradients(model, variables, images):
    """Loss, new state and the gradient of the parameters."""

    def loss(params, state, images):
        logits, state = model.apply({"params": params, **state}, images, True, None)
        targets = jnp.arange(len(images)) % logits.shape[-1]
        return -jnp.mean(
            jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(targets, 5), -1)
        ), state

    state = {name: tree for name, tree in variables.items() if name != "params"}
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return step(variables["params"], state, images)


def assert_close(actual, expected, tolerance):
    """Within `tolerance` of the norm, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(a - b) <= tolerance * jnp.linalg.norm(b) + 1e-6


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_173_962), ("resnet50", 23_520_842), ("cnn", 373_834)]
)
def test_parameter_counts(name, count):
    variables, logits, state = shapes_of(models.build(name, num_classes=10), (2, 32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert set(variables) == {"params", "batch_stats"} and set(state) == {"batch_stats"}
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), {"batch_stats": variables["batch_stats"]}
    )


@pytest.mark.parametrize(("size", "stem"), [(28, 3), (127, 3), (128, 7)])
def test_stem_follows_the_image_size(size, stem):
    model = models.build("resnet18", num_classes=2, width=8)
    variables, logits, _ = shapes_of(model, (2, size, size, 1))
    assert variables["params"]["Conv_0"]["kernel"].shape == (stem, stem, 1, 8)
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variables_and_logits_are_float32(name, dtype):
    model = models.build(name, num_classes=4, width=4, dtype=dtype)
    variables, logits, state = shapes_of(model, (2, 28, 28, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, state))} == {
        jnp.dtype("float32")
    }


def test_initial_kernels_are_he_normal_over_the_fan_out():
    model = models.build("resnet18", num_classes=10, width=16)
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    kernel = variables["params"]["Conv_15"]["kernel"]
    assert kernel.shape == (3, 3, 64, 128)
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert abs(np.mean(kernel)) < 1e-3
    assert set(np.unique(variables["params"]["BatchNorm_3"]["scale"])) == {1}
    assert set(np.unique(variables["params"]["BatchNorm_3"]["bias"])) == {0}
    assert set(np.unique(variables["batch_stats"]["BatchNorm_3"]["var"])) == {1}
    other = jax.jit(model.init)(jax.random.key(2), IMAGES)
    assert np.abs(other["params"]["Conv_15"]["kernel"] - kernel).min() > 0


@pytest.mark.slow
def test_evaluation_leaves_the_state_and_sees_each_image_alone():
    model = models.build("cnn", num_classes=5, width=4)
    variables = model.init(jax.random.key(1), IMAGES)
    logits, state = model.apply(variables, IMAGES, False, None)
    assert state == {"batch_stats": variables["batch_stats"]}
    np.testing.assert_allclose(
        model.apply(variables, IMAGES[:1], False, None)[0], logits[:1], rtol=1e-5, atol=1e-6
    )
    trained, new_state = model.apply(variables, IMAGES, True, None)
    assert np.abs(trained - logits).max() > 1e-3
    assert set(new_state) == {"batch_stats"}
    assert any(
        np.abs(a - b).max() > 0
        for a, b in zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [False, True])
def test_gradients_equal_those_of_the_plain_model(monkeypatch, bottleneck):
    # Each kind of block that the ResNets have, and no more of them: compiling takes the time.
    name = f"bottleneck={bottleneck}"
    small = functools.partial(models.shipped, ResNet, blocks=(2, 1), bottleneck=bottleneck)
    monkeypatch.setitem(models.MODELS, name, small)
    fast, plain = (
        models.build(name, num_classes=5, width=4, custom_gradients=c) for c in (True, False)
    )
    variables = jax.jit(fast.init)(jax.random.key(1), IMAGES)
    assert_close(gradients(fast, variables, IMAGES), gradients(plain, variables, IMAGES), 1e-4)


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same():
    exact, rounded = (
        models.build("cnn", num_classes=5, width=8, dtype=d) for d in ("float32", "bfloat16")
    )
    variables = jax.jit(exact.init)(jax.random.key(1), IMAGES)
    assert_close(gradients(rounded, variables, IMAGES), gradients(exact, variables, IMAGES), 0.25)


@pytest.mark.slow
def test_batch_sharded_over_devices_gives_the_numbers_of_one():
    model = models.build("cnn", num_classes=5, width=4)
    variables = model.init(jax.random.key(1), IMAGES)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 4
    sharded = (
        jax.device_put(variables, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data"))),
    )
    assert_close(gradients(model, *sharded), gradients(model, variables, IMAGES), 1e-5)


def test_gradients_of_single_examples_by_vmap():
    model = models.build("cnn", num_classes=5, width=4)
    variables = model.init(jax.random.key(1), IMAGES)

    @jax.jit
    def gradient(image):
        def loss(params):
            every = {**variables, "params": params}
            return jnp.sum(model.apply(every, image[None], False, None)[0] ** 2)

        return jax.grad(loss)(variables["params"])

    together = jax.jit(jax.vmap(gradient))(IMAGES)
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(gradient, IMAGES))
    assert_close(together, alone, 1e-5)


def test_without_custom_gradients_forward_mode_works():
    model = models.build("cnn", num_classes=5, width=4, custom_gradients=False)
    variables = model.init(jax.random.key(1), IMAGES)

    def logits(images):
        return model.apply(variables, images, True, None)[0]

    _, tangent = jax.jvp(logits, (IMAGES,), (jnp.ones_like(IMAGES),))
    assert tangent.shape == (8, 5)


class Own(nn.Module):
    """A user's module: a parameter of its own kind, with its own initial value; no batch norm."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        gain = self.param("gain", nn.initializers.constant(3.0), (1, x.shape[-1]))
        return nn.Dense(self.num_classes)(x * gain)


def wide(num_classes, width=1):
    return Own(num_classes * width)


@pytest.fixture
def mynets(monkeypatch):
    """A user's module of networks, as if it lay in the current folder."""
    module = types.ModuleType("mynets")
    module.Own, module.wide, module.nothing = Own, wide, lambda num_classes: None
    module.instance = Own(5)
    module.pair = models.from_flax(Own(5))
    module.fails = lambda num_classes: 1 / 0
    for made in (Own, wide):
        monkeypatch.setattr(made, "__module__", "mynets")
    monkeypatch.setitem(sys.modules, "mynets", module)


def test_a_users_own_module_is_trained_by_its_path(mynets):
    model = models.build("mynets:Own", num_classes=5)
    variables = model.init(jax.random.key(0), IMAGES)
    np.testing.assert_array_equal(variables["params"]["gain"], 3.0)
    expected, state = model.apply(variables, IMAGES, True, jax.random.key(0))
    assert expected.shape == (8, 5) and state == {}
    np.testing.assert_array_equal(model.apply(variables, IMAGES, False, None)[0], expected)
    assert model is models.build("mynets:Own", num_classes=5) and model.features is None
    result = toy.unlearn("salun", own_task("mynets:Own"), epochs=1)
    assert set(result.variables["params"]) == {"gain", "Dense_0"}


def own_task(name):
    """The toy problem with the user's module as the original."""
    model = models.build(name, num_classes=toy.NUM_CLASSES)
    task = toy.task(the_setup=toy.setup(model=model))
    variables = model.init(
        jax.random.key(0), np.zeros((1, *task.bench.images.shape[1:]), np.float32)
    )
    return dataclasses.replace(task, original=jax.device_get(variables))


@pytest.mark.parametrize(
    "name, outputs", [("instance", 5), ("pair", 5), ("Own", 5), ("wide", 5 * 16)]
)
def test_a_path_may_name_a_module_a_model_or_a_function(mynets, name, outputs):
    model = models.build(f"mynets:{name}", num_classes=5, width=16)
    assert shapes_of(model, (2, 8, 8, 1))[1].shape == (2, outputs)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mynets:Onw", "unknown name in mynets 'Onw': did you mean 'Own'"),
        ("mynet:Own", "no module 'mynet'"),
        ("mynets:fails", "model 'mynets:fails' cannot be built: division by zero"),
        ("mynets:nothing", "must be a flax.linen.Module or .* got NoneType"),
    ],
)
def test_what_is_wrong_with_a_path_is_one_line(mynets, name, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(name, num_classes=5)
    assert "\n" not in str(error.value)


class Random(nn.Module):
    """Dropout, noise from a stream of its own, and batch norm."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
        if train:
            x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train)(x))


def test_the_key_feeds_what_is_random_in_training_and_nothing_in_evaluation():
    model = models.from_flax(Random(5))
    variables = model.init(jax.random.key(0), IMAGES)
    assert set(variables) == {"params", "batch_stats"}
    one, again, other = (
        jax.jit(model.apply, static_argnums=2)(variables, IMAGES, True, jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    assert toy.same_bits(one, again) and not toy.same_bits(one[0], other[0])
    assert set(one[1]) == {"batch_stats"}
    evaluated = [model.apply(variables, IMAGES, False, key) for key in (None, jax.random.key(3))]
    assert toy.same_bits(*evaluated)


def test_the_key_changes_no_bit_where_nothing_is_random():
    model = models.build("cnn", num_classes=5, width=4)
    variables = model.init(jax.random.key(1), IMAGES)
    train = jax.jit(model.apply, static_argnums=2)
    outputs = [train(variables, IMAGES, True, jax.random.key(seed)) for seed in (1, 2)]
    assert toy.same_bits(*outputs)
    assert toy.same_bits(outputs[0], train(variables, IMAGES, True, None))


def test_training_a_random_model_is_random_by_its_seed_only():
    model = models.from_flax(Random(toy.NUM_CLASSES))
    the_setup = toy.setup(model=model)
    blank = np.zeros((1, 8, 8, 1), np.float32)
    original = jax.device_get(model.init(jax.random.key(0), blank))
    runs = [
        toy.unlearn("finetune", toy.task(seed, the_setup, original=original), epochs=1)
        for seed in (0, 0, 1)
    ]
    assert toy.same_bits(runs[0].variables, runs[1].variables)
    assert not toy.same_bits(runs[0].variables, runs[2].variables)


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("cnn", 16), ("resnet18", 32)])
def test_features_are_what_the_last_layer_sees(name, size):
    model = models.build(name, num_classes=5, width=4)
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    features = jax.jit(model.features)(variables, IMAGES)
    assert features.shape == (8, size) and features.dtype == jnp.float32
    last = variables["params"]["Dense_0"]
    logits, _ = model.apply(variables, IMAGES, False, None)
    np.testing.assert_allclose(
        features @ last["kernel"] + last["bias"][None], logits, rtol=1e-4, atol=1e-5
    )


def test_the_same_arguments_give_the_same_model():
    model = models.build("resnet18", num_classes=5)
    spelt_out = {"width": 64, "dtype": "float32", "custom_gradients": True}
    assert model is models.build("resnet18", num_classes=5, **spelt_out)
    assert hash(model) == hash(models.build("resnet18", num_classes=5))
    assert model != models.build("resnet18", num_classes=5, custom_gradients=False)
    assert model != models.build("resnet18", num_classes=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "unknown model 'resnet19': did you mean 'resnet18'.*MODULE:NAME"),
        ({"name": "cnn", "width": 0}, r"model\.width must be a whole number, 1 or more, got 0"),
        ({"name": "cnn", "width": -4}, r"model\.width .* got -4"),
        ({"name": "cnn", "width": 2.5}, r"model\.width .* got 2\.5"),
        ({"name": "cnn", "dtype": "float16"}, r"model\.dtype .* got 'float16'; .*'bfloat16'"),
    ],
)
def test_a_wrong_argument_is_a_user_error_of_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(**arguments, num_classes=5)
    assert "\n" not in str(error.value)
