"""Verdicts: decisions with their uncertainty, as data that reports only put into words."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from jaxunlearn.metrics.clinical import TRIVIAL, FalseNegatives
from jaxunlearn.metrics.statistics import LEVEL, holm, percent_change, t_interval, t_test

# A corrected p-value below this makes a difference reliable.
SIGNIFICANT = 0.05

Interval = tuple[float, float]  # a list once it is read back from JSON


class FalseNegativesVerdict(TypedDict):
    """Whether a method misses more malignant test images than the reference model does.

    Attributes:
      verdict: "unknown" where no test image is malignant.
      by: missed by the method minus missed by the reference, with several seeds the mean.
      over: the source of the uncertainty: "test images" with one seed, else "seeds".
      p: exact McNemar over test images, or Student's t of the difference over seeds; None where
        all seeds have the same difference, which is no evidence.
      p_corrected: by Holm over `corrected_for` methods. More or fewer where it is below 5%.
      interval: 95% t interval of the difference over seeds, for this method alone; None with one
        seed.
      corrected_for: the number of methods compared.
      reference: the model compared with.
    """

    verdict: Literal["more", "fewer", "no reliable difference", "unknown"]
    by: float | None
    over: Literal["test images", "seeds"]
    p: float | None
    p_corrected: float | None
    interval: Interval | None
    corrected_for: int
    reference: str


class TrivialVerdict(TypedDict):
    """Which models do worse, at a scenario's costs, than an answer that never sees the image.

    Attributes:
      answer: the better of "always benign" and "always malignant".
      risk: its cost per test image.
      worse: the models with a greater risk (mean over seeds).
    """

    answer: str
    risk: float
    worse: list[str]


class GapVerdict(TypedDict):
    """Whether a method's Avg Gap differs, where it is lowest along a grid's axis, from the first.

    Attributes:
      verdict: "unknown" with one seed, or where the reference's Avg Gap is 0.
      by: change of Avg Gap in percent; None where the reference's is 0.
      at: label of the value where Avg Gap is lowest among the others.
      over: the source of the uncertainty.
      interval: of `by` in percent, 95% after Bonferroni's correction; None with one seed.
      corrected_for: the number of values that the lowest was chosen from.
      reference: label of the first value.
    """

    verdict: Literal["lower", "higher", "no reliable difference", "unknown"]
    by: float | None
    at: str | None
    over: Literal["seeds"]
    interval: Interval | None
    corrected_for: int
    reference: str


def false_negatives(
    found: Mapping[str, Sequence[FalseNegatives]], reference: str
) -> dict[str, FalseNegativesVerdict]:
    """The verdict on each method's false negatives, corrected for the number of methods.

    Args:
      found: by method, one comparison with the reference model per seed.
      reference: the reference model's name.
    """
    verdicts = {name: _false_negatives(per_seed, reference) for name, per_seed in found.items()}
    known = [verdict for verdict in verdicts.values() if verdict["verdict"] != "unknown"]
    # A difference without spread has no p, and is still one of the hypotheses.
    corrected = holm([1.0 if verdict["p"] is None else verdict["p"] for verdict in known])
    for verdict, p in zip(known, corrected, strict=True):
        verdict["corrected_for"] = len(known)
        if verdict["p"] is not None:
            verdict["p_corrected"] = p
        if p < SIGNIFICANT and verdict["by"]:
            verdict["verdict"] = "more" if verdict["by"] > 0 else "fewer"
    return verdicts


def _false_negatives(per_seed: Sequence[FalseNegatives], reference: str) -> FalseNegativesVerdict:
    """One method's verdict before its p-value is corrected."""
    changes = [found["missed"] - found["missed_reference"] for found in per_seed]
    several = len(per_seed) > 1
    verdict: FalseNegativesVerdict = {
        "verdict": "no reliable difference",
        "by": sum(changes) / len(changes) if several else changes[0],
        "over": "seeds" if several else "test images",
        "p": t_test(changes) if several else per_seed[0]["p_value"],
        "p_corrected": None,
        "interval": t_interval(changes) if several else None,
        "corrected_for": 1,
        "reference": reference,
    }
    if per_seed[0]["n_malignant"] == 0:
        verdict |= {"verdict": "unknown", "by": None, "p": None, "interval": None}
    return verdict


def trivial(means: Mapping[str, Mapping[str, Any]]) -> dict[str, TrivialVerdict]:
    """By scenario, the models that do worse than the better trivial answer.

    Args:
      means: each model's mean values, on one test set.
    """
    first = next(iter(means.values()))
    verdicts: dict[str, TrivialVerdict] = {}
    for scenario in first["risk"]:
        risks = {answer: first[key][scenario] for answer, key in TRIVIAL.items()}
        answer = min(risks, key=lambda each: risks[each])
        ratios = {name: mean["risk_ratio"][scenario] for name, mean in means.items()}
        worse = [name for name, ratio in ratios.items() if ratio is not None and ratio > 1]
        verdicts[scenario] = {"answer": answer, "risk": risks[answer], "worse": worse}
    return verdicts


def gap_change(
    gaps: Sequence[float], reference: Sequence[float], level: float = LEVEL
) -> tuple[float | None, Interval | None]:
    """`statistics.percent_change` of Avg Gap: a gap is at least 0, so none falls by more than 100%.

    Args:
      gaps: Avg Gap, one per seed.
      reference: the reference's, of the same seeds in the same order.
      level: of the interval.
    """
    change, interval = percent_change(gaps, reference, level)
    if interval is not None:
        interval = max(interval[0], -100.0), interval[1]
    return change, interval


def lowest_gap(gaps: Mapping[str, Sequence[float]]) -> GapVerdict:
    """The verdict on a method's lowest Avg Gap along a grid's axis, against the axis' first value.

    Args:
      gaps: Avg Gap per seed by the value's label, the reference first; at least two values.
    """
    (reference, before), *others = gaps.items()
    verdict: GapVerdict = {
        "verdict": "unknown",
        "by": None,
        "at": None,
        "over": "seeds",
        "interval": None,
        "corrected_for": len(others),
        "reference": reference,
    }
    changes = {label: gap_change(after, before)[0] for label, after in others}
    known = {label: change for label, change in changes.items() if change is not None}
    if not known:
        return verdict
    best = min(known, key=lambda label: known[label])
    # Bonferroni, because the best of several is chosen
    level = 1 - (1 - LEVEL) / len(others)
    verdict["at"], (verdict["by"], verdict["interval"]) = (
        best,
        gap_change(gaps[best], before, level),
    )
    if verdict["interval"] is not None:
        low, high = verdict["interval"]
        # Gaps in the same ratio in all seeds give an interval of no width, which is no evidence.
        reliable = low < high and not low <= 0 <= high
        verdict["verdict"] = "no reliable difference"
        if reliable:
            verdict["verdict"] = "lower" if high < 0 else "higher"
    return verdict
