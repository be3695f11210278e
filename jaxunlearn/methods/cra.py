"""CRA: an objective for relabelling methods that makes the model unsure about malignant examples.

A random label teaches the model that a forgotten malignant lesion is benign, which raises false
negatives. CRA leaves random labels to the forgotten benign examples, and forgets the malignant ones
by entropy: "Does Machine Unlearning Preserve Clinical Safety?", Falcao & Cordeiro 2026,
https://arxiv.org/abs/2604.23854. The paper's code and exact formula are not public; this is our
reading of it.

The entropy's gradient p_c·(H(p) + log p_c) fades as p nears 0 or 1, so that examples of which the
original is certain hardly move; the targets "uniform" and "risk_neutral" pull on those too.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import rules
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.methods import mixing
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Unread
from jaxunlearn.training.passes import Batch, cross_entropy

DEFAULTS = {
    # none: no CRA; entropy: KL(p ‖ uniform); uniform: KL(uniform ‖ p); risk_neutral: KL(q ‖ p), q
    # with half of its mass on the malignant classes, since with several classes a uniform answer is
    # a benign one.
    "target": "none",
    "weight": 1.0,  # of a forgotten malignant example's loss
}
TARGETS = ("none", "entropy", "uniform", "risk_neutral")
RULES = {
    "cra.target": rules.one_of(TARGETS),
    "cra.weight": rules.at_least(0),
}
READS = {
    "cra.weight": Unread(lambda settings: settings.cra.target != "none", "set cra.target"),
}


def _mix(cross_entropy: jax.Array, unsure: jax.Array, batch: Batch, weight: jax.Array) -> jax.Array:
    """Mean of: cross-entropy, or on forgotten malignant examples the weighted forgetting loss."""
    return batch.mean(jnp.where(batch.examples["malignant"], weight * unsure, cross_entropy))


def entropy_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Forgets malignant examples by KL(p ‖ uniform), both over the data's classes."""
    del params
    num_classes = len(context["target"])
    # A head may have more classes: answers of these are wrong, and nothing may pull there.
    log_p = jax.nn.log_softmax(logits[:, :num_classes])
    # KL(p ‖ uniform) = log C − H(p) = log C + Σ_c p_c log p_c
    unsure = jnp.log(num_classes) + jnp.sum(jnp.exp(log_p) * log_p, -1)
    return _mix(
        optax.softmax_cross_entropy(logits, batch.targets), unsure, batch, context["weight"]
    )


def target_objective(params: Any, logits: jax.Array, batch: Batch, context: Any) -> jax.Array:
    """Forgets malignant examples by KL(q ‖ p), q the context's target."""
    del params
    q = context["target"]
    # KL(q ‖ p) = Σ_c q_c (log q_c − log p_c); a head may have more classes, where q is 0
    unsure = jnp.sum(q * jnp.log(q)) - jax.nn.log_softmax(logits)[:, : len(q)] @ q
    return _mix(
        optax.softmax_cross_entropy(logits, batch.targets), unsure, batch, context["weight"]
    )


def target(kind: str, num_classes: int, malignant: tuple[int, ...]) -> np.ndarray:
    """Where forgotten malignant examples are pulled to: probabilities float32 `[num_classes]`."""
    if kind != "risk_neutral":
        return np.full(num_classes, 1 / num_classes, np.float32)
    q = np.full(num_classes, 0.5 / (num_classes - len(malignant)), np.float32)
    q[list(malignant)] = 0.5 / len(malignant)
    return q


def check(settings: Any, dataset: Dataset, policies: Collection[str]) -> None:
    """Raises unless some classes are malignant and some benign, and examples stay unmixed."""
    if settings.cra.target == "none":
        return
    if not 0 < len(dataset.malignant) < dataset.num_classes:
        raise UserError(
            f"cra on {dataset.name}: {len(dataset.malignant)} of {dataset.num_classes} "
            "classes are malignant; it needs at least one malignant and one benign class: set "
            "data.malignant (in Python malignant=)"
        )
    # A mixed target would teach others the random label that malignant examples are spared.
    mixing.refused("cra uses a per-example loss")(settings, dataset, policies)


def objective(task: Task, config: Any) -> dict[str, Any]:
    """The fields of a pass over relabelled examples: its objective, and what that needs."""
    if config.target == "none":
        return {"objective": cross_entropy}
    return {
        "objective": entropy_objective if config.target == "entropy" else target_objective,
        "examples": {"malignant": task.forgotten & np.isin(task.labels, task.malignant)},
        "context": {
            "weight": np.float32(config.weight),
            "target": target(config.target, task.num_classes, task.malignant),
        },
    }
