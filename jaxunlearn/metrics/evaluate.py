"""The table of metrics, and `evaluate`, which fills it in for one model.

Where a request takes whole classes, a model is judged on the others: TA, MIA's non-members and the
clinical values are of the test images (thresholds: of the validation images) of classes that were
not forgotten, and the accuracy on those that were stands apart, as `TA_forgotten`. So does Fan et
al.'s published code (https://github.com/OPTML-Group/Unlearn-Saliency, Classification/dataset.py),
which drops a class that is forgotten whole from the test set of both TA and the attack: retrained
answers no image of such a class rightly, and against these an attack would be trivial.

A new metric is one row of `METRICS`: its value in `metrics.json`, its interval, its column in the
tables, its best mark and the note that explains it all follow from the row.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.metrics import clinical, privacy, unlearning
from jaxunlearn.metrics.predictions import Predictions, apart, check, confidence, entropy, unseen


@dataclasses.dataclass(frozen=True)
class Case:
    """One model's predictions and how they are to be judged: all that a metric may read.

    Attributes:
      forget, retain: predictions on each set.
      val, test: the same, without the examples of classes that were forgotten whole.
      test_forgotten: the predictions on these test examples; None where no class was.
      unseen: on all val and test examples, but for those of groups that train has.
      malignant: labels of the malignant classes; empty where there are none.
      scenarios: pairs of costs (C_FN, C_FP).
      attack, members: names in `privacy.ATTACKS` and `privacy.MEMBERS`.
      malignant_rule: a name in `clinical.MALIGNANT_RULES`.
      seed: names the random stream of metrics that resample.
    """

    forget: Predictions
    retain: Predictions
    val: Predictions
    test: Predictions
    test_forgotten: Predictions | None
    unseen: Predictions
    malignant: tuple[int, ...]
    scenarios: tuple[tuple[float, float], ...]
    attack: str
    members: str
    malignant_rule: str
    seed: int

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """Which test examples are malignant, bool `[N]`."""
        return np.isin(self.test.labels, self.malignant)

    @functools.cached_property
    def called(self) -> np.ndarray:
        """Which test examples the model calls malignant, bool `[N]`."""
        return clinical.called_malignant(self.test.logits, self.malignant, self.malignant_rule)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Confusion counts on test."""
        return clinical.confusion(self.called, self.truth)

    @functools.cached_property
    def rates(self) -> dict[str, float | None]:
        """Rates on test, as fractions."""
        return clinical.rates(self.counts)

    @functools.cached_property
    def risks(self) -> dict[str, dict[str, float | None]]:
        """`clinical.risks` and the risk at the cost-optimal threshold, by scenario ("20:1")."""
        p_val, p_test = (
            clinical.p_malignant(each.logits, self.malignant) for each in (self.val, self.test)
        )
        truth_val = np.isin(self.val.labels, self.malignant)
        risks = {}
        for c_fn, c_fp in self.scenarios:
            row = clinical.risks(self.called, self.truth, c_fn, c_fp)
            t = clinical.cost_optimal_threshold(p_val, truth_val, c_fn, c_fp)
            row["threshold"] = t
            row["risk_at_threshold"] = (
                None
                if t is None
                else float(clinical.costs(p_test >= t, self.truth, c_fn, c_fp).mean())
            )
            risks[clinical.scenario_name(c_fn, c_fp)] = row
        return risks


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of `METRICS`, whose key names the value in `metrics.json`.

    Attributes:
      fn: the value of a case: a number, a dict of numbers by scenario, or None where undefined. A
        row without one describes a value that is not a function of predictions alone.
      header: of its column in the tables; a row without one has no column. A value by scenario has
        a column per scenario.
      unit: of the value as shown.
      digits: decimals shown.
      scale: what the value is multiplied by to be shown in its unit.
      better: which value is best. "closest to retrained" also gives the value a gap.
      wilson_over: of a proportion, the examples that it is a share of (a key of `n`, or "malignant"
        or "benign" of test): one seed then has a Wilson interval.
      always: whether it has a column even where no model has a value.
      instead: whether it has a column only where there is no retrained model, which says more.
      group: columns of a group stay together, where a narrow terminal breaks the table. Rows of the
        group "clinical" are computed where some class is malignant.
      note: explains the column; if empty, "HEADER in UNIT". It may hold {attack} and {first} (a
        grid's first value). A row with a note but no header is explained in a note of its own,
        with {low} and {high}, its range over the models.
      trivial: the values of the answers "always benign" and "always malignant", or the keys of
        these values.
    """

    fn: Callable[[Case], Any] | None = None
    header: str = ""
    unit: str = "%"
    digits: int = 2
    scale: float = 1.0
    better: Literal["closest to retrained", "lower", "higher"] | None = None
    wilson_over: str | None = None
    always: bool = True
    instead: bool = False
    group: str = "unlearning"
    note: str = ""
    trivial: tuple[float, float] | tuple[str, str] | None = None


def _mia_spread(case: Case) -> float | None:
    """`privacy.mia_spread`, which is known of the threshold attack only."""
    if case.attack != "threshold":
        return None
    return privacy.mia_spread(case.forget, case.retain, case.test, case.seed, case.members)


def _sizes(case: Case) -> dict[str, int]:
    """The number of examples in each set that the model is judged on."""
    sets = {name: getattr(case, name) for name in ("forget", "retain", "val", "test")}
    if case.test_forgotten is not None:
        sets["test_forgotten"] = case.test_forgotten
    return {name: len(predictions.labels) for name, predictions in sets.items()}


def _groups(case: Case) -> dict[str, int] | None:
    """The number of patients or lesions of each set, and of malignant test examples, if known."""
    sets = {name: getattr(case, name).groups for name in ("forget", "retain", "test")}
    if sets["test"] is not None:
        sets["malignant"] = sets["test"][case.truth]
    known = {name: len(np.unique(ids)) for name, ids in sets.items() if ids is not None}
    return known or None


def _ta_forgotten(case: Case) -> float | None:
    """Accuracy on test examples of the forgotten classes; None where there are none."""
    if case.test_forgotten is None or len(case.test_forgotten.labels) == 0:
        return None
    return unlearning.accuracy(case.test_forgotten)


def _over_unseen(value: Callable[[Predictions], np.ndarray], header: str, **row: Any) -> Metric:
    """The row of a value on forget against unseen examples of the same classes."""
    return Metric(
        lambda case: unlearning.over_unseen(case.forget, case.unseen, value),
        header,
        always=False,
        instead=True,
        group="unseen",
        note="Δ: mean on forget minus mean on unseen images of the same classes (val and test, "
        "without groups of train where these are known), of accuracy and the true class's "
        "probability in percentage points and of entropy in nats, about 0, but for chance, in a "
        "model that never saw forget, where that is drawn as they are",
        **row,
    )


def _rate(name: str, over: str | None = None, **row: Any) -> Metric:
    """The row of one of `clinical.rates`: stored as a fraction, shown in %."""
    return Metric(
        lambda case: case.rates[name], scale=100, wilson_over=over, group="clinical", **row
    )


def _risk(name: str, unit: str = "cost per test image", **row: Any) -> Metric:
    """The row of one of the values in `Case.risks`."""
    return Metric(
        lambda case: {scenario: risks[name] for scenario, risks in case.risks.items()},
        unit=unit,
        digits=3,
        group="clinical",
        **row,
    )


METRICS: dict[str, Metric] = {
    "UA": Metric(
        # UA = 1 − acc(forget)
        lambda case: unlearning.error(case.forget),
        "UA",
        better="closest to retrained",
        wilson_over="forget",
    ),
    "RA": Metric(
        lambda case: unlearning.accuracy(case.retain),
        "RA",
        better="closest to retrained",
        wilson_over="retain",
    ),
    "TA": Metric(
        lambda case: unlearning.accuracy(case.test),
        "TA",
        better="closest to retrained",
        wilson_over="test",
    ),
    "TA_forgotten": Metric(
        _ta_forgotten,
        "TA forgotten",
        better="closest to retrained",
        wilson_over="test_forgotten",
        always=False,
    ),
    "MIA": Metric(
        lambda case: privacy.mia(case.forget, case.retain, case.test, case.attack, case.members),
        "MIA",
        better="closest to retrained",
        note="MIA in % ({attack} attack)",
    ),
    "MIA_spread": Metric(
        _mia_spread,
        unit="percentage points",
        digits=1,
        note="MIA depends on which examples the attack learns from: over resamples of these its "
        "standard deviation is {low} to {high} percentage points (MIA_spread in metrics.json).",
    ),
    # of a sequence's steps, by `experiment`
    "UA_new": Metric(
        header="UA new",
        better="closest to retrained",
        note="UA new: UA of the images of the last request alone, in %",
    ),
    "n": Metric(_sizes, unit="examples"),
    "groups": Metric(_groups, unit="groups"),
    "accuracy_over_unseen": _over_unseen(
        unlearning.is_correct, "Δ accuracy", unit="percentage points", scale=100
    ),
    "confidence_over_unseen": _over_unseen(
        confidence, "Δ confidence", unit="percentage points", scale=100
    ),
    "entropy_over_unseen": _over_unseen(entropy, "Δ entropy", unit="nats", digits=3),
    # compared with retrained by `results.assemble`
    "avg_gap": Metric(
        header="Avg Gap",
        unit="percentage points",
        better="lower",
        note="in parentheses, the absolute difference from retrained; Avg Gap is their mean over "
        + ", ".join(unlearning.AVG_GAP),
    ),
    # of a grid's cells, by `results.merge`
    "avg_gap_change": Metric(
        header="Change %",
        digits=1,
        better="lower",
        always=False,
        note="Change %: change of Avg Gap from {first}, in % of its mean there; below 0 is closer "
        "to retrained",
    ),
    "counts": Metric(lambda case: case.counts, unit="examples", group="clinical"),
    "sensitivity": _rate("sensitivity", "malignant"),
    "specificity": _rate("specificity", "benign"),
    "fnr": _rate("fnr", "malignant", header="FNR", better="lower", trivial=(1.0, 0.0)),
    "fpr": _rate("fpr", "benign", header="FPR", better="lower", trivial=(0.0, 1.0)),
    "ppv": _rate("ppv"),
    "npv": _rate("npv"),
    "balanced_accuracy": _rate("balanced_accuracy"),
    "auroc": Metric(
        lambda case: clinical.auroc(
            clinical.p_malignant(case.test.logits, case.malignant), case.truth
        ),
        unit="fraction",
        group="clinical",
    ),
    "risk": _risk(
        "risk",
        header="Risk",
        better="lower",
        note="Risk: cost per test image at costs C_FN:C_FP",
        trivial=("risk_treat_none", "risk_treat_all"),
    ),
    "risk_malignant": _risk("risk_malignant", "cost per malignant test image"),
    "risk_benign": _risk("risk_benign", "cost per benign test image"),
    "risk_gap": _risk("risk_gap", "difference of the two"),
    "risk_treat_none": _risk("risk_treat_none"),
    "risk_treat_all": _risk("risk_treat_all"),
    "risk_ratio": _risk("risk_ratio", "times the smaller of the two"),
    "threshold": _risk("threshold", "probability"),
    "risk_at_threshold": _risk("risk_at_threshold"),
    # of a sequence's steps, by `metrics.drift`
    "TA_lost": Metric(
        header="TA lost",
        unit="percentage points",
        better="lower",
        group="drift",
        note="TA lost: percentage points of test images that the original answered rightly and the "
        "model does not, less those the other way round",
    ),
    "fnr_rise": Metric(
        header="FNR rise",
        unit="percentage points",
        better="lower",
        group="drift",
        note="FNR rise: percentage points of malignant test images that the model misses and the "
        "original did not, less those the other way round",
    ),
    "risk_rise": Metric(
        header="Risk rise",
        digits=1,
        better="lower",
        group="drift",
        note="Risk rise: in % of the original's risk",
    ),
    "moved": Metric(
        header="Moved",
        digits=1,
        better="lower",
        group="drift",
        note="Moved: distance of the parameters from the original's, in % of their norm",
    ),
    # measured while training
    "RTE": Metric(
        header="RTE",
        unit="seconds",
        digits=1,
        better="lower",
        group="cost",
        note="RTE in seconds, excluding compilation",
    ),
    "compile_seconds": Metric(unit="seconds", digits=1, group="cost"),
}


def closest() -> list[str]:
    """The metrics that are best closest to retrained's, which therefore have a gap."""
    return [key for key, metric in METRICS.items() if metric.better == "closest to retrained"]


def evaluate(
    predictions: dict[str, Predictions],
    *,
    malignant: tuple[int, ...],
    scenarios: tuple[tuple[float, float], ...],
    attack: str,
    members: str,
    malignant_rule: str,
    seed: int,
) -> dict[str, Any]:
    """A model's values that need no other model. Undefined values are None (JSON has no NaN).

    Args:
      predictions: by set: forget, retain, val, test.
      malignant: labels of the malignant classes; if empty, the clinical values are left out.
      scenarios: pairs of costs (C_FN, C_FP).
      attack: a name in `privacy.ATTACKS`.
      members: a name in `privacy.MEMBERS`.
      malignant_rule: a name in `clinical.MALIGNANT_RULES`.
      seed: draws the resamples that `MIA_spread` is computed over.

    Returns:
      The value of each row of `METRICS` that has a function. UA, RA, TA and MIA in percent, `n`
      (sizes of the sets) and, on test, confusion counts, rates as fractions and risks in cost per
      example by scenario. Where forget holds classes that retain lacks, the values on val and test
      leave these out, and `TA_forgotten` is of them.

    Raises:
      UserError: predictions of wrong shape or not finite, an unknown name, or no test example but
        of forgotten classes.
    """
    forget, retain, val, test = (
        check(name, predictions[name]) for name in ("forget", "retain", "val", "test")
    )
    fresh = unseen((val, test), (forget, retain))
    classes = unlearning.forgotten_classes(forget.labels, retain.labels)
    val, _ = apart(val, classes)
    test, test_forgotten = apart(test, classes)
    if len(test.labels) == 0:
        raise UserError(
            f"predictions on test: all {len(test_forgotten.labels)} are of forgotten classes; "
            "give some of other classes"
        )
    case = Case(
        forget=forget,
        retain=retain,
        val=val,
        test=test,
        test_forgotten=test_forgotten if classes else None,
        unseen=fresh,
        malignant=malignant,
        scenarios=scenarios,
        attack=attack,
        members=members,
        malignant_rule=malignant_rule,
        seed=seed,
    )
    return {
        key: metric.fn(case)
        for key, metric in METRICS.items()
        if metric.fn and (malignant or metric.group != "clinical")
    }
