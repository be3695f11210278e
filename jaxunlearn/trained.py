"""A trained model by its recipe: from the store, or made now and put there."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax.errors import FlaxError
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import closure, devices, files, processes, watch
from jaxunlearn.data.dataset import SETS, Dataset
from jaxunlearn.data.forget import Split
from jaxunlearn.errors import Diverged, UserError, one_line, shown
from jaxunlearn.methods.table import actions, find
from jaxunlearn.methods.task import Task
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.models import brought
from jaxunlearn.report.progress import progress
from jaxunlearn.store import Checkpoints, Store, load_tree, make_key, read_meta, read_npz, save_tree
from jaxunlearn.training.images import Images
from jaxunlearn.training.loop import DivergedError, Point, Result, run
from jaxunlearn.training.passes import Action, Variables
from jaxunlearn.training.programs import Programs
from jaxunlearn.training.step import Bench, Setup, fresh
from jaxunlearn.training.sweep import predict

# What makes a model whatever its architecture and method; all that these import counts too.
MAKING = (
    *("jaxunlearn.training.loop", "jaxunlearn.training.sweep", "jaxunlearn.training.links"),
    "jaxunlearn.augment.build",
)

WHY = "why.json"  # beside the parameters that are left of a run that diverged
WATCHING = ("jaxunlearn.watch",)  # and what makes one that is watched


def source_of(modules: tuple[str, ...]) -> str:
    """SHA-256 of the sources that make a model by its method's and its architecture's modules."""
    return closure.fingerprint((*MAKING, *modules))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that makes a trained model what it is.

    Attributes:
      name: what results call it; the only field that changes nothing.
      seed: the run's seed.
      settings: the method and its settings, with the optimizer's.
      dataset: the data.
      split: which training examples to forget and which to retain.
      parent: the recipe of the model to start from; None: fresh parameters.
      setup: model, augmentation, normalisation and optimizer, as every step has them.
      model: what tells `setup.model` from others, see `Architecture`.
      chain: the policies that `setup.augment` was built from.
      code: `source_of` the model and the method.
      watch: `config.watch` where the method is watched.
    """

    name: str
    seed: int
    settings: ConfigDict
    dataset: Dataset
    split: Split
    parent: "Recipe | None"
    setup: Setup
    model: dict[str, Any]
    chain: Any
    code: str
    watch: dict[str, Any] | None = None

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """What the store's key is a hash of."""
        fields = {
            "data": self.dataset.arrays,
            "classes": self.dataset.num_classes,
            # Methods may read it: what they start from, and what it is held against, does not.
            "malignant": () if self.parent is None else self.dataset.malignant,
            "split": self.split.fingerprint,
            "mean": self.setup.mean,
            "std": self.setup.std,
            "model": self.model,
            "augment": self.chain,
            "method": self.settings.to_dict() | self._files(),
            "seed": self.seed,
            "parent": None if self.parent is None else self.parent.key,
            "switches": devices.switches(),
            "code": self.code,
        }
        return fields if self.watch is None else fields | {"watch": self.watch}

    def _files(self) -> dict[str, str]:
        """Of settings that name models, the content."""
        found = find(self.settings.method).files
        return {name: brought.fingerprint(self.settings[name], name) for name in found}

    @functools.cached_property
    def key(self) -> str:
        """The store's key."""
        return make_key(self.fields)

    @property
    def inputs(self) -> dict[str, Any]:
        """Those fields of a method's `Task` that follow from the recipe."""
        return {
            "forget": self.split.forget,
            "retain": self.split.retain,
            "labels": self.dataset.train.labels,
            "num_classes": self.dataset.num_classes,
            "malignant": self.dataset.malignant,
            "val": self.dataset.val,
            "seed": self.seed,
        }

    @property
    def stage(self) -> str:
        """Names the random streams of training."""
        return "train" if self.parent is None else "unlearn"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model in the store."""

    key: str
    path: Path

    def variables(self) -> Variables:
        """The model's variables, as numpy arrays; all processes of a run must ask for them."""
        return processes.from_first(lambda: load_tree(self.path / "variables"))

    def logits(self) -> dict[str, np.ndarray]:
        """Its logits float32 `[N, num_classes]` by set: train, val, test."""
        return read_npz(self.path / "logits.npz")

    def meta(self) -> dict[str, Any]:
        """Its seconds, history, claims, curve (None: not watched) and the fields of its key."""
        return read_meta(self.path)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Makes models, or finds them in the store.

    Attributes:
      programs: compiled programs, kept from model to model.
      store: where models are kept.
      console: where progress is shown.
      checkpoint_every: passes between two points to resume from.
      predict_batch: batch size of predictions.
      diverged: the folder for the last finite parameters of a run that diverged.
    """

    programs: Programs
    store: Store
    console: Console
    checkpoint_every: int
    predict_batch: int
    diverged: Path

    _images: dict[str, Images] = dataclasses.field(default_factory=dict, init=False)
    _parents: dict[str, Variables] = dataclasses.field(default_factory=dict, init=False)
    _obtained: dict[str, Trained] = dataclasses.field(default_factory=dict, init=False)

    def images(self, dataset: Dataset) -> Images:
        """The training images on the devices; those of one data set at a time."""
        if dataset.fingerprint not in self._images:
            self._images.clear()
            mesh = self.programs.mesh
            images = Images.of(dataset.train.images, aligned=not devices.on_cpu(mesh))
            placed = devices.replicate(images, mesh)
            self._images[dataset.fingerprint] = placed
        return self._images[dataset.fingerprint]

    def _start(self, recipe: Recipe, bench: Bench) -> Variables:
        """What the recipe's method starts from; of parents, one at a time is kept."""
        if recipe.parent is None:
            return fresh(bench, recipe.seed)
        key = recipe.parent.key
        if key not in self._parents:
            self._parents.clear()
            self._parents[key] = self.obtain(recipe.parent).variables()
        return self._parents[key]

    def obtain(self, recipe: Recipe) -> Trained:
        """The model of a recipe, and first that of its parent.

        Raises:
          Diverged: training diverged.
          UserError: the user's own module fails.
        """
        if recipe.key not in self._obtained:
            self._obtained[recipe.key] = self._find_or_make(recipe)
        return self._obtained[recipe.key]

    def attempt(self, recipe: Recipe) -> Trained | None:
        """The same of a method; None where it diverges, or has before, as `why_lost` tells then."""

        def known() -> str:
            why = why_lost(self.diverged, recipe)
            return why if why and self.store.get(recipe.key) is None else ""

        why = processes.from_first(known)
        if why:
            text = f"diverged before, remove what is left to try again: {why}"
            self.console.print(text, highlight=False, markup=False)
            return None
        try:
            return self.obtain(recipe)
        except Diverged as error:
            if not processes.from_first(known):  # what it starts from diverged
                raise
            self.console.print(str(error), highlight=False, markup=False)
            return None

    def _find_or_make(self, recipe: Recipe) -> Trained:
        """The stored model, verified, or a new one."""
        label = f"seed {recipe.seed} · {recipe.name}"

        def alive() -> None:
            """Nobody to tell, where no lock is held."""

        with contextlib.ExitStack() as lock:

            def is_there() -> bool:
                return self.store.get(recipe.key) is not None

            def is_made_meanwhile() -> bool:
                nonlocal alive
                alive = lock.enter_context(self.store.making(recipe.key, label))
                return is_there()  # by another run

            if not processes.from_first(is_there):
                if recipe.parent is not None:  # first, as a lock shows that there is progress
                    self.obtain(recipe.parent)
                if not processes.from_first(is_made_meanwhile):
                    return self._make(recipe, alive)
        if processes.is_first():  # points are left where a run was killed at the very end
            self._checkpoints(recipe).clear()
        self.console.print(f"{label}: in the store", highlight=False, markup=False)
        return Trained(recipe.key, self.store.root / recipe.key)

    def _checkpoints(self, recipe: Recipe) -> Checkpoints:
        machine = self.programs.describe()
        return Checkpoints(self.store, recipe.key, self.checkpoint_every, [machine])

    def _make(self, recipe: Recipe, alive: Callable[[], None]) -> Trained:
        """A new model, put into the store."""
        checkpoints = self._checkpoints(recipe)
        bench = Bench(recipe.setup, self.images(recipe.dataset), self.programs)
        try:
            return self._made(recipe, bench, checkpoints, alive)
        except Diverged:  # what comes of these settings is known
            processes.from_first(checkpoints.clear)
            raise
        except BaseException:  # stopped, another process lost, or a scheduler's own way
            checkpoints.flush()
            raise

    def _made(
        self,
        recipe: Recipe,
        bench: Bench,
        checkpoints: Checkpoints,
        alive: Callable[[], None],
    ) -> Trained:
        """The same, while points of it are kept."""
        result, curve = self._train(recipe, bench, checkpoints, alive)
        logits = self._predict(recipe, bench, result)
        meta = {
            "fields": recipe.fields,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
            "history": result.history,
            "claims": _plain(recipe, result.claims),
            "watch": curve,
            "made_on": checkpoints.made_on,
        }
        trees = {"variables": jax.device_get(result.variables)}
        arrays = {"logits": logits}

        def put() -> None:
            self.store.put(recipe.key, meta=meta, trees=trees, arrays=arrays)
            checkpoints.clear()

        processes.from_first(put)
        return Trained(recipe.key, self.store.root / recipe.key)

    def _train(
        self,
        recipe: Recipe,
        bench: Bench,
        checkpoints: Checkpoints,
        alive: Callable[[], None],
    ) -> tuple[Result, watch.Curve | None]:
        """Runs the recipe's method, from its last checkpoint if it has one; and its curve."""
        start = self._start(recipe, bench)
        task = Task(**recipe.inputs, original=start, bench=bench)
        made: Iterable[Action] = actions(task, recipe.settings)
        watched = None
        if recipe.watch is not None:
            made = watched = watch.Watched(
                made, recipe.watch, _looker(recipe, bench, recipe.watch["images"])
            )
        point = processes.from_first(lambda: (last := checkpoints.latest()) and last._asdict())
        resume = point and Point(**point)
        if resume is not None:
            passes = len(resume.history)
            self.console.print(f"resumed after epoch {passes}", highlight=False)
        with progress(self.console, f"seed {recipe.seed} · {recipe.name}", alive) as update:
            try:
                result = run(
                    made,
                    start,
                    bench,
                    stage=recipe.stage,
                    seed=recipe.seed,
                    progress=update,
                    resume=resume,
                    checkpoint=checkpoints.save if processes.is_first() else None,
                )
                return result, watched.curve if watched else None
            except DivergedError as error:
                self._fail(recipe, error, error.variables)
            except FlaxError as error:  # a user's own module
                raise UserError(
                    f"{recipe.name}, seed {recipe.seed}: the model fails: {one_line(error)}"
                ) from error

    def _predict(self, recipe: Recipe, bench: Bench, result: Result) -> dict[str, np.ndarray]:
        """The model's logits on every set."""
        logits = {
            which: predict(
                result.variables, getattr(recipe.dataset, which).images, bench, self.predict_batch
            )
            for which in SETS
        }
        made_elsewhere = recipe.settings.method == "brought"
        if made_elsewhere and all(map(_are_probabilities, logits.values())):
            raise UserError(
                f"{recipe.name}: the model's outputs are probabilities, none below 0 and with the "
                "sum 1 for each image, where logits are needed; leave out its last softmax"
            )
        if not all(np.isfinite(values).all() for values in logits.values()):
            advice = "try a lower learning rate"
            if made_elsewhere:
                advice = "its variables, or config.data.mean and config.data.std, give them"
            problem = f"its logits are not finite; {advice}"
            self._fail(recipe, problem, jax.device_get(result.variables))
        return logits

    def _fail(self, recipe: Recipe, problem: object, variables: Variables) -> NoReturn:
        """Keeps the last finite parameters and says where."""
        path = _left(self.diverged, recipe)
        message = (
            f"{recipe.name}, seed {recipe.seed}: {problem}; the last finite parameters: {path}"
        )

        def keep() -> None:
            files.remove(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(path) as name:
                name.mkdir()
                save_tree(name / "variables", variables)
                told = {"key": recipe.key, "message": message}
                files.write_text(name / WHY, json.dumps(told))

        processes.from_first(keep)
        raise Diverged(message)


def _left(diverged: Path, recipe: Recipe) -> Path:
    """Where the last finite parameters are, if the recipe's run diverged."""
    return diverged / files.within(f"{recipe.name}-seed{recipe.seed}", 200)  # a trial's is long


def why_lost(diverged: Path, recipe: Recipe) -> str:
    """The message of the recipe's run that diverged; "" where there is none.

    Args:
      diverged: as of `Trainer`.
      recipe: of this very model, whatever it is called: a trial of tuning may have been the same.
    """
    for path in sorted(diverged.glob(f"*/{WHY}")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            why = json.loads(path.read_text(encoding="utf-8"))
            if why["key"] == recipe.key:
                return str(why["message"])
    return ""


def _looker(recipe: Recipe, bench: Bench, images: int) -> Callable[[Variables], watch.Predicted]:
    """What gives the predictions that a look judges."""
    size = recipe.setup.batch_size  # in the key, as all that a model may depend on
    sets = []
    for which, (source, rows) in watch.draw(
        recipe.split, recipe.dataset, recipe.seed, images
    ).items():
        examples = getattr(recipe.dataset, source)
        sets.append((which, examples.images[rows], examples.labels[rows]))
    return lambda variables: {
        which: Predictions(predict(variables, seen, bench, size), labels)
        for which, seen, labels in sets
    }


def _are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs `[N, num_logits]` look like a softmax's; in bfloat16 these are not exact."""
    return bool(np.all(outputs >= 0) and np.all(np.abs(np.sum(outputs, axis=1) - 1) < 0.02))


def _plain(recipe: Recipe, claims: Any) -> dict[str, Any]:
    """What a method claims, as JSON has it."""
    try:
        # NumPy's and JAX's numbers have `tolist`.
        text = json.dumps(claims, allow_nan=False, default=lambda value: value.tolist())
        return dict(json.loads(text))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{recipe.name}, seed {recipe.seed}: the method claims {shown(claims)}; allowed: a "
            "dict of finite numbers, texts, True and False, and of dicts and lists of these"
        ) from error
