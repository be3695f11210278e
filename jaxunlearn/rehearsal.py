"""What a run would forget and train, and how long that would take; nothing is trained or written.

python -m jaxunlearn.main --config=configs/quickstart.py --dry_run
"""

import functools
import itertools
import math
import operator
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxunlearn import compiled, devices, estimate, processes, tune
from jaxunlearn.data.forget import reads
from jaxunlearn.errors import shown
from jaxunlearn.plan import Experiment
from jaxunlearn.prepared import Prepared
from jaxunlearn.trained import Recipe
from jaxunlearn.training.programs import Programs


def rehearse(config: ConfigDict, folder: str | Path, console: Console | None = None) -> None:
    """Prints the request and the models of a config's experiment, with estimates of their time.

    An estimate is the arithmetic of a model's making, over that which a gradient of the original
    does in a second here, which is tried. Augmentation, compiling and metrics are left out. What
    memory a step takes is the compiler's word for that gradient.

    Args:
      config: see `jaxunlearn.config.default`.
      folder: where a run would put its results, beside whose store it would look for models.
      console: where to print; the standard output if None.

    Raises:
      UserError: as `jaxunlearn.experiment.run`.
    """
    ready = Prepared(config, folder, console)
    processes.from_first(ready.check)
    seen: set[str] = set()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("seed", "model", "images through it", "takes about"):
        table.add_column(column, justify="left" if column == "model" else "right")
    total = 0.0
    for one in ready.experiments:
        if one.cell.point:
            ready.say(f"\n{one.cell.label}")
            table.add_section()
        for line in _request(one):
            ready.say(line)
        recipes = one.recipes(ready.config.seeds[0])
        with compiled.kept():
            speed, memory = _tried(recipes["original"], ready.programs)
        ready.say(memory)
        costs = functools.cache(
            lambda name, recipes=recipes: estimate.cost_or(recipes[name], recipes["original"])
        )
        for seed in ready.config.seeds:
            for name, recipe in one.recipes(seed).items():
                above, there = recipe.key in seen, (ready.where / recipe.key).is_dir()
                takes = "in the store" if there else "as above" if above else ""
                seen.add(recipe.key)
                if one.request and takes and name == "original":
                    continue  # it is of the first request
                images = "" if takes else f"{costs(name).images:,}"
                seconds = 0.0 if takes else costs(name).flops / speed
                total += seconds
                takes = takes or estimate.duration(seconds)
                row = f"{one.request} · {name}" if one.request else name
                table.add_row(str(seed), Text(row), images, takes)
        for name, made in itertools.groupby(tune.planned(one), key=operator.itemgetter(0)):
            trials = [
                (count, estimate.cost_or(recipe, recipes["original"])) for _, recipe, count in made
            ]
            seconds = sum(count * cost.flops for count, cost in trials) / speed
            total += seconds
            table.add_row(
                str(ready.config.seeds[0]),
                Text(f"{name}, up to {sum(count for count, _ in trials)} trials"),
                f"{sum(count * cost.images for count, cost in trials):,}",
                estimate.duration(seconds),
            )
    ready.console.print(table)
    device = devices.describe(ready.programs.mesh)["device"]
    ready.say(
        f"In all about {estimate.duration(total)} on {device}, as busy as it is just now"
        f"{', without the looks of config.watch' * bool(ready.config.watch.every)}. "
        "Nothing was trained or written."
    )


def _request(one: Experiment) -> list[str]:
    """What is to be forgotten, in lines."""
    labels, names = one.dataset.train.labels, one.dataset.class_names
    forget, there = one.asked.forget, np.concatenate([one.asked.forget, one.asked.retain])
    of_class = [
        f"{np.sum(labels[forget] == label)} of {np.sum(labels[there] == label)} {name}"
        for label, name in enumerate(names)
    ]
    counts = f"{len(forget)} of {len(there)} training images to forget"
    return [
        _asked(one.cell.config.forget),
        f"{one.dataset.name}: {counts}: {', '.join(of_class)}.",
        *(f"Note: {note}" for note in one.notes),
    ]


def _asked(request: ConfigDict) -> str:
    """The request as the config has it, in a line; what reads a seed is random."""
    settings = reads(request)
    given = ", ".join(f"{field}={shown(request[field])}" for field in settings)
    random = ", random" if "seed" in settings else ""
    return f"Request: forget.kind={request.kind!r}{random}: {given}."


def _tried(recipe: Recipe, programs: Programs) -> tuple[float, str]:
    """Of a gradient of the model, on a batch of its recipe: operations a second, and its memory."""
    model, mesh = recipe.setup.model, programs.mesh
    batch = devices.divisible(recipe.setup.batch_size, mesh)  # of a brought model, any
    shape = (batch, *recipe.dataset.train.images.shape[1:])
    images = devices.shard_batches(np.zeros(shape, np.float32), mesh, axis=0)
    sample = jax.ShapeDtypeStruct((1, *shape[1:]), np.float32)
    variables: Any = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), sample),
    )

    def loss(params, rest, images, key):
        logits, _ = model.apply({"params": params, **rest}, images, True, key)
        return jax.numpy.mean(jax.nn.logsumexp(logits, axis=-1))

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    args = (*devices.replicate((variables["params"], rest), mesh), images)
    args = (*args, devices.replicate(jax.random.key(0), mesh))
    gradient = programs(jax.grad(loss), *args)
    jax.block_until_ready(gradient(*args))
    start = time.perf_counter()
    jax.block_until_ready(gradient(*args))
    once = time.perf_counter() - start
    # As many in every process: each waits for the others.
    runs = processes.from_first(lambda: min(1000, max(2, math.ceil(0.5 / once))))
    start = time.perf_counter()
    for _ in range(runs):
        jax.block_until_ready(gradient(*args))
    speed = runs * estimate.flops(jax.grad(loss), *args) / (time.perf_counter() - start)
    return speed, _memory(recipe, gradient, variables, programs)


def _memory(recipe: Recipe, gradient: Any, variables: Any, programs: Programs) -> str:
    """What of a device's memory a step takes, and how large a batch has room, in words."""
    sizes, there = gradient.memory_analysis(), devices.memory(programs.mesh)
    if sizes is None or not math.isfinite(there):  # not every platform tells
        return "What memory a step takes is not known here."
    train, batch = recipe.dataset.train.images, recipe.setup.batch_size
    # On each device lie all images, and of every parameter its value, the new one, its gradient and
    # the optimizer's moments, of which Adam has two; what is temporary grows with the batch.
    fixed = train.nbytes + 5 * sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    of_batch = max(1, sizes.temp_size_in_bytes)
    larger = larger_batch(batch, of_batch, there - fixed, len(train))
    room = f"there is room for {larger}" if larger > batch else "there is no room for twice as many"
    if larger >= len(train):
        room = "there is room for all images at once"
    return (
        f"A step of {batch} images takes about {(fixed + of_batch) / 2**30:.1f} of the "
        f"{there / 2**30:.1f} GiB of each device, without what augmentation and the methods' own "
        f"teachers take; {room}."
    )


def larger_batch(batch: int, takes: float, there: float, most: int) -> int:
    """The batch doubled as often as it has room, until it holds all images.

    Args:
      batch: its size.
      takes: bytes that a step takes for it.
      there: bytes.
      most: the number of images.
    """
    while batch < most and 2 * takes <= there:
        batch, takes = 2 * batch, 2 * takes
    return batch
