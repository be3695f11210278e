"""Clinical metrics: the cost of a model's errors to patients. Malignant is the positive class.

An undefined rate or risk, such as sensitivity without a malignant example, is None.
"""

from typing import TypedDict

import numpy as np

from jaxunlearn.errors import UserError, unknown
from jaxunlearn.metrics.predictions import Predictions, probabilities
from jaxunlearn.metrics.statistics import best_threshold, mcnemar

Malignant = tuple[int, ...]

# The answers that never see the image, and the keys of their risks.
TRIVIAL = {"always benign": "risk_treat_none", "always malignant": "risk_treat_all"}


def p_malignant(logits: np.ndarray, malignant: Malignant) -> np.ndarray:
    """Summed probability of the malignant classes, `[N, num_classes]` to float64 `[N]`."""
    return np.minimum(probabilities(logits)[:, list(malignant)].sum(axis=1), 1.0)


# How a model of several classes answers "malignant": by argmax, as published, or by the sum.
MALIGNANT_RULES = {
    "argmax": lambda logits, malignant: np.isin(logits.argmax(axis=1), malignant),
    "sum": lambda logits, malignant: p_malignant(logits, malignant) >= 0.5,
}


def called_malignant(logits: np.ndarray, malignant: Malignant, rule: str) -> np.ndarray:
    """Which examples the model calls malignant, `[N, num_classes]` to bool `[N]`.

    Args:
      logits: `[N, num_classes]`.
      malignant: labels of the malignant classes.
      rule: "argmax" (the class of the largest logit is malignant; of equal logits the lower class
        counts) or "sum" (the summed probability is at least 0.5).

    Raises:
      UserError: `rule` is neither.
    """
    if rule not in MALIGNANT_RULES:
        raise unknown("malignant rule", rule, MALIGNANT_RULES)
    return MALIGNANT_RULES[rule](logits, malignant)


def confusion(called: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Counts of true and false positives and negatives; arguments bool `[N]`, True = malignant."""
    return {
        "tp": int(np.sum(called & truth)),
        "fn": int(np.sum(~called & truth)),
        "fp": int(np.sum(called & ~truth)),
        "tn": int(np.sum(~called & ~truth)),
    }


def rates(counts: dict[str, int]) -> dict[str, float | None]:
    """Rates of confusion counts, as fractions."""
    tp, fn, fp, tn = (counts[name] for name in ("tp", "fn", "fp", "tn"))
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    balanced = None
    if sensitivity is not None and specificity is not None:
        balanced = (sensitivity + specificity) / 2
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "fnr": _share(fn, tp + fn),
        "fpr": _share(fp, fp + tn),
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
        "balanced_accuracy": balanced,
    }


def _share(part: int, whole: int) -> float | None:
    """`part / whole`, None where `whole` is 0."""
    return part / whole if whole else None


def auroc(p: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve of p(malignant) `[N]` for the truth, bool `[N]`."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, p)) if 0 < truth.sum() < len(truth) else None


def costs(called: np.ndarray, truth: np.ndarray, c_fn: float, c_fp: float) -> np.ndarray:
    """Each example's cost `[N]`: C_FN if malignant and missed, C_FP if a false alarm, else 0."""
    return c_fn * (~called & truth) + c_fp * (called & ~truth)


def scenario_name(c_fn: float, c_fp: float) -> str:
    """The name of a pair of costs, "20:1": exact, so that different costs have different names."""
    return ":".join(repr(float(cost)).removesuffix(".0") for cost in (c_fn, c_fp))


def risks(
    called: np.ndarray, truth: np.ndarray, c_fn: float, c_fp: float
) -> dict[str, float | None]:
    """Risks in cost per example, with those of the trivial answers (`TRIVIAL`).

    Falcao & Cordeiro 2026, https://arxiv.org/abs/2604.23854. `risk_ratio` is the risk divided by
    the smaller trivial one: above 1, the model does worse than an answer that never sees the image.

    Args:
      called: which examples the model calls malignant, bool `[N]`.
      truth: which are, bool `[N]`.
      c_fn: cost of a false negative.
      c_fp: cost of a false positive.
    """
    cost = costs(called, truth, c_fn, c_fp)
    # R_global = (C_FN · FN + C_FP · FP) / N
    risk = float(cost.mean())
    # R_malignant = C_FN · FN / N_malignant, R_benign = C_FP · FP / N_benign
    malignant = float(cost[truth].mean()) if truth.any() else None
    benign = float(cost[~truth].mean()) if not truth.all() else None
    treat_none = float(costs(np.zeros_like(truth), truth, c_fn, c_fp).mean())
    treat_all = float(costs(np.ones_like(truth), truth, c_fn, c_fp).mean())
    trivial = min(treat_none, treat_all)
    return {
        "risk": risk,
        "risk_malignant": malignant,
        "risk_benign": benign,
        "risk_gap": None if malignant is None or benign is None else abs(malignant - benign),
        "risk_treat_none": treat_none,
        "risk_treat_all": treat_all,
        "risk_ratio": risk / trivial if trivial else None,
    }


def cost_optimal_threshold(
    p: np.ndarray, truth: np.ndarray, c_fn: float, c_fp: float
) -> float | None:
    """The threshold t that minimises risk on validation, for "malignant when p(malignant) ≥ t".

    Of equal risks the lowest threshold, for fewer missed lesions; 0 calls all malignant and 2 none.
    None where the validation set lacks malignant or benign examples. It needs no calibrated
    probabilities, unlike the fixed t = C_FP / (C_FP + C_FN).

    Args:
      p: p(malignant), `[N]`.
      truth: bool `[N]`.
      c_fn: cost of a false negative.
      c_fp: cost of a false positive.
    """
    if truth.all() or not truth.any():
        return None
    return float(np.clip(best_threshold(p, truth, c_fn, c_fp)[0], 0.0, 2.0))


class FalseNegatives(TypedDict):
    """How a model's false negatives differ from a reference model's, on the same test examples.

    Attributes:
      missed: malignant examples that the model misses.
      missed_reference: malignant examples that the reference misses.
      newly_missed: those that only the model misses.
      newly_found: those that only the reference misses.
      p_value: exact McNemar, by group where there are groups.
      n_malignant: the number of malignant examples.
    """

    missed: int
    missed_reference: int
    newly_missed: int
    newly_found: int
    p_value: float
    n_malignant: int


def compare_false_negatives(
    test: Predictions, reference: Predictions, malignant: Malignant, rule: str
) -> FalseNegatives:
    """Compares a model's false negatives with a reference model's on the same test examples.

    Args:
      test: predictions on test.
      reference: another model's predictions on the same test set, usually retrained's.
      malignant: labels of the malignant classes.
      rule: see `called_malignant`.

    Raises:
      UserError: the two were not made on the same test set.
    """
    if not np.array_equal(test.labels, reference.labels):
        raise UserError("two models' predictions have different labels; give both on one test set")
    truth = np.isin(test.labels, malignant)
    missed = ~called_malignant(test.logits, malignant, rule) & truth
    missed_reference = ~called_malignant(reference.logits, malignant, rule) & truth
    differences = missed.astype(int) - missed_reference
    return {
        "missed": int(missed.sum()),
        "missed_reference": int(missed_reference.sum()),
        "newly_missed": int(np.sum(differences > 0)),
        "newly_found": int(np.sum(differences < 0)),
        "p_value": mcnemar(differences, test.groups),
        "n_malignant": int(truth.sum()),
    }
