"""SVD projection: take out of every layer's input what only the forget class needs.

Kodge et al. 2024, https://arxiv.org/abs/2312.00761. No training; for whole classes. Of a layer's
inputs in evaluation mode (a convolution's patches) on some retained and some forgotten images, with
the shares r_i of their squared singular values and the singular vectors U,

    M = UΛUᵀ, Λ_i = α r_i/((α − 1) r_i + 1);    P = I − (M_f − M_f M_r);    W ← P W,

M_r of the retained images and M_f of the forgotten ones, W with inputs as its rows. Biases, norms,
convolutions in groups and layers within loops stay. Here the squares come from sums over all
positions of the images; the published code takes up to 10,000 of them. The defaults are those that
https://arxiv.org/abs/2604.08271 has for a ResNet-18 and one class of CIFAR-10, whose script has 100
and 3, and whose code projects the head alone; pairs of 10 to 1000 and 3 to 30 are worth a try.

Most of the change is in the head: a new one on the features below finds the class again.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts, untrained
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Replace, Variables

NEEDS = ("forget", "retain", "labels")
REQUESTS = ("class",)
COST = (
    "samples / 3n for each of retain and forget, products of each layer's inputs (of a 3 × 3 "
    "convolution about nine times its forward pass), and a decomposition for each layer"
)
TUNE = {"alpha_retain": (10.0, 100.0, 1000.0), "alpha_forget": (3.0, 10.0, 30.0)}
DEFAULTS = {
    "alpha_retain": 1000.0,
    "alpha_forget": 30.0,
    "samples": 900,  # of each set, of the retain set as many of every class
    "batch_size": 64,
}
RULES = {
    "alpha_retain": rules.at_least(0),
    "alpha_forget": rules.at_least(0),
    "samples": rules.whole(1),
}
READS = untrained.READS


def products(variables: Variables, batch: Batch, context: Any) -> Any:
    """XᵀX of every layer's inputs X, `[fan-in, fan-in]` each, by the path of its kernel."""

    def one(rows):
        weight = jnp.repeat(batch.weight, len(rows) // len(batch.weight))
        return (rows * weight[:, None]).T @ rows

    found = parts.layer_inputs(batch.logits_of, variables, batch.images)
    return {layer.kernel: one(rows.astype(jnp.float32)) for layer, rows in found}


def space(product: np.ndarray, alpha: float) -> np.ndarray:
    """M = UΛUᵀ of inputs whose XᵀX is given."""
    squares, u = np.linalg.eigh(product.astype(np.float64))
    squares = np.maximum(squares, 0)
    r = squares / max(squares.sum(), 1e-30)
    # Λ_i = α r_i/((α − 1) r_i + 1)
    scale = alpha * r / np.maximum((alpha - 1) * r + 1, 1e-30)
    return (u * scale) @ u.T


def projection(retain: np.ndarray, forget: np.ndarray, config: Any) -> np.ndarray:
    """P = I − (M_f − M_f M_r) of both sets' XᵀX."""
    m_r, m_f = space(retain, config.alpha_retain), space(forget, config.alpha_forget)
    return np.eye(len(m_f)) - (m_f - m_f @ m_r)


def balanced(task: Task, samples: int) -> np.ndarray:
    """About so many examples of the retain set, as many of every class where it has them."""
    rng = stage_rng("svd_projection", task.seed)
    retain = rng.permutation(task.retain)
    labels = task.labels[retain]
    kinds = np.unique(labels)
    each = -(-samples // len(kinds))
    return np.concatenate([retain[labels == kind][:each] for kind in kinds])


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's kernels."""
    rng = stage_rng("svd_projection forget", task.seed)
    retain, forget = (
        task.sweep(products, indices)
        for indices in (
            balanced(task, config.samples),
            rng.permutation(task.forget)[: config.samples],
        )
    )
    layers = {layer.kernel: layer for layer in parts.layers_of(task)}

    def one(path: str, kernel: np.ndarray) -> np.ndarray:
        if path not in forget:
            return kernel
        axes = layers[path].inputs + layers[path].spatial
        front = tuple(range(len(axes)))
        rows = np.moveaxis(np.asarray(kernel), axes, front)
        p = projection(retain[path], forget[path], config)
        new = (p @ rows.reshape(len(p), -1)).reshape(rows.shape)
        return np.moveaxis(new, front, axes).astype(kernel.dtype)

    yield Replace({**task.original, "params": parts.by_path(one, task.original["params"])})
