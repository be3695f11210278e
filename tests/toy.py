"""A problem small enough for every test: 40 images of 8 × 8, three classes, a tiny network."""

import dataclasses
import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import augment, config, devices, keys, models, training
from jaxunlearn.data.dataset import Examples
from jaxunlearn.data.forget import Split
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.task import Shared, Task

NUM_CLASSES = 3


def images_and_labels(count=40, size=8, channels=1, num_classes=NUM_CLASSES, seed=0):
    """Images uint8 whose brightness tells the class, roughly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count).astype(np.int32)
    noise = rng.integers(0, 120, (count, size, size, channels))
    return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels


@functools.cache
def programs(count=1):
    return training.Programs(devices.make_mesh(count))


def setup(**changes):
    values = dict(
        model=models.build("cnn", num_classes=NUM_CLASSES, width=8),
        num_classes=NUM_CLASSES,
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


def task(seed=0, the_setup=None, count=1, malignant=(2,), images=None):
    made, labels = images_and_labels()
    images = made if images is None else images
    on = programs(count)
    return Task(
        original=initial(),
        split=Split(np.arange(10), np.arange(10, 40)),
        images=devices.replicate(images, on.mesh),
        labels=labels,
        val=Examples(*images_and_labels(30, seed=1)),
        malignant=malignant,
        seed=seed,
        setup=the_setup or setup(),
        programs=on,
        shared=Shared(),
    )


def settings(method, **changes) -> ConfigDict:
    """A method's settings, for two short epochs unless said otherwise."""
    return config.methods(it={"method": method, "epochs": 2, **changes})["it"]


def unlearn(method, the_task=None, **changes) -> training.Result:
    """Runs a method on the toy problem."""
    the_task = the_task or task()
    values = settings(method, **changes)
    the_setup = dataclasses.replace(the_task.setup, weight_decay=values.weight_decay)
    the_task = the_task._replace(setup=the_setup)
    return training.run(
        METHODS[values.method].passes(the_task, values),
        the_task.original,
        the_task.images,
        the_setup,
        stage="unlearn",
        seed=the_task.seed,
        programs=the_task.programs,
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
