"""Bad teacher: learn from a random network on forget, and from the original on retain.

Chundawat et al. 2023, https://arxiv.org/abs/2205.08096, as in
https://github.com/vikram2000b/bad-teaching-unlearning: both sets in one shuffled stream, retain by
a random share of it, drawn once. No labels are read. The published loss is also divided by the
number of classes, which under Adam only its ε notices.

The random network is what an original trained here under the same seed started from; the release
draws another. In evaluation mode it can answer one class for nearly every image; `teacher =
"uniform"` is what it is meant to be. Forgotten images end less sure than any unseen one, which an
attack sees as well (the Streisand effect); of a random tenth the accuracy hardly falls.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import mixing
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Batch, Pass

NEEDS = ("forget", "retain")
COST = "1.7 · E · (f + retain_share · (1 − f)): two teachers only look"
DEFAULTS = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "epochs": 1,
    "lr": 1e-4,
    "retain_share": 0.3,
    "temperature": 1.0,
    "teacher": "random",
}
TEACHERS = ("random", "uniform")
RULES = {
    "retain_share": rules.between(0, 1),
    "temperature": rules.above(0),
    "teacher": rules.one_of(TEACHERS),
}
check = mixing.refused("bad_teacher has another teacher for each example")


def among(logits: jax.Array, classes: Any) -> jax.Array:
    """Logits `[B, C]` of the first classes; a head may have more, that nothing is to be taught."""
    return jnp.where(jnp.arange(logits.shape[-1])[None] < classes, logits, -1e9)


def distil(logits: jax.Array, good: jax.Array, bad: jax.Array, batch: Batch, t: Any) -> jax.Array:
    """KL(softmax(teacher/T) ‖ softmax(f/T)), the bad teacher's on forget; logits `[B, C]` each."""
    teacher = jnp.where(batch.examples["forgotten"][:, None], bad, good)
    log_t, log_p = jax.nn.log_softmax(teacher / t), jax.nn.log_softmax(logits / t)
    return batch.mean(optax.losses.kl_divergence_with_log_targets(log_p, log_t))


def from_random(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Of a random network's answers."""
    good, bad = batch.logits_of(context["good"]), batch.logits_of(context["bad"])
    return distil(logits, good, among(bad, context["classes"]), batch, context["temperature"])


def from_uniform(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Of equal probabilities."""
    good = batch.logits_of(context["good"])
    equal = among(jnp.zeros_like(good), context["classes"])
    return distil(logits, good, equal, batch, context["temperature"])


def part_of_retain(task: Task, share: float) -> np.ndarray:
    """A random share of the retain set, drawn once for the request; int `[round(share · n_r)]`."""
    drawn = stage_rng("part of retain", task.seed).permutation(task.retain)
    return drawn[: round(share * len(drawn))]


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """Distillation from two teachers, in one stream of forget and a share of retain."""
    uniform = config.teacher == "uniform"
    context = {
        "good": task.original,
        "temperature": np.float32(config.temperature),
        "classes": np.int32(task.num_classes),
    }
    if not uniform:
        context["bad"] = task.fresh()
    context = jax.device_put(context)
    for _ in range(config.epochs):
        yield Pass(
            from_uniform if uniform else from_random,
            np.concatenate([task.forget, part_of_retain(task, config.retain_share)]),
            task.labels,
            config.lr,
            config.epochs,
            examples={"forgotten": task.forgotten},
            context=context,
        )
