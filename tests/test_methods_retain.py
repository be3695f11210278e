"""Methods that fine-tune on retain alone, each against its formula."""

import jax
import numpy as np
import pytest
import toy

from jaxunlearn.methods import METHODS, l1_sparse, retrain
from jaxunlearn.methods.parts import weight_layers

ONE_STEP = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0}


def whole_batch(**changes):
    """Softmax regression where a pass is one step."""
    return toy.linear_task(batch_size=40, **changes)


# l1-sparse.


@pytest.mark.parametrize(
    "epochs, at, first",
    [(182, 0.5, 91), (182, 0.75, 136), (180, 0.7, 126), (200, 0.58, 116), (1, 0.5, 1), (9, 0.0, 0)],
)
def test_the_rate_falls_after_a_share_of_the_epochs_and_never_before_the_first(epochs, at, first):
    config = toy.settings("retrain", epochs=epochs, milestones=(at,))
    rates = [retrain.SCHEDULES["milestones"](config, epoch) for epoch in range(epochs)]
    assert rates == [1.0] * first + [0.1] * (epochs - first)


def test_the_l1_penalty_falls_to_a_share_of_itself_and_not_to_0():
    assert [l1_sparse.fading(0.5, e, 5) for e in range(5)] == pytest.approx(
        [0.5, 0.4, 0.3, 0.2, 0.1]
    )
    assert [l1_sparse.fading(0.5, e, 2) for e in range(4)] == [0.5, 0.25, 0, 0]
    settings = toy.settings("l1_sparse", epochs=4, gamma=0.5, no_l1_epochs=2)
    found = [p.context for p in METHODS["l1_sparse"].passes(toy.task(), settings)]
    np.testing.assert_allclose(found, [0.5, 0.25, 0, 0])


def test_a_step_of_l1_sparse_by_hand():
    task = whole_batch()
    x, w = toy.inputs(task)[10:], task.original["params"]["w"].astype(np.float64)
    gradient = toy.cross_entropy_gradient(x, task.labels[10:], w) + 0.01 * np.sign(w)
    found = toy.weights(toy.unlearn("l1_sparse", task, lr=0.1, gamma=0.01, **ONE_STEP))
    np.testing.assert_allclose(found, w - 0.1 * gradient, rtol=1e-4, atol=1e-7)


def test_l1_sparse_without_a_penalty_is_finetune():
    ours = toy.unlearn("l1_sparse", gamma=0.0).variables
    for a, b in zip(
        jax.tree.leaves(ours), jax.tree.leaves(toy.unlearn("finetune").variables), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)


# CF-k and EU-k.


def changed(before, after):
    """The paths of the leaves that differ."""
    flat = jax.tree.flatten_with_path(jax.device_get(after))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, new), old in zip(flat, jax.tree.leaves(before), strict=True)
        if not np.array_equal(new, old)
    }


@pytest.mark.parametrize("method", ["cf_k", "eu_k"])
@pytest.mark.parametrize("k", [1, 2])
def test_only_the_last_k_layers_change_and_their_statistics(method, k):
    """With momentum and weight decay, which must not move what is frozen."""
    task = toy.task_for(method)
    result = toy.unlearn(method, task, k=k, lr=0.1, weight_decay=0.1)
    layers = weight_layers(toy.tiny_model(), task.original, (8, 8, 1))
    thawed = {path for layer in layers[-k:] for path in layer.params + layer.state}
    assert any(path.startswith("batch_stats") for path in thawed) is (k == 2)
    assert changed(task.original, result.variables) == thawed


@pytest.mark.parametrize("k", [3, 99])
def test_all_layers_are_finetuning_and_retraining(k):
    task = toy.task_for("cf_k")
    same = {"epochs": 2, "lr": 0.05}
    for ours, theirs in (("cf_k", "finetune"), ("eu_k", "retrain")):
        found, expected = (
            toy.unlearn(name, task, **same, **more)
            for name, more in ((ours, {"k": k}), (theirs, {}))
        )
        assert toy.same_bits(found.variables, expected.variables)


@pytest.mark.parametrize("method", ["cf_k", "eu_k"])
def test_none_of_the_layers_is_no_change(method):
    task = toy.task_for(method)
    assert toy.same_bits(toy.unlearn(method, task, k=0).variables, task.original)


def test_a_new_head_owes_nothing_to_the_originals():
    task = toy.task_for("eu_k")
    head = jax.tree.map(lambda leaf: leaf + 1, task.original["params"]["Dense_0"])
    params = {**task.original["params"], "Dense_0": head}
    other = toy.task_for("eu_k", original={**task.original, "params": params})
    first, second = (toy.unlearn("eu_k", t, k=1).variables for t in (task, other))
    assert toy.same_bits(first, second)
    first, second = (toy.unlearn("cf_k", t, k=1).variables for t in (task, other))
    assert not toy.same_bits(first, second)
