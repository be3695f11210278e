"""LoTUS: smooth the original's answers on forget until it is right as often as on unseen images.

Spartalis et al. 2025, https://arxiv.org/abs/2503.18314, as in https://github.com/cspartalis/LoTUS:
one shuffled stream of forget and a random share of retain. The targets are the original's answers
with Gumbel noise, drawn at every visit: softmax((f_o + G)/τ) on forget, one-hot argmax(f_o + G) on
retain. τ = exp(α · (accuracy on forget − the original's on validation)) is set anew in every epoch;
where forget is less accurate by more than `stop`, it ends. For a class that is forgotten whole the
accuracy to reach is 0.

The published code rounds both accuracies to two digits first, so that τ moves in jumps. Its α: 8
for CIFAR-10, 2 for CIFAR-100, 32 for whole classes. Labels are read for the accuracies alone.
"""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.methods import mixing
from jaxunlearn.methods.bad_teacher import part_of_retain
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Action, Ask, Batch, Pass, Variables

NEEDS = ("forget", "retain", "val", "labels")
COST = "1.3 · E · (f + retain_share · (1 − f)) + E · f / 3"
DEFAULTS = {
    "optimizer": "adamw",
    "batch_size": 128,
    "epochs": 10,
    "lr": 1e-4,
    "alpha": 8.0,
    "retain_share": 0.3,
    "stop": 0.01,
}
TUNE = {"lr": None, "alpha": (2.0, 4.0, 8.0, 16.0, 32.0)}
RULES = {
    "alpha": rules.at_least(0),
    "retain_share": rules.between(0, 1),
    "stop": rules.at_least(0),
}
check = mixing.refused("lotus has another kind of target on forget")


def targets(teacher: jax.Array, noise: jax.Array, forgotten: jax.Array, tau: Any) -> jax.Array:
    """What rows are trained towards, `[B, C]`, of the original's logits and Gumbel noise `[B, C]`.

    Args:
      teacher: the original's logits.
      noise: of the standard Gumbel distribution; −inf for logits of no class.
      forgotten: which rows are of forget, bool `[B]`.
      tau: their temperature.
    """
    noisy = teacher + noise
    hard = jax.nn.one_hot(jnp.argmax(noisy, -1), teacher.shape[-1])
    return jnp.where(forgotten[:, None], jax.nn.softmax(noisy / tau), hard)


def objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Cross-entropy to the noisy answers of the original."""
    teacher = batch.logits_of(context["original"])
    of_class = jnp.arange(teacher.shape[-1])[None] < context["classes"]  # a head may have more
    noise = jnp.where(of_class, jax.random.gumbel(batch.key, teacher.shape), -jnp.inf)
    drawn = targets(teacher, noise, batch.examples["forgotten"], context["tau"])
    return batch.mean(optax.softmax_cross_entropy(logits, drawn))


def passes(task: Task, config: Any) -> Generator[Action, float, None]:
    """As long as forget is more accurate than unseen images, an epoch after the other."""

    def forget_accuracy(variables: Variables) -> float:
        answers = task.logits(task.forget, variables).argmax(1)
        return float(np.mean(answers == task.labels[task.forget]))

    def unseen_accuracy(variables: Variables) -> float:
        whole = not np.isin(task.labels[task.forget], task.labels[task.retain]).any()
        # Without classes that an earlier request took whole.
        known = np.isin(task.val.labels, task.labels[np.concatenate([task.forget, task.retain])])
        right = task.val_logits().argmax(1) == task.val.labels
        return 0.0 if whole else float(np.mean(right[known]))

    original = jax.device_put(task.original)
    stream = np.concatenate([task.forget, part_of_retain(task, config.retain_share)])
    if not config.epochs:
        return
    unseen = yield Ask(unseen_accuracy)
    for _ in range(config.epochs):
        above = (yield Ask(forget_accuracy)) - unseen
        if above <= -config.stop:
            return
        # τ = exp(α · (Acc(D_f) − Acc(D_v)))
        tau = np.clip(np.exp(np.float32(min(config.alpha * above, 60))), 1e-6, None)
        yield Pass(
            objective,
            stream,
            task.labels,
            config.lr,
            config.epochs,
            examples={"forgotten": task.forgotten},
            context={"original": original, "tau": tau, "classes": np.int32(task.num_classes)},
        )
