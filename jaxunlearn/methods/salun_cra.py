"""SalUn-CRA: SalUn that makes the model unsure about forgotten malignant examples.

A random label teaches the model that a forgotten malignant lesion is benign, which raises false
negatives. SalUn-CRA gives random labels to the forgotten benign examples only, and forgets the
malignant ones by entropy: "Does Machine Unlearning Preserve Clinical Safety?", Falcao & Cordeiro
2026, https://arxiv.org/abs/2604.23854. The paper's code and exact formula are not public; this is
our reading of it.

The entropy's gradient p_c·(H(p) + log p_c) fades as p nears 0 or 1, so that examples of which the
original is certain hardly move; `cra.target = "uniform"` and "risk_neutral" pull on those too.
"""

from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import saliency
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.methods import random_label, salun
from jaxunlearn.methods.task import Task
from jaxunlearn.training import Batch, Pass

DEFAULTS = {
    **salun.DEFAULTS,
    "cra": {
        "weight": 1.0,  # of a forgotten malignant example's loss
        # entropy: KL(p ‖ uniform); uniform: KL(uniform ‖ p); risk_neutral: KL(q ‖ p), q with half
        # of its mass on the malignant classes, since with several classes a uniform answer is a
        # benign one.
        "target": "entropy",
    },
}
TARGETS = ("entropy", "uniform", "risk_neutral")
RULES = {
    **salun.RULES,
    "cra.target": (lambda value: value in TARGETS, ", ".join(TARGETS)),
    "cra.weight": (lambda value: value >= 0, "0 or more"),
}


def _mix(cross_entropy: jax.Array, unsure: jax.Array, batch: Batch, weight: jax.Array) -> jax.Array:
    """Mean of: cross-entropy, or on forgotten malignant examples the weighted forgetting loss."""
    return batch.mean(jnp.where(batch.examples["malignant"], weight * unsure, cross_entropy))


def entropy_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Forgets malignant examples by KL(p ‖ uniform)."""
    del params
    log_p = jax.nn.log_softmax(logits)
    # KL(p ‖ uniform) = log C − H(p) = log C + Σ_c p_c log p_c
    unsure = jnp.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_p) * log_p, -1)
    return _mix(
        optax.softmax_cross_entropy(logits, batch.targets), unsure, batch, context["weight"]
    )


def target_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Forgets malignant examples by KL(q ‖ p), q the context's target."""
    del params
    q = context["target"]
    # KL(q ‖ p) = Σ_c q_c (log q_c − log p_c)
    unsure = jnp.sum(q * jnp.log(q)) - jax.nn.log_softmax(logits) @ q
    return _mix(
        optax.softmax_cross_entropy(logits, batch.targets), unsure, batch, context["weight"]
    )


def target(kind: str, num_classes: int, malignant: tuple[int, ...]) -> np.ndarray:
    """Where forgotten malignant examples are drawn to: probabilities float32 `[num_classes]`."""
    if kind != "risk_neutral":
        return np.full(num_classes, 1 / num_classes, np.float32)
    q = np.full(num_classes, 0.5 / (num_classes - len(malignant)), np.float32)
    q[list(malignant)] = 0.5 / len(malignant)
    return q


def check(dataset: Dataset, policies: Collection[str]) -> None:
    """Raises unless some classes are malignant and some benign, and examples stay apart."""
    if not 0 < len(dataset.malignant) < dataset.num_classes:
        raise UserError(
            f"salun_cra on {dataset.name}: {len(dataset.malignant)} of {dataset.num_classes} "
            "classes are malignant; it needs at least one malignant and one benign class: set "
            "data.malignant"
        )
    # A mixed target would teach others the random label that the malignant example is spared.
    mixing = sorted({"mixup", "cutmix"}.intersection(policies))
    if mixing:
        raise UserError(
            f"salun_cra has a loss of its own for some examples, and {mixing[0]} mixes examples; "
            "take one of them out of the config"
        )


def passes(task: Task, config: Any) -> Iterator[Pass]:
    """SalUn with the forgetting loss on the forgotten malignant examples."""
    num_classes = task.setup.num_classes
    if not config.epochs:
        return
    forgotten = np.zeros(len(task.labels), bool)
    forgotten[task.split.forget] = True
    yield from random_label.passes(
        task,
        config,
        mask=saliency.saliency_mask(task, config.mask),
        objective=entropy_objective if config.cra.target == "entropy" else target_objective,
        examples={"malignant": forgotten & np.isin(task.labels, task.malignant)},
        context={
            "weight": np.float32(config.cra.weight),
            "target": target(config.cra.target, num_classes, task.malignant),
        },
    )
