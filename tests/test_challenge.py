"""The winners of the NeurIPS 2023 challenge: each step of theirs, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import toy
from jax.flatten_util import ravel_pytree

from jaxunlearn import training
from jaxunlearn.methods import (
    METHODS,
    cfw,
    conv_transpose,
    fcs,
    kde,
    msg,
    prmq,
    rni,
)
from jaxunlearn.training.passes import Pass, Replace, cross_entropy


def actions(method, task=None, **changes):
    return list(METHODS[method].passes(task or toy.task(), toy.settings(method, **changes)))


def passes(method, task=None, **changes):
    return [action for action in actions(method, task, **changes) if isinstance(action, Pass)]


def replaced(method, task=None, **changes):
    """The parameters that the first action puts in place of the original's."""
    action = actions(method, task, **changes)[0]
    assert isinstance(action, Replace)
    assert toy.same_bits(action.variables["batch_stats"], toy.initial()["batch_stats"])
    return action.variables["params"]


def different(a, b):
    """The leaves that differ, by path."""
    flat = jax.tree.flatten_with_path
    pairs = zip(flat(a)[0], flat(b)[0], strict=True)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) != np.asarray(y)
        for (path, x), (_, y) in pairs
        if (np.asarray(x) != np.asarray(y)).any()
    }


CONVS = {f"Conv_{i}/kernel" for i in range(3)}
PARAMS = toy.initial()["params"]


def batch(logits, labels, weight=None, part=None, original=None):
    count, classes = logits.shape
    return training.Batch(
        None,
        jax.nn.one_hot(labels, classes),
        jnp.ones(count) if weight is None else jnp.asarray(weight),
        {},
        part=part,
        logits_of=lambda variables: original,
    )


def logits(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 4)).astype(np.float32) * 2)


LABELS = jnp.array([0, 1, 2, 3, 2, 1])
REAL = np.array([1, 1, 1, 1, 1, 0], np.float32)  # the sixth is padding


def test_rates_fall_as_cosines_and_as_a_roof():
    for method in ("conv_transpose", "cfw"):
        rates = [action.lr for action in passes(method, epochs=3, lr=2.0)]
        assert rates == pytest.approx([2, 1.5, 0.5])
    rates = [action.lr for action in passes("msg", epochs=5, lr=3.0)]
    assert rates == pytest.approx([1, 2, 3, 2, 1])


# Convolution transpose.


def test_transposing_twice_is_nothing_and_symmetric_kernels_stay():
    task = toy.task()
    once = conv_transpose.transposed(task)
    assert set(different(once, PARAMS)) == CONVS
    np.testing.assert_array_equal(once["Conv_1"]["kernel"][0, 2], PARAMS["Conv_1"]["kernel"][2, 0])
    again = dataclasses.replace(task, original={**task.original, "params": once})
    assert toy.same_bits(conv_transpose.transposed(again), PARAMS)
    symmetric = jax.tree.map(
        lambda leaf: leaf + leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, PARAMS
    )
    same = dataclasses.replace(task, original={**task.original, "params": symmetric})
    assert toy.same_bits(conv_transpose.transposed(same), symmetric)


def test_transposing_is_the_same_as_transposing_the_images():
    """Of a network that treats rows as it does columns: other than by its kernels, a CNN does."""
    model, task = toy.setup().model, toy.task()
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    variables = {**task.original, "params": conv_transpose.transposed(task)}
    expected, _ = model.apply(task.original, images.swapaxes(1, 2), False, None)
    np.testing.assert_allclose(model.apply(variables, images, False, None)[0], expected, atol=1e-5)


# Masked small gradients.


def test_msg_draws_the_smallest_gradients_of_each_convolution_anew():
    task = toy.task()
    found, mask = replaced("msg"), msg.chosen(task, 0.3)
    for name in ("Conv_0", "Conv_1", "Conv_2"):
        marked, kernel = mask[name]["kernel"], PARAMS[name]["kernel"]
        assert marked.sum() == round(0.3 * kernel.size)
        np.testing.assert_array_equal(found[name]["kernel"] != kernel, marked)
    assert set(different(found, PARAMS)) == CONVS
    drawn = found["Conv_2"]["kernel"][mask["Conv_2"]["kernel"]]
    assert drawn.std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)  # fan-out: 3 · 3 · 32


def test_msgs_gradient_is_that_of_retain_less_forget():
    """The mask by autodiff on a sample of n_f retained examples, drawn by name."""
    task = toy.task(the_setup=toy.setup(batch_size=40))
    mask = msg.chosen(task, 0.3)
    rng = msg.stage_rng("msg sample", task.seed)
    sample = rng.permutation(task.retain)[:10]

    def loss(params, rows):
        x = (np.asarray(task.bench.images)[rows] / 255 - 0.5).astype(np.float32) / 0.5
        out, _ = task.bench.setup.model.apply({**task.original, "params": params}, x, False, None)
        log_p = jax.nn.log_softmax(out)
        return -jnp.mean(jnp.take_along_axis(log_p, task.labels[rows][:, None], 1))

    retain, forget = (jax.grad(loss)(PARAMS, rows) for rows in (sample, task.forget))
    gaps = abs(retain["Conv_1"]["kernel"] - forget["Conv_1"]["kernel"])
    marked = mask["Conv_1"]["kernel"]
    assert gaps[marked].max() <= gaps[~marked].min() * (1 + 1e-4)


def test_msg_slows_the_other_weights_of_convolutions_and_nothing_else():
    mask = msg.chosen(toy.task(), 0.3)
    for action in passes("msg"):
        assert set(action.indices) == set(toy.task().retain)
        (link,) = action.before
        factors = link.data
        for name in ("Conv_0", "Conv_1", "Conv_2"):
            expected = np.where(mask[name]["kernel"], 1, np.float32(0.1))
            np.testing.assert_array_equal(factors[name]["kernel"], expected)
        rest = {k: v for k, v in factors.items() if not k.startswith("Conv")}
        assert (ravel_pytree(rest)[0] == 1).all()
        scaled = link.apply(jax.tree.map(jnp.ones_like, PARAMS), PARAMS, factors, None)
        assert toy.same_bits(scaled, factors)


# Confuse, fine-tune, weaken.


def test_cfw_puts_noise_on_the_first_convolution_alone():
    found = replaced("cfw")
    assert set(different(found, PARAMS)) == {"Conv_0/kernel"}
    many = [replaced("cfw", toy.task(seed=seed))["Conv_0"]["kernel"] for seed in range(30)]
    noise = np.stack(many) - PARAMS["Conv_0"]["kernel"]
    assert noise.std() == pytest.approx(0.6, rel=0.05) and abs(noise.mean()) < 0.05


def test_cfw_weakens_before_the_last_epoch():
    made = actions("cfw", epochs=3)
    assert [type(action) for action in made] == [Replace, Pass, Pass, Replace, Pass]
    noisy = made[3].variables(toy.initial())["params"]
    assert set(different(noisy, PARAMS)) == {"Conv_0/kernel"}
    noise = noisy["Conv_0"]["kernel"] - PARAMS["Conv_0"]["kernel"]
    assert noise.std() == pytest.approx(0.005, rel=0.3)
    first = replaced("cfw")["Conv_0"]["kernel"] - PARAMS["Conv_0"]["kernel"]
    assert abs(np.corrcoef(first.ravel(), noise.ravel())[0, 1]) < 0.5  # other draws


def test_cfws_balance_is_one_on_average_over_the_retain_set():
    labels = np.array([0, 0, 0, 2, 2, 3])
    weights = cfw.balance(labels, 4)
    np.testing.assert_allclose(weights, [2 / 3, 0, 1, 2], rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    z = logits()
    value = cfw.objective(None, z, batch(z, LABELS, REAL), jnp.asarray(weights))
    log_p = scipy.special.log_softmax(np.asarray(z, np.float64), 1)
    losses = -log_p[np.arange(5), np.asarray(LABELS[:5])]
    assert float(value) == pytest.approx(losses.mean() * weights[LABELS[:5]].mean(), rel=1e-5)


# Prune, re-initialise, match, quantise.


def test_prmq_draws_its_share_anew_and_ends_with_float16():
    task = toy.task()
    mask = prmq.pruned(task, 0.9)
    kernels = [PARAMS[f"Conv_{i}"]["kernel"] for i in range(3)]
    kernels += [PARAMS["Dense_0"]["kernel"], PARAMS["Dense_0"]["bias"]]
    count = sum(kernel.size for kernel in kernels)
    marked = ravel_pytree(mask)[0]
    assert marked.sum() == round(0.9 * count)
    kept = np.abs(ravel_pytree(PARAMS["Conv_2"])[0][~ravel_pytree(mask["Conv_2"])[0]])
    assert kept.min() >= np.abs(PARAMS["Conv_0"]["kernel"][mask["Conv_0"]["kernel"]]).max()
    found = replaced("prmq", reset=0.9)
    drawn = found["Conv_2"]["kernel"][mask["Conv_2"]["kernel"]]
    bound = 1 / np.sqrt(9 * 16)
    assert abs(drawn).max() <= bound and drawn.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    np.testing.assert_array_equal(found["BatchNorm_0"]["scale"], PARAMS["BatchNorm_0"]["scale"])
    assert not found["Dense_0"]["bias"].any()
    final = ravel_pytree(jax.device_get(toy.unlearn("prmq").variables))[0]
    np.testing.assert_array_equal(final, final.astype(np.float16).astype(np.float32))


def test_prmq_rounds_no_whole_numbers_and_leaves_nothing_infinite():
    given = {
        "count": np.int32([3001, 100_000]),
        "seen": np.array([True]),
        "var": np.float32([7e4, -7e4, 0.1]),
    }
    found = prmq.rounded(given)
    assert found["count"].tolist() == [3001, 100_000] and found["seen"].tolist() == [True]
    np.testing.assert_allclose(found["var"], [65504, -65504, 0.1], rtol=1e-3)
    assert found["var"].dtype == np.float32 and found["var"][2] == np.float32(np.float16(0.1))


def test_prmqs_objective_by_hand():
    z, other, weights = logits(), logits(seed=1), np.array([1, 0.5, 0.7, 0.2], np.float32)
    context = {"weights": jnp.asarray(weights), "original": None}
    value = prmq.objective(None, z, batch(z, LABELS, REAL, original=other), context)
    p, q = (scipy.special.softmax(np.asarray(each, np.float64)[:5], 1) for each in (z, other))
    w = weights[np.asarray(LABELS[:5])]
    losses = -np.log(p[np.arange(5), np.asarray(LABELS[:5])])
    gap = (scipy.special.entr(p).sum(1) - scipy.special.entr(q).sum(1)) ** 2
    assert float(value) == pytest.approx((w * losses).sum() / w.sum() + gap.mean(), rel=1e-5)


# Distillation and entropy.


def test_kde_draws_the_first_kernel_and_the_head_anew():
    found = replaced("kde")
    names = {"Conv_0/kernel", "Dense_0/kernel", "Dense_0/bias"}
    assert set(different(found, PARAMS)) == names
    for path, fan in (("Conv_0", 9), ("Dense_0", 32)):
        kernel = found[path]["kernel"]
        assert abs(kernel).max() <= fan**-0.5 and abs(kernel).max() > 0.9 * fan**-0.5


def test_kde_learns_from_validation_first_without_its_labels():
    task = toy.task()
    made = passes("kde", task, warmup={"epochs": 2}, epochs=2)
    assert [action.objective for action in made] == [kde.warmup_objective] * 2 + [kde.objective] * 2
    assert made[0].indices.tolist() == list(range(40, 70)) and made[0].images is task.val.images
    other = dataclasses.replace(task.val, labels=(task.val.labels + 1) % 3)
    relabelled = toy.unlearn("kde", toy.task(val=other)).variables
    assert toy.same_bits(relabelled, toy.unlearn("kde").variables)


def test_kdes_objectives_by_hand():
    z, other = logits(), logits(seed=1)
    context = {"original": None, "temperature": jnp.float32(5)}
    data = batch(z, LABELS, REAL, original=other)
    a, b = (np.asarray(each, np.float64)[:5] for each in (z, other))
    p, q = (scipy.special.softmax(each / 5, 1) for each in (b, a))
    divergence = scipy.special.rel_entr(p, q).sum(1).mean()
    value = kde.warmup_objective(None, z, data, context)
    assert float(value) == pytest.approx(divergence, rel=1e-4)
    hard = -scipy.special.log_softmax(a, 1)[np.arange(5), np.asarray(LABELS[:5])].mean()
    expected = -(p * np.log(q)).sum(1).mean() + hard + divergence
    assert float(kde.objective(None, z, data, context)) == pytest.approx(expected, rel=1e-5)


# Repeated noise injection.


def test_rni_draws_the_head_anew():
    assert set(different(replaced("rni"), PARAMS)) == {"Dense_0/kernel", "Dense_0/bias"}


def test_rni_noises_only_what_trains_and_has_not_trained_before():
    settings = toy.settings("rni", epochs=9)
    names = [f"params/{i}" for i in range(22)]
    seen = set()
    for epoch, (training_, noised) in enumerate(rni.draws(names, settings, 0)):
        assert len(set(training_)) == 9 and set(noised) <= set(training_) - seen
        assert len(noised) <= (6 if epoch else 0)
        seen |= set(training_)
    assert epoch == 4
    first = [next(iter(rni.draws(names, settings, seed)))[0] for seed in range(400)]
    counts = np.bincount([int(name[7:]) for each in first for name in each])
    assert abs(counts - 400 * 9 / 22).max() < 50  # all alike: 164 ± 10


def test_rni_noises_in_every_budget_of_two_epochs_or_more():
    names = [f"params/{i}" for i in range(22)]
    drawing = []
    for epochs in range(10):
        drawn = list(rni.draws(names, toy.settings("rni", epochs=epochs), 0))
        assert any(noised for _, noised in drawn) is (epochs > 1)
        drawing.append(len(drawn))
    assert drawing == [0, 1, 2, 2, 2, 2, 2, 3, 4, 5]  # of 6 epochs and more, all but 4


def test_rni_trains_a_few_kernels_in_its_first_epochs_and_all_in_the_last():
    values = {"tensors": 2, "weight_decay": 0.1, "epochs": 1}
    masks = [action.after[0].data for action in passes("rni", epochs=3, all_epochs=1, tensors=2)]
    everything = [all(leaf.all() for leaf in jax.tree.leaves(mask)) for mask in masks]
    assert everything == [False, False, True]
    few = toy.unlearn("rni", all_epochs=0, **values).variables["params"]
    names = [f"params/{name}" for name in (*sorted(CONVS), "Dense_0/kernel", "Dense_0/bias")]
    ((trained, _),) = rni.draws(names, toy.settings("rni", all_epochs=0, **values), 0)
    changed = {f"params/{path}" for path in different(few, replaced("rni"))}
    assert changed & set(names) == set(trained)
    assert len(changed) == 6 + 2  # and all norms


def test_rnis_noise_comes_before_an_epoch_on_what_it_drew():
    values = {"epochs": 3, "all_epochs": 1, "tensors": 3, "noised": 2}
    names = [f"params/{name}" for name in (*sorted(CONVS), "Dense_0/kernel", "Dense_0/bias")]
    settings, task = toy.settings("rni", **values), toy.task(seed=1)
    _, (_, noised) = rni.draws(names, settings, 1)
    made = actions("rni", task, **values)
    assert [type(action) for action in made] == [Replace, Pass, Replace, Pass, Replace, Pass]
    second, last = (made[i].variables(toy.initial())["params"] for i in (2, 4))
    assert noised and {f"params/{path}" for path in different(second, PARAMS)} == set(noised)
    gaps = ravel_pytree(second)[0] - ravel_pytree(PARAMS)[0]
    assert gaps[gaps != 0].std() == pytest.approx(0.04, rel=0.2)
    assert toy.same_bits(last, PARAMS)
    assert [action.lr for action in passes("rni", epochs=3)] == [0.0002, 0.0002, 0.001]


# Forget, contrast, strengthen.


def test_fcs_uniform_gradient_is_p_less_one_over_c():
    z = logits()
    p = scipy.special.softmax(np.asarray(z, np.float64), 1)
    for classes in (4, 3):  # a head may have more
        c = jnp.float32(classes)
        gradient = jax.grad(fcs.uniform_objective, 1)(None, z, batch(z, LABELS), c)
        uniform = np.where(np.arange(4) < classes, 1 / classes, 0)
        np.testing.assert_allclose(gradient * 6, p - uniform, rtol=1e-4, atol=1e-6)
    flat = jnp.zeros((6, 4))
    found = fcs.uniform_objective(None, flat, batch(flat, LABELS), jnp.float32(4))
    assert float(found) == pytest.approx(0)


def test_fcs_contrast_by_hand_without_the_padding():
    z, part = logits(8), np.repeat([0, 1], 4)
    weight = np.array([1, 1, 1, 0, 1, 1, 0, 1], np.float32)
    data = batch(z, jnp.zeros(8, int), weight, part)
    a = np.asarray(z, np.float64)
    forget, retain = a[:3], a[[4, 5, 7]]
    expected = -scipy.special.log_softmax(forget @ retain.T / 1.15, 1).mean()

    def value(z):
        return fcs.contrast_objective(None, z, data, jnp.float32(1.15))

    assert float(value(z)) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(value)(z)
    assert np.isfinite(gradient).all() and not gradient[4:].any() and not gradient[3].any()
    # d/df_i of −mean_j log softmax_j(f_i·f_j/T) = (Σ_j softmax_j f_j − mean_j f_j)/T
    p = scipy.special.softmax(forget @ retain.T / 1.15, 1)
    np.testing.assert_allclose(
        gradient[:3] * 3, (p @ retain - retain.mean(0)) / 1.15, rtol=1e-4, atol=1e-6
    )


def test_fcs_rounds_their_rates_and_the_decay_of_the_retain_set():
    made = passes("fcs", epochs=2)
    assert [action.objective for action in made] == [
        fcs.uniform_objective,
        *[fcs.contrast_objective, cross_entropy] * 2,
    ]
    assert [action.lr for action in made] == pytest.approx(
        [0.005, 0.0003, 0.004, (0.0003 + 1e-6) / 2, 0.004]
    )
    forget, retain = set(toy.task().forget), set(toy.task().retain)
    by_hand = [(forget,), *[(forget, retain), (retain,)] * 2]
    assert [tuple(map(set, action.streams)) for action in made] == by_hand
    (link,) = made[2].before
    decayed = link.apply({"w": jnp.ones(2)}, {"w": jnp.array([1.0, -2.0])}, link.data, None)
    np.testing.assert_allclose(decayed["w"], [1.01, 0.98])
