"""What a model takes, counted before it is made, against what is computed then."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxunlearn import estimate, plan, training
from jaxunlearn.methods import METHODS

FAST = {"epochs": 2, "batch_size": 16}


def recipes(path, **methods):
    (one,) = plan.make(toy.experiment_config(path, **methods), 1)
    return one.recipes(0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return toy.write_npz(tmp_path_factory.mktemp("estimate") / "data.npz")


def padded(*counts, size=16):
    """Images in whole batches."""
    return sum(-(-count // size) * size for count in counts)


SETS = (48, 20, 24)  # train, val and test of the file; 20% of train are forgotten: 10


@pytest.mark.parametrize(
    "method, settings, images",
    [
        ("finetune", FAST, 2 * padded(38)),
        ("random_label", FAST, 2 * padded(48)),
        ("salun", {**FAST, "mask": {"ratio": 0.5}}, padded(10) + 2 * padded(48)),
        ("neggrad_plus", FAST, 2 * 2 * padded(38)),  # a retain and a forget batch in each step
        ("ssd", {"batch_size": 16}, None),
        ("noisy_finetune", {**FAST, "steps": 5}, 5 * 16 + 2 * padded(38)),
        ("scrub", {**FAST, "max_epochs": 1, "rewind": False}, 2 * padded(38) + padded(10)),
        (
            "scrub",
            {**FAST, "max_epochs": 1, "rewind": True},
            2 * padded(38) + padded(10) + 2 * padded(10) + padded(20),
        ),
    ],
)
def test_every_pass_and_sweep_of_a_method_is_counted(path, method, settings, images):
    made = estimate.cost(recipes(path, it={"method": method, **settings})["it"])
    if images is None:
        images = padded(10) + padded(48)
    assert made.images == images + padded(*SETS)
    assert made.flops > 0 and made.device_bytes > 0


def test_the_original_costs_its_epochs_over_train(path):
    made = recipes(path)
    assert estimate.cost(made["original"]).images == 4 * padded(48) + padded(*SETS)
    smaller = dataclasses.replace(made["retrained"].setup, batch_size=8)
    fewer = estimate.cost(dataclasses.replace(made["retrained"], setup=smaller))
    assert fewer.images == 4 * padded(38, size=8) + padded(*SETS, size=8)


def test_a_linear_models_arithmetic_is_that_of_its_products(path):
    recipe = recipes(path)["original"]
    # 64 pixels × 2 channels to 3 logits by one product
    setup = dataclasses.replace(recipe.setup, model=toy.linear_model())
    features = int(np.prod(recipe.dataset.train.images.shape[1:]))
    product = 2 * features * toy.NUM_CLASSES  # of one image
    made = estimate.cost(dataclasses.replace(recipe, setup=setup))
    # Forward and the weights' gradient in training; forward in prediction; no gradient of images.
    least = 4 * padded(48) * 2 * product + padded(*SETS) * product
    # Normalising, the loss and the update come on top.
    assert least <= made.flops < 3 * least


def test_memory_is_about_what_the_compiled_step_takes(path):
    recipe = recipes(path)["original"]
    setup = dataclasses.replace(recipe.setup, batch_size=256)
    made = estimate.cost(dataclasses.replace(recipe, setup=setup))
    programs = toy.programs()
    placed = training.Images.of(jnp.asarray(recipe.dataset.train.images))
    bench = training.Bench(setup, placed, programs)
    variables = training.fresh(bench, 0)
    action = training.Pass(
        training.cross_entropy, recipe.split.retain, recipe.dataset.train.labels, 0.1
    )
    epoch = training.loop.make_epoch(bench, action, stage="train", seed=0, number=0)
    state = training.step.start_state(variables, setup, programs.mesh)
    kind = training.step.Kind.of(action)
    args = (state, bench.images, epoch)
    compiled = programs(training.step.make_step(setup, kind), *args)
    sizes = compiled.memory_analysis()
    taken = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    assert taken / 3 < made.device_bytes < 3 * taken


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_counted(path, method):
    settings = {"batch_size": 16}
    if "epochs" in METHODS[method].defaults:
        settings["epochs"] = 1
    config = toy.experiment_config(path, it={"method": method, **settings})
    if METHODS[method].requests == ("class",):
        config.forget.kind, config.forget.classes = "class", (0,)
    (one,) = plan.make(config, 1)
    made = estimate.cost(one.recipes(0)["it"])
    assert made.images >= padded(*SETS) and np.isfinite(made.flops)
