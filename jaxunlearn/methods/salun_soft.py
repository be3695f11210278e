"""SalUn-soft: random relabelling that puts the weights that moved least back where they were.

The soft-thresholding form of SalUn, Fan et al. 2024, https://arxiv.org/abs/2310.12508, as in
https://github.com/OPTML-Group/Unlearn-Saliency (`RL_pro.py`): after every step the share of the
weights that is closest to its anchor returns to it, and all others come nearer by the same amount.
The share falls linearly over the epochs, from `share` in the first to share/E in the last.

The paper has a penalty β‖θ − θ_o‖₁ with a falling β; the published code has the quantile in place
of β. Its anchor is taken anew in every epoch; here it is the original throughout, as in the paper.
Momentum is not thresholded, there or here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxunlearn import rules
from jaxunlearn.methods import random_label
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Link, Pass

NEEDS = ("forget", "retain", "labels")
COST = "E"
FIRST = True
DEFAULTS = {**random_label.DEFAULTS, "share": 0.5}
TUNE = {"lr": None, "share": (0.1, 0.3, 0.5, 0.7, 0.9)}
RULES = {**random_label.RULES, "share": rules.between(0, 1)}
READS, check = random_label.READS, random_label.check


def kth_smallest(values: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th smallest, from 1, of values float32 `[n]`, none negative; 0 where k is 0."""
    # Floats that are not negative are ordered as their bits are, so the largest bit pattern that
    # fewer than k values lie below is found from its highest bit down: no sort of 11 million.
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def narrow(i, found):
        higher = found | (1 << (30 - i))
        return jnp.where(jnp.sum(bits < higher) < k, higher, found)

    found = jax.lax.fori_loop(0, 31, narrow, jnp.int32(0))
    return jnp.where(k > 0, jax.lax.bitcast_convert_type(found, jnp.float32), 0.0)


def _shrink(value: Any, params: Any, data: Any, key: jax.Array) -> Any:
    """θ ← θ_o + sign(δ) · max(|δ| − τ, 0) with δ = θ − θ_o and τ the k-th smallest |δ|."""
    anchor, count = data
    moved = jax.tree.map(jnp.subtract, value, anchor)
    tau = kth_smallest(jnp.abs(ravel_pytree(moved)[0]), count)

    def shrink(theta, a, d):
        near = jnp.maximum(jnp.abs(d) - tau, 0)
        return jnp.where(tau > 0, a + jnp.sign(d) * near, theta)

    return jax.tree.map(shrink, value, anchor, moved)


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Random relabelling, every step of it pulled back towards the original."""
    anchor = jax.device_put(task.original["params"])  # on the device once, not in every pass
    size = sum(leaf.size for leaf in jax.tree.leaves(anchor))
    for number, action in enumerate(random_label.passes(task, config)):
        epoch = number * config.epochs // action.total_passes
        share = config.share * (1 - epoch / config.epochs)
        link = Link(_shrink, (anchor, np.int32(share * size)))
        yield dataclasses.replace(action, after=(link,))
