"""A model as a plan and the store know it: its functions, and what tells it from others."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import closure
from jaxunlearn.models.build import MODELS, at_hand, build, build_as_set
from jaxunlearn.models.dry_run import dry_run
from jaxunlearn.models.model import Model
from jaxunlearn.models.sources import described, sources


class Architecture(NamedTuple):
    """A model and what tells it from others.

    Attributes:
      name: as errors call it.
      model: the functions, as they compute on this machine.
      as_set: the same as the config sets it, in bfloat16 say where the machine has no use for it.
      fields: what counts in the store's key besides the sources.
      sources: the modules that make it, see `jaxunlearn.closure`.
    """

    name: str
    model: Model
    as_set: Model
    fields: dict[str, Any]
    sources: tuple[str, ...]

    @property
    def shipped(self) -> bool:
        """Whether it is one of this library's."""
        return self.name in MODELS

    def check(
        self, shape: tuple[int, ...], num_classes: int, wider: bool = False
    ) -> "Architecture":
        """Raises unless it takes images of the shape (H, W, C), and its sources can be told.

        Where `wider`, it may have more logits than there are classes.

        Returns:
          It, with what it computes where it is the user's own: its sources may read files.
        """
        closure.check(self.sources)
        dry_run(self.name, self.as_set, shape, num_classes, wider, self.shipped)
        if self.shipped or "computes" in self.fields:
            return self
        return self._replace(fields={**self.fields, "computes": _traced(self.model, shape)})


def named(settings: Mapping[str, Any], num_classes: int, bfloat16: bool) -> Architecture:
    """The model of `config.model`; where not `bfloat16`, computed in float32.

    Raises:
      UserError: it cannot be built, or an option is changed that it does not take.
    """
    name, fields = settings["name"], dict(settings)
    if not bfloat16:
        fields["dtype"] = "float32"  # a model that is computed so is no bfloat16 one
    return Architecture(
        name,
        build(num_classes=num_classes, **fields),
        build_as_set(settings, num_classes),
        {**fields, "is": described(name)},
        sources(name),
    )


def given(
    value: Any, shape: tuple[int, ...], num_classes: int, wider: bool = False
) -> Architecture:
    """A model that is at hand, for images of the shape (H, W, C); known by what it computes.

    Raises:
      UserError: it is no model (see `at_hand`), or does not take such images.
    """
    model = at_hand(value, num_classes)
    anew = _anew(model)
    dry_run("given", anew, shape, num_classes, wider)
    digest = _traced(anew, shape)
    known = _known(model, digest)
    return Architecture("given", known, known, {"computes": digest}, ())


def _anew(model: Model) -> Model:
    """The same functions as others, which JAX traces anew: they may read what has changed since."""
    features = model.features
    return Model(
        lambda *args: model.init(*args),
        lambda *args: model.apply(*args),
        None if features is None else lambda *args: features(*args),
    )


@functools.lru_cache(64)
def _known(model: Model, digest: str) -> Model:
    """One model for all calls that compute the same, so that its programs are compiled once."""
    del digest
    return _anew(model)


@functools.lru_cache(16)  # the cells of a grid share it
def _traced(model: Model, shape: tuple[int, ...]) -> str:
    """SHA-256 of the programs that the model's functions and gradients are, with constants."""
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key, images)

    def gradient(variables: Any, images: Any, key: Any) -> Any:
        def train(params: Any, images: Any) -> Any:
            return model.apply({**variables, "params": params}, images, True, key)

        logits, pull, state = jax.vjp(train, variables["params"], images, has_aux=True)
        return pull(logits), state

    programs: list[tuple[Any, ...]] = [
        (model.init, key, images),
        (lambda *args: model.apply(*args, False, None), variables, images),
        (gradient, variables, images, key),
    ]
    if model.features is not None:
        programs.append((model.features, variables, images))
    digest = hashlib.sha256()
    for function, *args in programs:
        # Lowered, since a jaxpr does not show what functions that it calls hold.
        traced = jax.jit(function).trace(*args)
        try:
            lowered = traced.lower(lowering_platforms=("cpu",))  # the same text on all machines
        except Exception:  # a kernel for another kind alone
            lowered = traced.lower()
        digest.update(lowered.as_text().encode())
    return digest.hexdigest()
