"""Verdicts: decisions with their uncertainty, as data that reports only put into words."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from jaxunlearn.metrics.clinical import TRIVIAL, FalseNegatives
from jaxunlearn.metrics.statistics import LEVEL, holm, percent_change, t_interval, t_test

# A corrected p-value below this makes a difference reliable.
SIGNIFICANT = 0.05

# How the two tests of several seeds share it: most of it for claims about trainings in general.
PARTS: dict[Literal["seeds", "test images"], float] = {"seeds": 0.9, "test images": 0.1}

# A rate over fewer examples may be off by more than 20 points either way: a 95% Wilson interval
# reaches up to z / (2·√(n + z²)) from its middle, which 21 is the first n to bring below 0.2.
LEAST_EXAMPLES = 21
# Fewer of these cannot carry a decision. With 5 malignant images no exact McNemar test gets below
# 5%, since 2·½⁵ = 6.25%; two seeds know their spread from one difference.
LEAST = {
    "forget": LEAST_EXAMPLES,
    "retain": LEAST_EXAMPLES,
    "test": LEAST_EXAMPLES,
    "malignant": 6,
    "forget groups": LEAST_EXAMPLES,
    "retain groups": LEAST_EXAMPLES,
    "test groups": LEAST_EXAMPLES,
    "malignant groups": 6,
    "seeds": 3,
}

Interval = tuple[float, float]  # a list once it is read back from JSON


class FalseNegativesVerdict(TypedDict):
    """Whether a method misses more malignant test images than the reference model does.

    Attributes:
      verdict: "unknown" where no test image is malignant; "no reliable difference" whatever the
        p-value where there is `too_few` of something.
      by: missed by the method minus missed by the reference, with several seeds the mean.
      over: the source of the uncertainty: "test images" with one seed, or where all seeds have one
        retrained model, of which nothing follows for others; with several "seeds", or "test images"
        where these tell more.
      p: with one seed exact McNemar over test images. With several the smaller of two, each divided
        by its part of the 5% (`PARTS`): of Student's t of the difference over seeds, which is of
        trainings in general; and of the largest McNemar of all seeds, where all differ in one
        direction, which is of these trainings: few seeds cannot tell even a model that misses all.
      p_corrected: by Holm over `corrected_for` methods. More or fewer where it is below 5%.
      interval: 95% t interval of the difference over seeds, for this method alone; None with one
        seed or one retrained model, or where all have the same difference.
      corrected_for: the number of methods compared.
      reference: the model compared with.
      too_few: the counts that are below `LEAST`, by name: malignant (test images), their groups
        where these are known, retain, and of several seeds their number.
    """

    verdict: Literal["more", "fewer", "no reliable difference", "unknown"]
    by: float | None
    over: Literal["test images", "seeds"]
    p: float | None
    p_corrected: float | None
    interval: Interval | None
    corrected_for: int
    reference: str
    too_few: dict[str, int]


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


class MajorityVerdict(TypedDict):
    """Which reference models answer no better than one that always names the largest class.

    A gap to such a model says nothing of unlearning.

    Attributes:
      answer: label of the class that most test images are of.
      share: their share in percent.
      no_better: by reference model, the seeds whose accuracy on the same images is not above that.
    """

    answer: int
    share: float
    no_better: dict[str, list[int]]


class Evidence(TypedDict):
    """Whether there are enough images to judge by.

    Attributes:
      small: of forget, retain, test and the malignant and benign test images, and of the groups of
        all but the last where these are known, the sizes that are above 0 and below `least`, by
        name.
      least: below it, a rate may be off by more than 20 percentage points either way.
      one_step: whether retain fits in the largest batch of all trainings, so that an epoch of
        training on it is one step.
    """

    small: dict[str, int]
    least: int
    one_step: bool


class GapVerdict(TypedDict):
    """Whether a method's Avg Gap differs, where it is lowest along a grid's axis, from the first.

    Attributes:
      verdict: "unknown" with one seed, or where the reference's Avg Gap is 0; "no reliable
        difference" whatever the interval where there is `too_few` of something.
      by: change of Avg Gap in percent; None where the reference's is 0.
      at: label of the value where Avg Gap is lowest among the others.
      over: the source of the uncertainty.
      interval: of `by` in percent, 95% after Bonferroni's correction; None with one seed.
      corrected_for: the number of values that the lowest was chosen from.
      reference: label of the first value.
      too_few: the counts that are below `LEAST`, by name: forget, retain and test at any of the
        values, and of several seeds their number.
    """

    verdict: Literal["lower", "higher", "no reliable difference", "unknown"]
    by: float | None
    at: str | None
    over: Literal["seeds"]
    interval: Interval | None
    corrected_for: int
    reference: str
    too_few: dict[str, int]


class BudgetVerdict(TypedDict):
    """Whether a method has lost more against the original, over a sequence, than a budget allows.

    A loss of a request's is over its budget where it is above it. It is a reason to retrain where
    besides the interval's lower bound is above 0, so that it is not chance alone, and nothing is
    `too_few`. A distance is exact. The same loss in all seeds, which are then perhaps of one model,
    has the interval over test images of the seed where that reaches lowest.

    The bounds are for each loss of each request by itself: looking at many of them makes "retrain"
    more likely to come too early than too late.

    Attributes:
      verdict: "retrain" where a loss is a reason to at some request; "unclear" where one is over
        its budget only; "keep" where none is, which is no evidence that nothing was lost.
      request: the first for which the verdict is so; with "keep" that of the loss which may be
        largest, in shares of its budget, by its interval's upper bound; None where none is known,
        as all that follow.
      because: the loss, by its key in `evaluate.METRICS` and its scenario if it has any; of
        several at one request the first of the budget's.
      by: how large it is, with several seeds the mean; in the units of the budget.
      interval: its 95% interval; None where it is exact, of one image or group, or no answer has
        changed.
      budget: what it may be.
      retrained: how large it is for retrained, where there is one: if as large, retraining is no
        remedy.
      over: the source of the uncertainty.
      too_few: the counts that are below `LEAST`, by name: test images, malignant ones, their groups
        where these are known, seeds.
      unknown: the losses that are undefined at some request, as a rise from no risk at all, or the
        misses among no malignant images: nothing is known of them.
    """

    verdict: Literal["retrain", "unclear", "keep"]
    request: int | None
    because: str | None
    by: float | None
    interval: Interval | None
    budget: float | None
    retrained: float | None
    over: Literal["test images", "seeds"]
    too_few: dict[str, int]
    unknown: list[str]


class Loss(NamedTuple):
    """What a method has lost at one request of a sequence; the attributes are as above.

    Attributes:
      exact: whether it is what it is, as a distance, and not an estimate from images.
    """

    request: int
    because: str
    by: float | None
    interval: Interval | None
    budget: float
    retrained: float | None
    too_few: dict[str, int]
    over: Literal["test images", "seeds"]
    exact: bool = False


def has_width(interval: Interval) -> bool:
    """Whether the values that it is of differ by more than rounding."""
    low, high = interval
    return high - low > 1e-9


def too_few(counts: Mapping[str, int]) -> dict[str, int]:
    """Those of the counts, by name, that are below `LEAST`; one seed makes no claim over seeds."""
    return {
        name: count
        for name, count in counts.items()
        if count < LEAST[name] and (name, count) != ("seeds", 1)
    }


def false_negatives(
    found: Mapping[str, Sequence[FalseNegatives]],
    reference: str,
    sizes: Mapping[str, int] = LEAST,
    one_retrained: bool = False,
) -> dict[str, FalseNegativesVerdict]:
    """The verdict on each method's false negatives, corrected for the number of methods.

    Args:
      found: by method, one comparison with the reference model per seed.
      reference: the reference model's name.
      sizes: "retain", the number of examples that the models could learn from, and where known
        "malignant groups", of patients or lesions; enough by default.
      one_retrained: whether all of several seeds are compared with the same retrained model.
    """
    verdicts = {
        name: _false_negatives(per_seed, reference, sizes, one_retrained)
        for name, per_seed in found.items()
    }
    known = {name: each["p"] for name, each in verdicts.items() if each["p"] is not None}
    for name, p in zip(known, holm(list(known.values())), strict=True):
        verdict = verdicts[name]
        verdict["corrected_for"], verdict["p_corrected"] = len(known), p
        if p < SIGNIFICANT and verdict["by"] and not verdict["too_few"]:
            verdict["verdict"] = "more" if verdict["by"] > 0 else "fewer"
    return verdicts


def budget(losses: Sequence[Loss]) -> BudgetVerdict:
    """The verdict on a method's losses over a sequence of requests.

    Args:
      losses: those that there is a budget for, by request and then in the budget's order.
    """
    above = [  # rounding must not decide
        loss for loss in losses if loss.by is not None and loss.by - loss.budget > 1e-9
    ]
    sure = [
        loss
        for loss in above
        if not loss.too_few and (loss.exact or (loss.interval is not None and loss.interval[0] > 0))
    ]
    known = [loss for loss in losses if loss.by is not None]
    first = next(iter([*sure, *above]), max(known, key=_at_most, default=None))
    return {
        "verdict": "retrain" if sure else "unclear" if above else "keep",
        "request": first and first.request,
        "because": first and first.because,
        "by": first and first.by,
        "interval": first and first.interval,
        "budget": first and first.budget,
        "retrained": first and first.retrained,
        "over": (first or losses[0]).over if losses else "test images",
        "too_few": first.too_few if first else {},
        "unknown": list(dict.fromkeys(loss.because for loss in losses if loss.by is None)),
    }


def _at_most(loss: Loss) -> float:
    """How large a loss may be, in shares of its budget."""
    return max(loss.by or 0.0, loss.interval[1] if loss.interval else 0.0) / loss.budget


def _false_negatives(
    per_seed: Sequence[FalseNegatives],
    reference: str,
    sizes: Mapping[str, int],
    one_retrained: bool,
) -> FalseNegativesVerdict:
    """One method's verdict before its p-value is corrected."""
    changes = [found["missed"] - found["missed_reference"] for found in per_seed]
    several, malignant = len(per_seed) > 1, per_seed[0]["n_malignant"]
    spread = min(changes) < max(changes) and not one_retrained
    over, p = _tested(changes, max(found["p_value"] for found in per_seed), one_retrained)
    names = ("malignant groups", "retain")
    counts = {"malignant": malignant} | {name: sizes[name] for name in names if name in sizes}
    if over == "seeds":
        counts["seeds"] = len(per_seed)
    verdict: FalseNegativesVerdict = {
        "verdict": "no reliable difference",
        "by": sum(changes) / len(changes) if several else changes[0],
        "over": over,
        "p": p,
        "p_corrected": None,
        "interval": t_interval(changes) if spread else None,
        "corrected_for": 1,
        "reference": reference,
        "too_few": too_few(counts),
    }
    if malignant == 0:
        verdict |= {"verdict": "unknown", "by": None, "p": None, "interval": None}
    return verdict


def _tested(
    changes: Sequence[int], largest: float, one_retrained: bool
) -> tuple[Literal["seeds", "test images"], float]:
    """What a difference is tested over, and its p-value, from the largest McNemar of all seeds."""
    if len(changes) == 1:
        return "test images", largest
    one_way = min(changes) > 0 or max(changes) < 0
    if one_retrained:  # the luck of its training is in all differences alike
        return "test images", largest if one_way else 1.0
    p: dict[Literal["seeds", "test images"], float] = {"seeds": 1.0, "test images": 1.0}
    if min(changes) < max(changes):
        p["seeds"] = min(1.0, t_test(changes) / PARTS["seeds"])
    if one_way:
        p["test images"] = min(1.0, largest / PARTS["test images"])
    over = min(p, key=lambda each: p[each])
    return over, p[over]


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
        reached = risks[answer] + 1e-9  # rounding must not decide
        worse = [name for name, mean in means.items() if mean["risk"][scenario] > reached]
        verdicts[scenario] = {"answer": answer, "risk": risks[answer], "worse": worse}
    return verdicts


def most_frequent(labels: np.ndarray) -> tuple[int, float]:
    """The most frequent label of int `[N]`, and its share of them in percent."""
    answer = int(np.bincount(labels).argmax())
    return answer, 100 * float(np.mean(labels == answer))


def majority(
    answer: int, share: float, accuracies: Mapping[str, Sequence[float]], seeds: Sequence[int]
) -> MajorityVerdict:
    """The reference models that answer no better than the most frequent label.

    Args:
      answer: the most frequent label of the test images.
      share: its share of them, in percent.
      accuracies: by reference model, its accuracy on them in percent, in the order of `seeds`.
      seeds: of the models.
    """
    reached = share + 1e-6  # rounding must not decide; one image is more than that
    no_better = {
        name: [seed for seed, each in zip(seeds, values, strict=True) if each <= reached]
        for name, values in accuracies.items()
    }
    return {
        "answer": answer,
        "share": share,
        "no_better": {name: found for name, found in no_better.items() if found},
    }


def evidence(sizes: Mapping[str, int], batch_size: int | None) -> Evidence:
    """Whether there are enough images to judge by.

    Args:
      sizes: of forget, retain and test, and where known of malignant and benign test images and of
        groups; other names are left out.
      batch_size: the largest of the models' training; None where none was trained.
    """
    names = [name for name in LEAST if name != "seeds"] + ["benign"]
    return {
        "small": {name: sizes[name] for name in names if 0 < sizes.get(name, 0) < LEAST_EXAMPLES},
        "least": LEAST_EXAMPLES,
        "one_step": batch_size is not None and sizes["retain"] <= batch_size,
    }


def lowest_gap(gaps: Mapping[str, Sequence[float]], sizes: Mapping[str, int] = LEAST) -> GapVerdict:
    """The verdict on a method's lowest Avg Gap along a grid's axis, against the axis' first value.

    Args:
      gaps: Avg Gap per seed by the value's label, the reference first; at least two values.
      sizes: of forget, retain and test, the smallest at any of the values; enough by default.
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
        "too_few": too_few({**sizes, "seeds": len(before)}),
    }
    best, after = min(others, key=lambda each: sum(each[1]))
    # Bonferroni, because the best of several is chosen
    level = 1 - (1 - LEVEL) / len(others)
    verdict["by"], verdict["interval"] = percent_change(after, before, level)
    if verdict["by"] is None:
        return verdict
    verdict["at"] = best
    if verdict["interval"] is not None:
        low, high = verdict["interval"]
        # The same change in all seeds has no spread to judge it by.
        reliable = has_width(verdict["interval"]) and not low <= 0 <= high
        verdict["verdict"] = "no reliable difference"
        if reliable and not verdict["too_few"]:
            verdict["verdict"] = "lower" if high < 0 else "higher"
    return verdict
