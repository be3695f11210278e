import jax
import numpy as np
import optax
import pytest
import toy

from jaxunlearn import augment, keys, training
from jaxunlearn.methods import saliency
from jaxunlearn.training.passes import FRESH_OPTIMIZER


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def by_single_examples(task):
    """The same gradient from one example at a time: mean over each batch, summed over batches."""
    setup = task.bench.setup
    model = setup.model

    def loss(params, image, label):
        variables = {**task.original, "params": params}
        x = training.normalise(image[None], setup.mean, setup.std)
        logits, _ = model.apply(variables, x, False, None)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[None])[0]

    gradient = jax.jit(jax.grad(loss))
    images = np.asarray(task.bench.images)
    total = 0.0
    for start in range(0, len(task.forget), setup.batch_size):
        chunk = task.forget[start : start + setup.batch_size]
        rows = [flat(gradient(task.original["params"], images[i], task.labels[i])) for i in chunk]
        total = total + np.mean(np.asarray(rows, np.float64), 0)
    return np.abs(total)


@pytest.mark.parametrize("batch_size", [4, 16])
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_mask_equals_one_from_single_examples(batch_size, ratio):
    task = toy.task(the_setup=toy.setup(batch_size=batch_size))
    expected = by_single_examples(task)
    np.testing.assert_allclose(flat(saliency.forget_gradient(task)), expected, rtol=1e-3, atol=1e-6)
    mask = flat(saliency.saliency_mask(task, toy.settings("salun", mask={"ratio": ratio}).mask))
    assert mask.dtype == bool and mask.sum() == round(ratio * mask.size)
    # Where the two differ, the values are equal to rounding.
    threshold = np.sort(expected)[expected.size - mask.sum()]
    differs = mask != (expected >= threshold)
    np.testing.assert_allclose(expected[differs], threshold, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_per_layer_takes_the_ratio_of_every_array(ratio):
    task = toy.task()
    settings = toy.settings("salun", mask={"ratio": ratio, "scope": "per_layer"})
    for leaf in jax.tree.leaves(saliency.saliency_mask(task, settings.mask)):
        assert np.asarray(leaf).sum() == round(ratio * leaf.size)


def test_under_compat_a_replacement_leaves_frozen_weights_where_decay_has_moved_them():
    task = toy.linear_task(momentum=0.0, weight_decay=0.1, batch_size=40)
    step = training.Pass(training.cross_entropy, np.arange(40), task.labels, 0.1)
    actions = [step, FRESH_OPTIMIZER, step]
    frozen = jax.tree.map(lambda w: np.zeros(w.shape, bool), task.original["params"])
    found = saliency.masked(iter(actions), task, lambda: frozen, compat=True)
    result = training.run(found, task.original, task.bench, stage="s", seed=0)
    expected = 0.99**2 * task.original["params"]["w"]
    np.testing.assert_allclose(toy.weights(result), expected, rtol=1e-5)


def test_four_devices_make_the_same_mask():
    config = toy.settings("salun").mask
    one = flat(saliency.saliency_mask(toy.task(count=1), config))
    four = flat(saliency.saliency_mask(toy.task(count=4), config))
    assert (one != four).mean() < 0.01  # but for values equal to rounding


@pytest.mark.parametrize(
    "values, ratio, expected",
    [
        ([3.0, 1.0, 2.0, 0.0], 0.5, [1, 0, 1, 0]),
        ([1.0, 1.0, 1.0, 1.0], 0.5, [1, 1, 0, 0]),  # ties: the first
        ([0.0, 2.0, 2.0, 2.0, 9.0], 0.4, [0, 1, 0, 0, 1]),
        ([1.0, 2.0], 0.0, [0, 0]),
        ([1.0, 2.0], 1.0, [1, 1]),
    ],
)
def test_top_marks_exactly_the_ratio(values, ratio, expected):
    assert saliency.top(np.array(values), ratio).tolist() == [bool(x) for x in expected]


def test_the_gradient_follows_the_batch_size():
    """Means over batches depend on what is in a batch."""
    small = toy.task(the_setup=toy.setup(batch_size=4))
    config = toy.settings("salun").mask
    first = saliency.saliency_mask(toy.task(), config)
    assert not toy.same_bits(first, saliency.saliency_mask(small, config))


def test_the_scripts_mask_is_of_shuffled_augmented_images():
    shuffled = keys.stage_rng("mask", 0).permutation(np.arange(10))
    plain, same = (
        toy.task(the_setup=toy.setup(batch_size=4), **changes)
        for changes in ({}, {"forget": shuffled})
    )
    np.testing.assert_array_equal(
        flat(saliency.forget_gradient(plain, augmented=True)), flat(saliency.forget_gradient(same))
    )
    # By batches of one: each augmented image alone, by the key of its place.
    task = toy.task(the_setup=toy.setup(batch_size=1, augment=augment.build("crop_flip")))
    key = keys.stage_key("mask", 0, 0)
    images = np.array(task.bench.images)
    for place, index in enumerate(shuffled):
        one = images[index][None]
        drawn, _ = task.bench.setup.augment(one, np.ones((1, 3)), jax.random.fold_in(key, place))
        images[index] = np.asarray(drawn)[0]
    expected = saliency.forget_gradient(toy.task(the_setup=task.bench.setup, images=images))
    got = saliency.forget_gradient(task, augmented=True)
    np.testing.assert_allclose(flat(got), flat(expected), rtol=1e-3, atol=1e-6)
    assert not np.allclose(flat(got), flat(saliency.forget_gradient(task)), rtol=1e-2)
