"""The proxy gap: how close a model is to what retraining would give, told without a retrained one.

What stands in for retrained's values needs none: a model that never saw the forget set answers it
as the original answers unseen examples of the same classes, answers all else as the original does,
and gives an attack no more on the forget set than on such examples. The form is Avg Gap's (Fan et
al. 2024, https://arxiv.org/abs/2310.12508), on validation in place of test:

    UA*   the original's error on validation examples of forget's classes, in forget's mix of them
    RA*   the original's accuracy on retain
    VA*   the original's accuracy on validation
    MIA*  the share of the same validation examples that the attack on this model calls non-members

A class that is forgotten whole counts as 100% in UA* and MIA*, as a model that never saw it never
answers it, and its validation examples are left out of all else. So are validation examples of
groups (patients) that train has: they are not unseen. The attack learns non-members from the
validation examples that MIA* is of, which raises MIA* a little where they are few. MIA and MIA* are
of one model and one attack, so their difference is small too where that attack tells nothing apart.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.metrics import clinical, privacy, unlearning
from jaxunlearn.metrics.predictions import Predictions, apart, confidence, unseen
from jaxunlearn.metrics.verdicts import SIGNIFICANT

SETS = ("forget", "retain", "val")


def proxy_gaps(
    model: Mapping[str, Predictions], original: Mapping[str, Predictions], attack: str, members: str
) -> dict[str, float]:
    """|value − stand-in| of UA, RA, TA and MIA, in percentage points; the proxy gap is their mean.

    Args:
      model: predictions by set: forget, retain and val, the only ones that are read.
      original: the original's.
      attack: a name in `privacy.ATTACKS`.
      members: a name in `privacy.MEMBERS`.

    Raises:
      UserError: see `check`.
    """
    check(original)
    forget, retain = model["forget"], model["retain"]
    val, before = _judged_on(model), _judged_on(original)
    targets = np.concatenate([confidence(forget), confidence(val)])
    outside = ~privacy.called_members(targets, retain, val, attack, members)
    values = {
        "UA": unlearning.error(forget),
        "RA": unlearning.accuracy(retain),
        "VA": unlearning.accuracy(val),
        "MIA": 100 * float(np.mean(outside[: len(forget.labels)])),
    }
    stand_in = {
        "UA": in_mix_of(forget.labels, ~unlearning.is_correct(before), before.labels),
        "RA": unlearning.accuracy(original["retain"]),
        "VA": unlearning.accuracy(before),
        "MIA": in_mix_of(forget.labels, outside[len(forget.labels) :], val.labels),
    }
    return unlearning.gaps(values, stand_in, values)


def misses_more(
    model: Mapping[str, Predictions],
    original: Mapping[str, Predictions],
    malignant: tuple[int, ...],
    rule: str,
) -> bool:
    """Whether it misses more malignant validation examples than the original (McNemar, 5%).

    The proxy gap cannot tell: an error is an error to it, whichever way.

    Args:
      model: predictions by set, of which validation is judged.
      original: the original's.
      malignant: labels of the malignant classes; none: nothing can be missed.
      rule: see `clinical.called_malignant`.
    """
    if not malignant:
        return False
    found = clinical.compare_false_negatives(
        _judged_on(model), _judged_on(original), malignant, rule
    )
    more = found["newly_missed"] > found["newly_found"]
    return more and found["p_value"] < SIGNIFICANT


def in_mix_of(forget: np.ndarray, is_so: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples of which something is so, in percent, in forget's mix of classes.

    Args:
      forget: labels of the forget set, int `[n_f]`.
      is_so: bool `[N]`.
      labels: int `[N]`; a class of forget that has no example here counts as 100%.
    """
    classes, counts = np.unique(forget, return_counts=True)
    # Σ_c n_c share_c / Σ_c n_c
    shares = [is_so[labels == c].mean() if (labels == c).any() else 1.0 for c in classes]
    return 100 * float(np.average(shares, weights=counts))


def check(predictions: Mapping[str, Predictions], class_names: Sequence[str] = ()) -> None:
    """Raises where validation cannot stand in for what retraining would give.

    Args:
      predictions: by set, of which the labels and groups are read.
      class_names: for the message.

    Raises:
      UserError: no validation example is left, or none of a class of which forget has examples and
        retain has others.
    """
    forget, retain, val = (predictions[name].labels for name in SETS)
    whole = unlearning.forgotten_classes(forget, retain)
    there = _judged_on(predictions).labels
    missing = np.setdiff1d(forget, [*there, *whole])
    if len(missing):
        name = class_names[missing[0]] if class_names else f"class {missing[0]}"
        what = f"none of {name}, of which some are to be forgotten"
    elif not len(there):
        what = "none of the classes that stay"
    else:
        return
    raise UserError(
        f"tuning compares forget with unseen validation examples, and of the {len(val)} there are "
        f"{what}; give others, or set config.tune.trials=0"
    )


def _judged_on(predictions: Mapping[str, Predictions]) -> Predictions:
    """Predictions on unseen validation examples of the classes that stay."""
    forget, retain, val = (predictions[name] for name in SETS)
    whole = unlearning.forgotten_classes(forget.labels, retain.labels)
    return apart(unseen((val,), (forget, retain)), whole)[0]
