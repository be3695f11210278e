"""SVD projection against its formula, by singular values and in the limits."""

import jax
import numpy as np
import toy
from ml_collections import ConfigDict

from jaxunlearn.methods import svd_projection


def alphas(retain, forget):
    return ConfigDict({"alpha_retain": retain, "alpha_forget": forget})


def span(*axes, size=5):
    """XᵀX of inputs along some axes, all as much."""
    return np.diag(np.isin(np.arange(size), axes).astype(float))


def test_the_space_is_that_of_the_singular_values():
    x = np.random.default_rng(0).normal(size=(40, 6)) * [3, 2, 1, 1, 0.5, 0.1]
    _, sigma, vt = np.linalg.svd(x, full_matrices=False)
    r = sigma**2 / np.sum(sigma**2)
    expected = vt.T @ np.diag(7 * r / (6 * r + 1)) @ vt
    np.testing.assert_allclose(svd_projection.space(x.T @ x, 7.0), expected, atol=1e-10)
    limit = svd_projection.space(span(0, 3), 1e9)  # the projector on the sample's span
    np.testing.assert_allclose(limit, span(0, 3), atol=1e-6)


def test_what_only_forget_has_goes_and_what_retain_has_stays():
    p = svd_projection.projection(span(0, 1), span(1, 2), alphas(1e12, 1e12))
    np.testing.assert_allclose(p, np.diag([1, 1, 0, 1, 1]), atol=1e-6)
    same = svd_projection.projection(span(1, 2), span(1, 2), alphas(1e12, 1e12))
    np.testing.assert_allclose(same, np.eye(5), atol=1e-6)
    alone = svd_projection.projection(0 * span(0), span(1, 2), alphas(1000, 1e12))
    np.testing.assert_allclose(alone, np.eye(5) - span(1, 2), atol=1e-6)


def test_the_projection_of_equal_spaces_nears_the_identity_as_alpha_grows():
    x = np.random.default_rng(1).normal(size=(40, 6))
    gaps = [
        np.linalg.norm(svd_projection.projection(x.T @ x, x.T @ x, alphas(a, a)) - np.eye(6))
        for a in (1, 30, 1000)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.05 * gaps[0]


def test_products_are_those_of_patches_whatever_the_batch_size():
    task = toy.task_for("svd_projection", the_setup=toy.setup(model=toy.tiny_model(), batch_size=7))
    found = task.sweep(svd_projection.products, task.forget)
    assert set(found) == {f"params/{name}/kernel" for name in ("Conv_0", "Conv_1", "Dense_0")}
    x = (np.asarray(task.bench.images)[task.forget] / 255 - 0.5) / 0.5
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2, 0]
    rows = windows.reshape(-1, 9)
    np.testing.assert_allclose(found["params/Conv_0/kernel"], rows.T @ rows, rtol=1e-4, atol=1e-3)
    images = np.asarray(x, np.float32)
    features = np.asarray(task.bench.setup.model.features(task.original, images), np.float64)
    np.testing.assert_allclose(
        found["params/Dense_0/kernel"], features.T @ features, rtol=1e-3, atol=1e-3
    )


def test_the_kernels_of_a_linear_model_are_projected_and_its_retained_outputs_stay():
    """Where the class has pixels of its own: without them it is like nothing."""
    images, labels = toy.images_and_labels()
    gone = labels == 1
    images[gone, :4], images[~gone, 4:] = 0, 0
    sets = {"forget": np.flatnonzero(gone), "retain": np.flatnonzero(~gone)}
    task = toy.linear_task(images=images, mean=(0.0,), std=(1.0,), **sets)
    values = {"alpha_retain": 1e12, "alpha_forget": 1e12}
    after = toy.weights(toy.unlearn("svd_projection", task, **values))
    before = task.original["params"]["w"]
    x = images.reshape(40, -1) / 255
    np.testing.assert_allclose(x[~gone] @ after, x[~gone] @ before, atol=1e-4)
    assert abs(x[gone] @ before).max() > 0.1 > 1e-3 > abs(x[gone] @ after).max()


def test_only_kernels_change_and_the_sample_is_balanced():
    task = toy.task_for("svd_projection")
    after = jax.device_get(toy.unlearn("svd_projection", task).variables)
    changed = {
        f"{name}/{leaf}"
        for name, part in after["params"].items()
        for leaf, value in part.items()
        if (value != toy.tiny_initial()["params"][name][leaf]).any()
    }
    assert changed == {"Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"}
    assert toy.same_bits(after["batch_stats"], toy.tiny_initial()["batch_stats"])
    sample = svd_projection.balanced(task, 10)
    assert len(set(sample)) == 10 and (np.bincount(task.labels[sample]) == [5, 0, 5]).all()
