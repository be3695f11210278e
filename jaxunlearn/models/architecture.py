"""A model as a plan and the store know it: its functions, and what tells it from others."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import closure
from jaxunlearn.models.build import build, build_as_set
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

    def check(self, shape: tuple[int, ...], num_classes: int, wider: bool = False) -> None:
        """Raises unless it takes images of the shape (H, W, C), and its sources can be told.

        Where `wider`, it may have more logits than there are classes.
        """
        closure.check(self.sources)
        dry_run(self.name, self.as_set, shape, num_classes, wider)


def named(settings: Mapping[str, Any], num_classes: int, bfloat16: bool) -> Architecture:
    """The model of `config.model`; where not `bfloat16`, computed in float32.

    Raises:
      UserError: it cannot be built, or an option is changed that it does not take.
    """
    name, fields = settings["name"], dict(settings)
    dtype = settings["dtype"] if bfloat16 else "float32"
    return Architecture(
        name,
        build(num_classes=num_classes, **{**fields, "dtype": dtype}),
        build_as_set(settings, num_classes),
        {**fields, "is": described(name)},
        sources(name),
    )


def given(
    model: Model, shape: tuple[int, ...], num_classes: int, wider: bool = False
) -> Architecture:
    """A model that is at hand, for images of the shape (H, W, C); known by what it computes.

    Raises:
      UserError: it does not take such images.
    """
    dry_run("given", model, shape, num_classes, wider)
    return Architecture("given", model, model, {"computes": _traced(model, shape)}, ())


def _traced(model: Model, shape: tuple[int, ...]) -> str:
    """SHA-256 of the programs that the model's functions are, with their constants."""
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key, images)

    def answer(train: bool) -> Any:
        return lambda *args: model.apply(*args[:2], train, args[2] if train else None)

    programs = [jax.make_jaxpr(model.init)(key, images)]
    programs += [jax.make_jaxpr(answer(train))(variables, images, key) for train in (False, True)]
    digest = hashlib.sha256()
    for made in programs:
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", str(made)).encode())
        for constant in made.consts:
            digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()
