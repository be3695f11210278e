"""Fisher forgetting: noise on every parameter, the less the retain set depends on it the more.

Golatkar et al. 2020, https://arxiv.org/abs/1911.04933, as in
https://github.com/AdityaGolatkar/SelectiveForgetting. No training. F = E_r Σ_y p_y (∂(−log p_y))²
is the diagonal of the retain set's Fisher information, with the original's own probabilities, in
evaluation mode; `labels = "drawn"` takes one label y ~ p of each example in place of all.

    paper      θ + n·√v, v = α·F^(-1/2), with α = (λσ²)^(1/2)
    released   v = α·min(1/F, 1000), at most 100·α in the head; a kernel's v is its mean over input
               features; v is ten times that in the head, norms and biases. Where the retain set has
               no example of a class, its weights in the head become noise of variance 0.001.

F has 1e-8 added. The published α is 1e-6; others found accuracy to collapse with it on deep
networks, and advise 1e-9.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import parts, ssd, untrained
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Replace, Variables

NEEDS = ("retain", "labels")
COST = "(1 − f) for each class, or 1.3 · (1 − f) of labels drawn"
DEFAULTS = {
    "form": "released",  # or paper
    "alpha": 1e-6,
    "labels": "all",  # or drawn
    "batch_size": 64,
}
TUNE = {"alpha": (1e-8, 1e-7, 1e-6, 1e-5)}
FORMS = ("released", "paper")
LABELS = ("all", "drawn")
RULES = {
    "form": rules.one_of(FORMS),
    "alpha": rules.at_least(0),
    "labels": rules.one_of(LABELS),
}
READS = untrained.READS
LEAST = 1e-8  # added to F
GONE = 1e-3  # variance of the head's weights of a class that is gone


def of_label(variables: Variables, batch: Batch, label: jax.Array) -> Any:
    """Σ over examples of p_y (∂(−log p_y))², for one label y."""

    def loss(logits, targets):
        log_p = jax.nn.log_softmax(logits)[:, label]
        return -log_p * jnp.sqrt(jnp.exp(jax.lax.stop_gradient(log_p)))

    return ssd.per_example(variables, batch, loss, jnp.square)


def information(task: Task, labels: str) -> Any:
    """F, shaped like the parameters."""
    if labels == "drawn":
        # The largest of log p plus Gumbel noise is a draw of p.
        noise = stage_rng("fisher labels", task.seed).gumbel(
            size=(len(task.retain), task.num_logits)
        )
        drawn = task.labels.copy()
        drawn[task.retain] = (task.logits(task.retain) + noise).argmax(1)
        return ssd.importance(dataclasses.replace(task, labels=drawn), task.retain, "example")
    sums = [
        task.sweep(of_label, task.retain, context=np.int32(label))
        for label in range(task.num_logits)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(task.retain), *sums)


def moments(task: Task, config: Any) -> tuple[Any, Any]:
    """Mean and variance of the new parameters, each shaped like them."""
    params, fisher = task.original["params"], information(task, config.labels)
    if config.form == "paper":
        variance = jax.tree.map(lambda f: config.alpha * (f + LEAST) ** -0.5, fisher)
        return params, variance
    layers = parts.layers_of(task)
    inputs = {layer.kernel: layer.inputs for layer in layers}
    head = dict.fromkeys(layers[-1].params, 0) | {layers[-1].kernel: layers[-1].outputs[-1]}
    gone = np.setdiff1d(np.arange(task.num_classes), task.labels[task.retain])

    def of_class(path: str, leaf: np.ndarray, value: float) -> np.ndarray:
        """The leaf, with a value in place of the weights of classes that are gone."""
        rows = np.moveaxis(np.array(leaf), head[path], 0) if path in head else leaf
        if path not in head or len(rows) != task.num_logits:
            return leaf
        rows[gone] = value
        return np.moveaxis(rows, 0, head[path])

    def spread(path: str, f: np.ndarray) -> np.ndarray:
        v = config.alpha * np.minimum(1 / (f + LEAST), 100 if path in head else 1000)
        if path in inputs:
            v = np.broadcast_to(v.mean(inputs[path], keepdims=True), f.shape)
        if path in head or f.ndim == 1:
            v = 10 * v
        return of_class(path, v, GONE)

    mean = parts.by_path(lambda path, theta: of_class(path, theta, 0), params)
    return mean, parts.by_path(spread, fisher)


def drawn(mean: Any, variance: Any, rng: np.random.Generator) -> Any:
    """Parameters of this mean and variance."""
    return jax.tree.map(
        lambda m, v: (m + np.sqrt(v) * rng.standard_normal(np.shape(m))).astype(m.dtype),
        mean,
        variance,
    )


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's parameters."""
    params = drawn(*moments(task, config), task.noise_rng("fisher"))
    yield Replace({**task.original, "params": params})
