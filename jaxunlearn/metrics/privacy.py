"""Membership inference: whether an attacker takes the forget set for data the model never saw.

Every attack sees one number an example, the confidence p_y, and learns from examples whose
membership is known.
"""

import numpy as np

from jaxunlearn.errors import unknown
from jaxunlearn.metrics.predictions import Predictions, confidence
from jaxunlearn.metrics.statistics import best_threshold


def svc(members: np.ndarray, nonmembers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The attack of the published code (Fan et al. 2024, https://arxiv.org/abs/2310.12508).

    Args:
      members: confidences of examples that the model was trained on, `[M]`.
      nonmembers: confidences of examples that it was not trained on, `[M]`.
      targets: confidences to judge, `[N]`.

    Returns:
      Which targets are called members, bool `[N]`.
    """
    from sklearn.svm import SVC

    features = np.concatenate([members, nonmembers])[:, None]
    is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
    classifier = SVC(C=3, kernel="rbf", gamma="auto").fit(features, is_member)
    return classifier.predict(targets[:, None]) == 1


def threshold(members: np.ndarray, nonmembers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold on confidence, and its direction, with the greatest accuracy on what is known.

    Of equal accuracies, "member when confidence is high" goes before "member when it is low", then
    the threshold that calls the most examples members: where nothing tells the two apart, all
    targets are called members, so that a tie never counts as forgotten.

    Near `svc` where confidences are spread. Where they crowd at 1 it parts examples that are the
    same to the wide kernel of `svc`, and the two may be far apart: compare values of one attack
    only. Arguments and result as of `svc`.
    """
    scores = np.concatenate([members, nonmembers])
    is_member = np.repeat([True, False], [len(members), len(nonmembers)])
    high, errors_high = best_threshold(scores, is_member, 1, 1)
    low, errors_low = best_threshold(-scores, is_member, 1, 1)
    return targets >= high if errors_high <= errors_low else -targets >= low


ATTACKS = {"svc": svc, "threshold": threshold}


def mia(
    forget: Predictions, retain: Predictions, test: Predictions, attack: str, seed: int
) -> float:
    """MIA: share of the forget set that the attack calls non-member, in percent; high = forgotten.

    The attack learns from as many random examples of retain as test has (members) and from test
    (non-members); where retain is the smaller, as many random examples of test as retain has. The
    seed draws them.

    Raises:
      UserError: `attack` is not in `ATTACKS`.
    """
    if attack not in ATTACKS:
        raise unknown("attack", attack, ATTACKS)
    rng = np.random.default_rng(seed)
    size = min(len(retain.labels), len(test.labels))
    members, nonmembers = (
        confidence(known)[np.sort(rng.choice(len(known.labels), size, replace=False))]
        for known in (retain, test)
    )
    called_members = ATTACKS[attack](members, nonmembers, confidence(forget))
    return 100 * float(np.mean(~called_members))
