"""Membership inference: whether an attacker takes the forget set for data the model never saw.

Every attack sees one number per example, the confidence p_y, and learns from examples whose
membership is known.
"""

from collections.abc import Callable

import numpy as np

from jaxunlearn.errors import unknown
from jaxunlearn.keys import stage_rng
from jaxunlearn.metrics.predictions import Predictions, confidence
from jaxunlearn.metrics.statistics import best_threshold

Attack = Callable[..., np.ndarray]


def svc(
    members: np.ndarray,
    nonmembers: np.ndarray,
    targets: np.ndarray,
    *,
    balanced: bool = True,
) -> np.ndarray:
    """The attack of the published code (Fan et al. 2024, https://arxiv.org/abs/2310.12508).

    Args:
      members: confidences of examples that the model was trained on, `[M]`.
      nonmembers: confidences of examples that it was not trained on, `[K]`.
      targets: confidences to judge, `[N]`.
      balanced: give the larger side smaller weights, so that both sides count equally.

    Returns:
      Which targets are called members, bool `[N]`.
    """
    from sklearn.svm import SVC

    features = np.concatenate([members, nonmembers])[:, None]
    sizes = np.array([len(members), len(nonmembers)])
    is_member = np.repeat([1, 0], sizes)
    weights = np.repeat(sizes.min() / sizes if balanced else np.ones(2), sizes)
    classifier = SVC(C=3, kernel="rbf", gamma="auto").fit(features, is_member, weights)
    return classifier.predict(targets[:, None]) == 1


def threshold(
    members: np.ndarray,
    nonmembers: np.ndarray,
    targets: np.ndarray,
    *,
    balanced: bool = True,
) -> np.ndarray:
    """The threshold on confidence, and its direction, that best separate the known examples.

    Of equal accuracies, "member when confidence is high" goes before "member when it is low", then
    the threshold that calls the most examples members: where nothing separates the two, all targets
    are called members, so that a tie never counts as forgotten.

    Close to `svc` where confidences are spread. When confidences saturate near 1 it separates
    examples that the wide kernel of `svc` cannot, so the two attacks may disagree widely: compare
    values of one attack only. Arguments and result as of `svc`.
    """
    scores = np.concatenate([members, nonmembers])
    is_member = np.repeat([True, False], [len(members), len(nonmembers)])
    # Whole numbers, so that equal accuracies compare as equal.
    missed, false = (len(nonmembers), len(members)) if balanced else (1, 1)
    high, errors_high = best_threshold(scores, is_member, missed, false)
    low, errors_low = best_threshold(-scores, is_member, missed, false)
    return targets >= high if errors_high <= errors_low else -targets >= low


ATTACKS: dict[str, Attack] = {"svc": svc, "threshold": threshold}
MEMBERS = ("all", "first")


def mia(
    forget: Predictions, retain: Predictions, test: Predictions, attack: str, members: str = "all"
) -> float:
    """MIA: share of the forget set that the attack calls non-member, in percent; high = forgotten.

    The attack learns from retain (members) and test (non-members), and draws nothing at random.

    Args:
      forget: predictions on the forget set.
      retain: predictions on the retain set.
      test: predictions on test, without forgotten classes (see `metrics.evaluate`).
      attack: a name in `ATTACKS`.
      members: "all" of retain, weighted to count as much as test does; or, as published, the
        "first" of retain, as many as test has (all, where it has fewer), unweighted.

    Raises:
      UserError: `attack` or `members` is unknown.
    """
    called = called_members(confidence(forget), retain, test, attack, members)
    return 100 * float(np.mean(~called))


def called_members(
    targets: np.ndarray, retain: Predictions, others: Predictions, attack: str, members: str
) -> np.ndarray:
    """Which targets the attack calls members, bool `[N]`.

    Args:
      targets: confidences to judge, `[N]`.
      retain: predictions on the retain set, which it learns members from.
      others: on examples that the model was not trained on, which it learns non-members from.
      attack: a name in `ATTACKS`.
      members: as of `mia`, and so are the errors.
    """
    if attack not in ATTACKS:
        raise unknown("attack", attack, ATTACKS)
    known, balanced = _known(retain, others, members)
    return ATTACKS[attack](*known, targets, balanced=balanced)


def _known(
    retain: Predictions, others: Predictions, members: str
) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
    """The confidences that an attack learns from, members first, and whether it weighs them."""
    if members not in MEMBERS:
        raise unknown("members", members, MEMBERS)
    known, nonmembers = confidence(retain), confidence(others)
    if members == "first":
        number = min(len(known), len(nonmembers))
        known, nonmembers = known[:number], nonmembers[:number]
    return (known, nonmembers), members == "all"


def mia_spread(
    forget: Predictions,
    retain: Predictions,
    test: Predictions,
    seed: int,
    members: str = "all",
    repeats: int = 100,
) -> float:
    """Standard deviation of the threshold attack's MIA over resamples, in percentage points.

    Resamples what the attack learns from (bootstrap) and leaves the forget set as it is: it
    measures how much the threshold, and MIA with it, depends on which examples these happen to be.

    Args:
      forget: predictions on the forget set.
      retain: predictions on the retain set.
      test: predictions on test, without forgotten classes.
      seed: of the resamples.
      members: as of `mia`.
      repeats: number of resamples.

    Raises:
      UserError: `members` is unknown.
    """
    rng = stage_rng("mia spread", seed)
    (known, nonmembers), balanced = _known(retain, test, members)
    targets, values = confidence(forget), []
    for _ in range(repeats):
        drawn = rng.choice(known, len(known)), rng.choice(nonmembers, len(nonmembers))
        values.append(np.mean(~threshold(*drawn, targets, balanced=balanced)))
    return 100 * float(np.std(values, ddof=1))
