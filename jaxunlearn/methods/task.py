"""What every method is given."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.data.dataset import Examples
from jaxunlearn.data.forget import Split
from jaxunlearn.training import Programs, Setup, Variables, predict


class Shared:
    """What methods on the same original and split compute only once between them.

    Attributes:
      seconds_saved: what the computing would have cost those that found it done; it belongs in
        their RTE.
    """

    def __init__(self) -> None:
        self.seconds_saved = 0.0
        self._values: dict[str, tuple[Any, float]] = {}

    def get(self, what: str, compute: Callable[[], Any], programs: Programs) -> Any:
        """Returns `compute()`, from the second time on without computing it."""
        if what in self._values:
            value, seconds = self._values[what]
            self.seconds_saved += seconds
            return value
        start, compiled = time.perf_counter(), programs.seconds
        value = compute()
        seconds = time.perf_counter() - start - (programs.seconds - compiled)
        self._values[what] = (value, seconds)
        return value


class Task(NamedTuple):
    """What a method is given.

    Attributes:
      original: the original's variables.
      split: the forget and retain sets, as indices into train.
      images: training images uint8 `[N, H, W, C]`, on the devices.
      labels: true training labels int32 `[N]`.
      val: the validation set.
      malignant: the labels that count as malignant.
      seed: the run's seed.
      setup: model, number of classes, batch size and the rest that every step shares.
      programs: compiled programs, for methods that compute more than passes.
      shared: what methods on the same original and split have in common.
    """

    original: Variables
    split: Split
    images: jax.Array
    labels: np.ndarray
    val: Examples
    malignant: tuple[int, ...]
    seed: int
    setup: Setup
    programs: Programs
    shared: Shared

    def val_accuracy(self, variables: Variables) -> float:
        """Accuracy on the validation set, as a fraction."""
        logits = predict(
            variables, self.val.images, self.setup, self.programs, self.setup.batch_size
        )
        return float(np.mean(logits.argmax(1) == self.val.labels))
