"""SCRUB: move away from the original on the forget set, stay close to it on the retain set.

Kurmanji et al. 2023, https://arxiv.org/abs/2302.09880, as in https://github.com/meghdadk/SCRUB: the
forget pass comes first in each of the first `max_epochs` epochs, then the retain pass; one
optimizer serves both, and its state carries over. The defaults are theirs for small data sets (Adam
and weight decay 0.1), but for the batches, of which theirs have 32 retained or 64 forgotten images,
so that they take more steps at the same rate; for CIFAR-10 with a ResNet they use SGD 5e-4,
temperature 4, γ 0.99, α 0.001, and 2 of 3 epochs.

At the original the forgetting loss has no gradient: only batch statistics, augmentation and weight
decay set the first pass moving.

`rewind` (SCRUB+R) returns the epoch whose error on the forget set is closest to the final model's
error on validation examples of the forget set's classes. The published code has no checkpoint of
the original and fails where that is the closest; here it is not a candidate.
"""

from collections.abc import Generator
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.methods.task import Task
from jaxunlearn.training.passes import Action, Ask, Batch, Pass, Restore, Save, Variables

NEEDS = ("forget", "retain", "val", "labels")
COST = (
    "E · (1 − f) + max_epochs · f, and a third more for the teacher; with rewind, E · f / 3 + "
    "n_val / 3n more"
)
DEFAULTS = {
    "optimizer": "adam",
    "weight_decay": 0.1,
    "epochs": 10,
    "lr": 5e-4,
    "decay_after": (5, 8, 9),  # epochs after which the rate is divided by 10
    "max_epochs": 3,  # in how many the forget set is maximised
    "temperature": 2.0,
    "alpha": 0.5,  # of KL on the retain set
    "gamma": 1.0,  # of cross-entropy on the retain set
    "rewind": False,
}
TUNE = {"lr": None, "alpha": (0.001, 0.01, 0.1, 0.5)}
RULES = {
    "decay_after": rules.whole_numbers(1, "epochs, 1 or more"),
    "max_epochs": rules.at_least(0),
    "temperature": rules.above(0),
    "alpha": rules.at_least(0),
    "gamma": rules.at_least(0),
}


def divergence(logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """KL_T of each example from the teacher, `[B]`."""
    t = context["temperature"]
    teacher = batch.logits_of(context["teacher"])
    log_p, log_q = jax.nn.log_softmax(teacher / t), jax.nn.log_softmax(logits / t)
    # KL_T = T² · KL(softmax(f_o/T) ‖ softmax(f/T))
    return t**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def forget_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Away from the teacher: −KL_T."""
    return -batch.mean(divergence(logits, batch, context))


def retain_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Close to the teacher and to the labels: α·KL_T + γ·CE."""
    loss = optax.softmax_cross_entropy(logits, batch.targets)
    return batch.mean(
        context["alpha"] * divergence(logits, batch, context) + context["gamma"] * loss
    )


def check(settings: Any, dataset: Dataset, policies: Any) -> None:
    """Raises where rewinding finds no validation example to compare with."""
    missing = set(dataset.train.labels.tolist()) - set(dataset.val.labels.tolist())
    if settings.rewind and missing:
        raise UserError(
            f"scrub with rewind=True on {dataset.name}: validation has no example of class "
            f"{min(missing)}; set rewind=False, or give a validation set with every class"
        )


def closest(errors: list[float], reference: float) -> int:
    """The first epoch, from 0, whose error is closest to the reference."""
    return int(np.argmin(np.abs(np.asarray(errors) - reference)))


def passes(task: Task, config: Any) -> Generator[Action, float, None]:
    """Maximise on forget in the first epochs, minimise on retain in all of them."""
    # On the device once, rather than in every pass.
    context = jax.device_put(
        {
            "teacher": task.original,
            **{name: np.float32(config[name]) for name in ("temperature", "alpha", "gamma")},
        }
    )
    total = config.epochs + min(config.max_epochs, config.epochs)
    errors = []
    for epoch in range(config.epochs):
        lr = config.lr * 0.1 ** sum(epoch >= at for at in config.decay_after)
        steps = [(retain_objective, task.retain)]
        if epoch < config.max_epochs:
            steps.insert(0, (forget_objective, task.forget))
        for objective, indices in steps:
            yield Pass(objective, indices, task.labels, lr, total, context=context)
        if config.rewind:
            errors.append((yield Ask(lambda variables: _forget_error(task, variables))))
            yield Save(f"epoch {epoch}")
    if errors:
        reference = yield Ask(lambda variables: _reference_error(task, variables))
        yield Restore(f"epoch {closest(errors, reference)}")


def _forget_error(task: Task, variables: Variables) -> float:
    """Share of the forget set that the model gets wrong."""
    return float(np.mean(task.logits(task.forget, variables).argmax(1) != task.labels[task.forget]))


def _reference_error(task: Task, variables: Variables) -> float:
    """The same of validation examples of the forget set's classes."""
    like = np.isin(task.val.labels, np.unique(task.labels[task.forget]))
    return float(np.mean((task.val_logits(variables).argmax(1) != task.val.labels)[like]))
