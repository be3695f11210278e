"""The inputs of a method, and what it may compute from them."""

import dataclasses
import functools
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.dataset import Examples
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_key
from jaxunlearn.training.passes import Variables
from jaxunlearn.training.step import Bench, fresh, num_logits
from jaxunlearn.training.sweep import Swept, logits, predict, sweep


@dataclasses.dataclass(frozen=True)
class Task:
    """The inputs of a method.

    Attributes:
      forget: training examples to forget, int `[n_f]`.
      retain: the others, without those that earlier requests took, int `[n_r]`.
      labels: true training labels int32 `[N]`.
      num_classes: how many there are.
      malignant: the labels that count as malignant.
      val: the validation set.
      seed: the run's seed.
      original: the original's variables.
      bench: what the verbs below compute with; methods leave it alone.
    """

    forget: np.ndarray
    retain: np.ndarray
    labels: np.ndarray
    num_classes: int
    malignant: tuple[int, ...]
    val: Examples
    seed: int
    original: Variables
    bench: Bench

    @property
    def forgotten(self) -> np.ndarray:
        """Which training examples are of the forget set, bool `[N]`."""
        return np.isin(np.arange(len(self.labels)), self.forget)

    @property
    def num_logits(self) -> int:
        """How many logits the model gives: those of an original from elsewhere may be more."""
        image = jax.ShapeDtypeStruct((1, *self.bench.images.shape[1:]), jnp.float32)
        return num_logits(self.bench.setup.model, self.original, image)

    @functools.cached_property
    def stream(self) -> int:
        """Tells originals apart, 0 to 2³² − 1: under one seed, each meets noise of its own.

        One that is itself the result of a request holds that request's noise, and the same noise
        again would double it, or cancel.
        """
        leaves = jax.tree.leaves(jax.device_get(self.original["params"]))
        return functools.reduce(lambda crc, leaf: zlib.crc32(leaf.tobytes(), crc), leaves, 0)

    def noise_rng(self, stage: str, draw: int = 0) -> np.random.Generator:
        """What draws noise for parameters, see `stream`."""
        return np.random.default_rng([zlib.crc32(stage.encode()), self.seed, draw, self.stream])

    def fresh(self) -> Variables:
        """Freshly initialised variables, those that an original of this seed started from.

        Raises:
          UserError: the model has none, as a module that has its parameters.
        """
        made = fresh(self.bench, self.seed)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made["params"])):
            raise UserError(
                "this method starts from new parameters, and the model gives none that are finite; "
                "of a module that has its parameters give the class, or a function that takes rngs "
                "and returns it, and the module as variables; or choose another method"
            )
        return made

    def sweep(
        self,
        function: Swept,
        indices: np.ndarray,
        *,
        variables: Variables | None = None,
        reduce: Literal["sum", "stack"] = "sum",
        context: Any = (),
        augmented: str = "",
    ) -> Any:
        """A function of every batch of some training examples, in evaluation mode.

        Args:
          function: see `jaxunlearn.training.sweep.Swept`.
          indices: the examples, int `[M]`, in this order.
          variables: those of the original where None.
          reduce: "sum" over the batches, or "stack" the rows of all examples, `[M, ...]`.
          context: a pytree of arrays that the function needs whole.
          augmented: names the random stream that augments the images; empty: they stay as they are.
        """
        return sweep(
            function,
            self.original if variables is None else variables,
            self.bench,
            indices,
            self.labels,
            reduce=reduce,
            context=context,
            key=stage_key(augmented, self.seed, 0) if augmented else None,
        )

    def logits(self, indices: np.ndarray, variables: Variables | None = None) -> np.ndarray:
        """Logits float32 `[M, num_classes]` of training examples, by default the original's."""
        return self.sweep(logits, indices, variables=variables, reduce="stack")

    def val_logits(self, variables: Variables | None = None) -> np.ndarray:
        """Logits float32 `[N_val, num_classes]` of the validation set."""
        variables = self.original if variables is None else variables
        size = self.bench.setup.batch_size
        return predict(variables, self.val.images, self.bench, size)

    def val_accuracy(self, variables: Variables | None = None) -> float:
        """Accuracy on the validation set, as a fraction."""
        return float(np.mean(self.val_logits(variables).argmax(1) == self.val.labels))
