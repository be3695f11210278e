"""MUNBa: forget and retain bargain over every step, and neither gains at the other's cost.

Wu et al. 2024, https://arxiv.org/abs/2411.15537, as in https://github.com/JingWu321/MUNBa. The Nash
bargaining solution of the retain gradient g_r and the gradient g_f on randomly labelled forget
examples has a closed form: α_r = 1/(‖g_r‖·√(1 + c)), α_f = 1/(‖g_f‖·√(1 + c)), c their cosine. So
the step is the bisector of the two directions, of norm √2, which the published code clips to 1:
the size of either loss does not matter. Theirs is 0/0 where c = 0, and where either
weight is not above 0 the step is that of CE(B_r) + 0.1 · CE(B_f).

Batches are paired until forget is used up, each of forget's with a full one of retain; the rest of
retain is plain cross-entropy, in full-size steps through the same momentum. Labels are drawn anew
in every epoch. No setting is published for classification; the defaults are SalUn's.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.random_label import relabel
from jaxunlearn.methods.task import Task
from jaxunlearn.training.links import clip_norm
from jaxunlearn.training.passes import Batch, Pass, cross_entropy

NEEDS = ("forget", "retain", "labels")
COST = "E · (1 + 2 · f / 3), f in whole batches: those of a pair are looked at twice"
DEFAULTS = {"epochs": 10, "lr": 0.01, "clip": 1.0}
RULES = {"clip": rules.above(0)}
TINY = 1e-12


def _unit(tree: Any) -> Any:
    """A pytree scaled to norm 1; zeros stay."""
    norm = jnp.maximum(optax.tree.norm(tree), TINY)
    return jax.tree.map(lambda leaf: leaf / norm, tree)


def bargain(retain: Any, forget: Any) -> Any:
    """The step of two gradients, pytrees: (ĝ_r + ĝ_f)/√(1 + c)."""
    both = optax.tree.add(_unit(retain), _unit(forget))
    # ‖ĝ_r + ĝ_f‖ = √(2 · (1 + c)); opposite gradients have no bisector, and give no step
    norm = optax.tree.norm(both)
    scale = jnp.where(norm > 1e-6, jnp.sqrt(2.0) / jnp.maximum(norm, TINY), 0.0)
    return jax.tree.map(lambda leaf: scale * leaf, both)


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """A scalar with the value CE(B_r) + CE(B_f) and the bargain as its gradient."""
    values = optax.softmax_cross_entropy(logits, batch.targets)
    at = jax.lax.stop_gradient(params)

    def gradient(part: int) -> Any:
        rows = np.flatnonzero(batch.part == part)

        def loss(params):
            out = batch.forward(params, batch.images[rows])
            losses = optax.softmax_cross_entropy(out, batch.targets[rows])
            weight = batch.weight[rows]
            return jnp.sum(losses * weight) / jnp.sum(weight)

        return jax.grad(loss)(at)

    step = jax.lax.stop_gradient(bargain(gradient(0), gradient(1)))
    linear = optax.tree.vdot(step, params)
    value = batch.mean(values, part=0) + batch.mean(values, part=1)
    return jax.lax.stop_gradient(value - linear) + linear


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Of every epoch the paired part, then the rest of retain."""
    # Whole batches: the gradient of a few retained images, scaled to norm 1, would be noise.
    pairs = -(-len(task.forget) // config.batch_size)
    paired = min(pairs * config.batch_size, len(task.retain))
    total = config.epochs * (1 + (paired < len(task.retain)))
    for epoch in range(config.epochs):
        shuffled = stage_rng("munba", task.seed, epoch).permutation(task.retain)
        labels = relabel(task, exclude_true=False, draw=epoch)
        common = {"labels": labels, "lr": config.lr, "total_passes": total}
        yield Pass(
            objective,
            (task.forget, shuffled[:paired]),
            before=(clip_norm(config.clip),),
            **common,
        )
        if paired < len(shuffled):
            yield Pass(cross_entropy, shuffled[paired:], **common)
