"""A problem small enough for every test: 40 images of 8 × 8, three classes, a tiny network."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import augment, config, devices, keys, models, training
from jaxunlearn.data.dataset import Examples
from jaxunlearn.methods import METHODS, Task, actions
from jaxunlearn.models.layers import BatchNorm, Conv
from jaxunlearn.models.model import shipped

NUM_CLASSES = 3


def images_and_labels(count=40, size=8, channels=1, num_classes=NUM_CLASSES, seed=0):
    """Images uint8 whose brightness tells the class, roughly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count).astype(np.int32)
    noise = rng.integers(0, 120, (count, size, size, channels))
    return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels


@functools.cache
def programs(count=1):
    if count > len(jax.devices()):
        pytest.skip(f"{count} devices are not here")
    return training.Programs(devices.make_mesh(count))


def setup(**changes):
    values = dict(
        model=models.build("cnn", num_classes=NUM_CLASSES, width=8),
        augment=augment.build(()),
        mean=(0.5,),
        std=(0.5,),
        batch_size=16,
        weight_decay=5e-4,
    )
    return training.Setup(**{**values, **changes})


@functools.cache
def initial(seed=0):
    key = keys.stage_key("init", seed, 0)
    init = jax.jit(setup().model.init)
    return jax.device_get(init(key, np.zeros((1, 8, 8, 1), np.float32)))


class Tiny(nn.Module):
    """The least that has what methods look for: a stem, another convolution, norms and a head."""

    num_classes: int = NUM_CLASSES

    @nn.compact
    def __call__(self, images, train, penultimate=False):
        """Logits, or what the head sees."""
        x = Conv(4, stride=2)(images)
        x = nn.relu(BatchNorm()(x, train))
        x = nn.relu(BatchNorm()(Conv(8, stride=2)(x), train))
        x = jnp.mean(x, (1, 2))
        return x if penultimate else nn.Dense(self.num_classes)(x)


@functools.cache
def tiny_model():
    """`Tiny`, which compiles in half the time."""
    return shipped(Tiny)


@functools.cache
def tiny_initial():
    """Its variables."""
    return jax.device_get(jax.jit(tiny_model().init)(jax.random.key(0), np.zeros((1, 8, 8, 1))))


def task(seed=0, the_setup=None, count=1, malignant=(2,), images=None, **changes):
    made, labels = images_and_labels()
    images = made if images is None else images
    on = programs(count)
    values = dict(
        forget=np.arange(10),
        retain=np.arange(10, 40),
        labels=labels,
        num_classes=NUM_CLASSES,
        malignant=malignant,
        val=Examples(*images_and_labels(30, seed=1)),
        seed=seed,
        original=initial(),
        bench=training.Bench(
            the_setup or setup(), devices.replicate(training.Images.of(images), on.mesh), on
        ),
    )
    return Task(**{**values, **changes})


@functools.cache
def linear_model():
    """logits = xᵀW, no batch norm: small enough to train by hand."""

    def init(key, images):
        return {"params": {"w": jax.random.normal(key, (images[0].size, NUM_CLASSES)) * 0.1}}

    def apply(variables, images, train, key):
        return images.reshape(len(images), -1) @ variables["params"]["w"], {}

    return models.Model(init, apply)


def inputs(the_task):
    """What the linear model sees of each image, float64 `[40, 64]`."""
    return (np.asarray(the_task.bench.images, np.float64).reshape(40, -1) / 255 - 0.5) / 0.5


def weights(result):
    """The linear model's, `[64, C]`."""
    return np.asarray(result.variables["params"]["w"])


def softmax(z):
    """Of each row."""
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def cross_entropy_gradient(x, labels, w):
    """Of softmax regression, by hand: mean of x (p − e_y)ᵀ, `[64, C]`."""
    return x.T @ (softmax(x @ w) - np.eye(w.shape[1])[labels]) / len(x)


SETUP_FIELDS = {field.name for field in dataclasses.fields(training.Setup)}


def linear_task(**changes):
    """The problem with a linear model, from random weights; changes of the task or its setup."""
    of_setup = {name: value for name, value in changes.items() if name in SETUP_FIELDS}
    of_task = {name: value for name, value in changes.items() if name not in SETUP_FIELDS}
    w = np.random.default_rng(4).normal(0, 0.1, (64, NUM_CLASSES)).astype(np.float32)
    the_setup = setup(**{"model": linear_model(), "weight_decay": 0.0, **of_setup})
    return task(the_setup=the_setup, **{"original": {"params": {"w": w}}, **of_task})


def settings(method, **changes) -> ConfigDict:
    """A method's settings, for two short epochs unless said otherwise."""
    epochs = {"epochs": 2} if "epochs" in METHODS[method].defaults else {}
    return config.methods(it={"method": method, **epochs, **changes})["it"]


def sets_for(method):
    """A whole class to forget, and the rest, for a method that needs that."""
    if METHODS[method].requests != ("class",):
        return {}
    labels = images_and_labels()[1]
    return {"forget": np.flatnonzero(labels == 1), "retain": np.flatnonzero(labels != 1)}


def task_for(method, **changes):
    """The problem with a tiny network, and with a whole class to forget where a method needs it."""
    tiny = {"the_setup": setup(model=tiny_model()), "original": tiny_initial()}
    return task(**{**tiny, **sets_for(method), **changes})


def unlearn(method, the_task=None, **changes) -> training.Result:
    """Runs a method on the toy problem."""
    the_task = the_task or task()
    values = settings(method, **changes)
    fields = ("optimizer", "momentum", "weight_decay")
    the_setup = dataclasses.replace(
        the_task.bench.setup, **{field: values[field] for field in fields}
    )
    the_task = dataclasses.replace(the_task, bench=the_task.bench._replace(setup=the_setup))
    return training.run(
        actions(the_task, values),
        the_task.original,
        the_task.bench,
        stage="unlearn",
        seed=the_task.seed,
    )


def same_bits(a, b) -> bool:
    """Whether two pytrees are equal to the bit."""
    leaves_a, leaves_b = jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b))
    return len(leaves_a) == len(leaves_b) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(leaves_a, leaves_b, strict=True)
    )


def write_npz(path, counts=(48, 20, 24), num_classes=2, groups=True, **kwargs):
    """A file in MedMNIST's layout."""
    arrays = {}
    for seed, (name, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        images, labels = images_and_labels(count, num_classes=num_classes, seed=seed, **kwargs)
        labels[:num_classes] = np.arange(num_classes)
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images, labels[:, None]
        if groups:
            arrays[f"{name}_groups"] = (1000 * seed + np.arange(count) // 2).astype(np.int32)
    np.savez(path, **arrays)
    return str(path)


def experiment_config(path, **methods) -> ConfigDict:
    """A whole experiment on such a file in seconds."""
    values = config.default()
    values.name = "toy"
    values.data.name = "npz"
    values.data.path = path
    values.data.malignant = (1,)
    values.model.name = "cnn"
    values.model.width = 8
    values.train.epochs = 4
    values.train.batch_size = 16
    values.checkpoint_every = 2
    values.methods = config.methods(
        **(methods or {"finetune": {"epochs": 1, "batch_size": 16}}),
    )
    return values
