"""Influence: one Newton step from the original to the minimum of the loss on the retain set.

Koh & Liang 2017, https://arxiv.org/abs/1703.04730; Izzo et al. 2021,
https://arxiv.org/abs/2002.10077; Warnecke et al. 2023, https://arxiv.org/abs/2108.11577. No
training. Of the loss L_r = mean CE on retain + w/2·‖θ‖², with the Gauss-Newton matrix
G = mean_r Jᵀ(diag p − ppᵀ)J + (w + λ)I of logits' Jacobians J, the step is

    at_optimum  +G⁻¹ (1/n_r)·Σ_f(∇CE + wθ), which needs no pass over the retain set but those of G
    newton      −G⁻¹ ∇L_r(θ), which is the same where the loss on all of train has its minimum at θ

by conjugate gradients with products alone, the model in evaluation mode; `iterations` may run out
before the residual is small, which is not reported. w is to be that of the original's recipe, but
is this entry's own `weight_decay`: where `config.train.weight_decay` is another, set it to that.
The code of https://github.com/OPTML-Group/Unlearn-Saliency calls "IU" a WoodFisher recursion which
returns its own input up to a scale; it is not this.

Where a network has fitted its training set, p is near 0 or 1 and G near λI: λ decides then. Too
small a λ makes a step that leaves the range where G holds: `max_step` cuts it. A network with batch
norm is at no such minimum: wθ, which in training nothing balances along kernels that a norm
follows, shrinks all weights by w/(w + λ), 5% at the defaults, with the running statistics as they
were. Of `newton` that alone can destroy the model; `at_optimum` has n_f/n_r of it.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import untrained
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Replace, Variables

NEEDS = ("forget", "retain", "labels")
COST = "f, or 1 − f with form=newton, and 2 · iterations · samples / n"
DEFAULTS = {
    "form": "at_optimum",  # or newton
    "damping": 0.01,  # λ; 0.001 to 1 are worth a try
    "iterations": 50,  # at most, of conjugate gradients; sooner at a residual of 1e-4
    "samples": 1000,  # how many of the retain set make G; 0: all of them
    "max_step": 0.1,  # largest ‖step‖, in units of ‖θ‖
    "batch_size": 64,
}
TUNE = {"damping": (0.001, 0.01, 0.1, 1.0)}
FORMS = ("newton", "at_optimum")
RULES = {
    "form": rules.one_of(FORMS),
    "damping": rules.above(0),
    "iterations": rules.whole(0),
    "samples": rules.whole(0),
    "max_step": rules.above(0),
}
READS = {name: untrained.READS[name] for name in ("optimizer", "momentum")}
RESIDUAL = 1e-4  # of conjugate gradients, relative


def gradient(variables: Variables, batch: Batch, context: Any) -> Any:
    """Σ over examples of ∇CE."""

    def loss(params):
        logits = batch.logits_of({**variables, "params": params})
        return jnp.sum(batch.weight * optax.softmax_cross_entropy(logits, batch.targets))

    return jax.grad(loss)(variables["params"])


def product(variables: Variables, batch: Batch, vector: Any) -> Any:
    """Σ over examples of Jᵀ(diag p − ppᵀ)J v, with v shaped like the parameters."""

    def logits_of(params):
        return batch.logits_of({**variables, "params": params})

    logits, moved = jax.jvp(logits_of, (variables["params"],), (vector,))
    p = jax.nn.softmax(logits)
    # (diag p − ppᵀ) Jv = p ∘ (Jv − pᵀJv)
    bent = p * (moved - jnp.sum(p * moved, -1, keepdims=True)) * batch.weight[:, None]
    return jax.vjp(logits_of, variables["params"])[1](bent)[0]


def flat(tree: Any) -> np.ndarray:
    """All leaves in one row, float64."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def shaped(row: np.ndarray, like: Any) -> Any:
    """The row as leaves of the shapes and types of a tree."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(row, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    return jax.tree.unflatten(
        structure,
        [
            part.reshape(np.shape(leaf)).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )


def step(task: Task, config: Any) -> np.ndarray:
    """The step from the original's parameters, in one row."""
    from scipy.sparse.linalg import LinearOperator, cg  # which a config file can spare

    params, w, count = task.original["params"], config.weight_decay, len(task.retain)
    theta = flat(params)
    sample = task.retain
    if 0 < config.samples < count:
        sample = stage_rng("influence", task.seed).choice(sample, config.samples, replace=False)

    def times(vector: np.ndarray) -> np.ndarray:
        # Gv = mean_r Jᵀ(diag p − ppᵀ)Jv + (w + λ)v
        total = task.sweep(product, sample, context=shaped(vector, params))
        return flat(total) / len(sample) + (w + config.damping) * vector

    if config.form == "newton":
        side = -(flat(task.sweep(gradient, task.retain)) / count + w * theta)
    else:
        side = (flat(task.sweep(gradient, task.forget)) + len(task.forget) * w * theta) / count
    operator = LinearOperator((theta.size, theta.size), matvec=times, dtype=np.float64)
    found, _ = cg(operator, side, rtol=RESIDUAL, maxiter=config.iterations)
    return found * min(
        1, config.max_step * np.linalg.norm(theta) / max(np.linalg.norm(found), 1e-30)
    )


def passes(task: Task, config: Any) -> Iterator[Replace]:
    """One replacement of the original's parameters."""
    params = task.original["params"]
    moved = shaped(flat(params) + step(task, config), params)
    yield Replace({**task.original, "params": moved})
