"""Watching a method as it goes: looks at its variables between passes, and a stop by validation.

A look judges the present variables on some images of forget, retain and val, drawn once for a seed.
It changes nothing, and counts neither as the method's time nor as compiling. The settings are
`config.watch`; where there are looks, they are a part of the model's key in the store, so that a
model that is found there has its curve.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypedDict

import numpy as np

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.forget import Split
from jaxunlearn.keys import stage_rng
from jaxunlearn.metrics.predictions import Predictions, confidence
from jaxunlearn.metrics.unlearning import accuracy, error
from jaxunlearn.training.passes import (
    Action,
    Ask,
    Conversation,
    Pass,
    Restore,
    Save,
    Variables,
    Watch,
)

Predicted = Mapping[str, Predictions]  # by set: forget, retain, val, where it has any image

SAVED = "watched"  # names the variables of the last look that kept the rule


class Look(TypedDict):
    """What a look saw; None where a set has no image, or a model no finite logits on it.

    Attributes:
      passes: how many the method had made.
      UA, RA, VA: 1 − accuracy on forget, accuracy on retain and on val, in %.
      confidence: mean probability of the true class by set (forget, retain, val), as fractions.
    """

    passes: int
    UA: float | None
    RA: float | None
    VA: float | None
    confidence: dict[str, float | None]


class Curve(TypedDict):
    """The looks at a method.

    Attributes:
      looks: at what it starts from, after every `config.watch.every` passes, and at what it ends
        with, if that is not what was looked at last.
      result: the position in `looks` of the variables that are the result. It is not the last one
        where the method was stopped.
    """

    looks: list[Look]
    result: int


def draw(
    split: Split, dataset: Dataset, seed: int, images: int
) -> dict[str, tuple[str, np.ndarray]]:
    """Which images are looked at.

    Args:
      split: what is to be forgotten and what to retain.
      dataset: the data.
      seed: the run's.
      images: how many of each set at most.

    Returns:
      For forget, retain and val, where they have any image: the name of the examples that these are
      of, "train" or "val", and indices into them, int `[M]`. Those of val leave out classes of
      which retain has no example, on which a method is meant to fail.
    """
    kept = np.isin(dataset.val.labels, dataset.train.labels[split.retain])
    sets = {
        "forget": ("train", split.forget),
        "retain": ("train", split.retain),
        "val": ("val", np.flatnonzero(kept)),
    }
    drawn = {}
    for which, (source, rows) in sets.items():
        rng, count = stage_rng(f"watch {which}", seed), min(images, len(rows))
        if count:
            drawn[which] = source, np.sort(rng.choice(rows, count, replace=False))
    return drawn


def look(passes: int, predictions: Predicted) -> Look:
    """What predictions on forget, retain and val say."""

    def value(of: Callable[[Predictions], float], which: str) -> float | None:
        seen = predictions.get(which)
        return of(seen) if seen and np.isfinite(seen.logits).all() else None

    return {
        "passes": passes,
        "UA": value(error, "forget"),
        "RA": value(accuracy, "retain"),
        "VA": value(accuracy, "val"),
        "confidence": {
            which: value(lambda seen: float(confidence(seen).mean()), which)
            for which in ("forget", "retain", "val")
        },
    }


class Watched:
    """A method's actions with looks between them; `curve` is what they have seen so far.

    With `stop`, variables whose VA is more than `tolerance` points below that of the first look are
    not handed back: the method ends at the first such look, with the variables of the look before.
    Its claims are dropped then, stopped or not: what it proves is not proved of a choice.
    """

    def __init__(
        self,
        actions: Iterable[Action],
        settings: Mapping[str, Any],
        predictions: Callable[[Variables], Predicted],
    ):
        """The actions under the settings `config.watch`; `predictions` of the images looked at."""
        self._actions, self._settings, self._predictions = actions, settings, predictions
        self.curve: Curve = {"looks": [], "result": 0}

    def __iter__(self) -> Generator[Action, Any, dict[str, Any] | None]:
        inner = Conversation(self._actions)
        passes, seen = 0, True
        yield from self._look(0)
        for action in inner:
            inner.reply = yield action
            seen = seen and isinstance(action, Ask | Save)
            if not isinstance(action, Pass):
                continue
            passes += 1
            # Variables of another shape than the run's model has are not looked at.
            if passes % self._settings["every"] == 0 and action.model is None:
                seen = True
                if (yield from self._look(passes)):
                    return None
        if not seen:
            yield from self._look(passes)
        return None if self._settings["stop"] else inner.claims

    def _look(self, passes: int) -> Generator[Action, Any, bool]:
        """Looks, and returns whether that was the end."""
        looks = self.curve["looks"]
        looks.append((yield Watch(lambda variables: look(passes, self._predictions(variables)))))
        if not self._settings["stop"]:
            self.curve["result"] = len(looks) - 1
            return False
        first, last = looks[0]["VA"], looks[-1]["VA"]
        # A difference of shares of up to 10⁶ images, less what rounding does to it.
        if first is None or last is None or first - last > self._settings["tolerance"] + 1e-6:
            yield Restore(SAVED)
            return True
        self.curve["result"] = len(looks) - 1
        yield Save(SAVED)
        return False
