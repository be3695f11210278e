"""One request on a model, data and patients that are at hand, for notebooks and scripts.

`unlearn` carries it out, `evaluate` judges what somebody else has made of it. Both write what they
are given into a folder and run an experiment on it, as the command line does.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import serialization
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, files, workdir
from jaxunlearn.data import npz
from jaxunlearn.data.dataset import SETS, Dataset
from jaxunlearn.data.forget import check_named
from jaxunlearn.errors import UserError, shown
from jaxunlearn.metrics import Predictions, results
from jaxunlearn.metrics.predictions import changed
from jaxunlearn.models.model import is_nnx
from jaxunlearn.prepared import Prepared
from jaxunlearn.report import terminal
from jaxunlearn.store import load_tree, make_key
from jaxunlearn.training.passes import Variables

JUDGED = "unlearned"  # what results call a model that somebody else has unlearned


@dataclasses.dataclass(frozen=True)
class Result:
    """What a request gave.

    Attributes:
      method: the method's name; "unlearned" where none was run.
      variables: the unlearned model's, in the containers and types of those that were given.
      predictions: by model ("original", "retrained" where there is one, and the method), then by
        set: forget, retain, val, test.
      results: what `metrics.json` holds, see `jaxunlearn.metrics.results`.
      folder: the run's working directory; without a `folder` of the caller's it goes with this.
    """

    method: str
    variables: Any
    predictions: dict[str, dict[str, Predictions]]
    results: results.Report
    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """The unlearned model's values by metric."""
        return self.results["models"][self.method]["per_seed"][0]

    @property
    def verdicts(self) -> Any:
        """What the results say of the method, as data."""
        return self.results["models"][self.method].get("verdicts", {})

    @property
    def changed(self) -> np.ndarray:
        """Positions of the test images that the unlearned model answers otherwise, int `[M]`.

        Their labels, answers and probabilities are in `folder`, as changed/METHOD-seedS.csv.
        """
        return changed(*(self.predictions[name]["test"] for name in ("original", self.method)))

    def report(self) -> str:
        """The tables and their notes, as GitHub markdown."""
        return terminal.markdown_table(self.results)

    def save(self, folder: str | Path) -> Path:
        """Copies the results, and the variables as `variables.msgpack`, into a new folder."""
        target = files.local(folder, "folder")
        if target.exists():
            raise UserError(f"{target} exists; name a folder that does not")
        with files.whole(target) as name:
            left_out = shutil.ignore_patterns("models", "given")
            shutil.copytree(self.folder, name, ignore=left_out)
            _dump(self.variables, name / "variables.msgpack")
        return target


def unlearn(
    model: Any,
    variables: Variables | None,
    data: str | Path | Mapping[str, Any] | Dataset,
    forget: Any,
    method: str | tuple[str, ...] = "salun",
    *,
    retrain: Mapping[str, Any] | None = None,
    retrained: Variables | None = None,
    malignant: tuple[int, ...] = (),
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    augment: str | tuple[str, ...] = "none",
    watch: Mapping[str, Any] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    console: Console | None = None,
    **settings: Any,
) -> Result:
    """Unlearns training examples from a trained model, and judges what came of it.

    Nothing that is given is changed. The same model, data, request and seed on the command line
    give the same bits.

    Args:
      model: a `flax.linen.Module`, a `flax.nnx.Module`, an Equinox module, a
        `jaxunlearn.models.Model`, a pair (init, apply) of functions; a class of Flax's, or a
        function that returns one of these, which is called with the data's `num_classes` and nnx's
        `rngs` where it takes them; or a name as `config.model.name`.
      variables: the trained ones, a dict of "params" and, where there are any, other collections;
        or an nnx or Equinox module that has them; None: `model` is one. The result's are one
        then, too.
      data: a `.npz` in MedMNIST's layout, or its arrays by name: `train_images` uint8
        `[N, H, W, C]`, `train_labels` `[N]`, and of val and test; groups where patients have ids.
      forget: training indices, int `[M]`; or a share of each class; or fields of `config.forget`,
        such as `{"kind": "groups", "groups": (17, 42)}`.
      method: the name of a method, or "MODULE:NAME" of your own; or several, one after the other.
      retrain: settings of `config.train` by which to train a model without the forgotten examples,
        which the unlearned one is then compared with; None: none is trained.
      retrained: the variables of such a model, where it is at hand.
      malignant: labels, for clinical metrics; (): those of a `Dataset`.
      mean: of images scaled to 0 to 1, for all channels or one for each.
      std: the same.
      augment: see `config.augment`.
      watch: settings of `config.watch`, such as `{"every": 1}`; None: the method is not watched.
      seed: of the method.
      folder: where files go, and models are found again by later calls, the results of each in a
        folder of its own (`Result.folder`); None: into a temporary folder.
      console: where progress and the table are printed; the standard output if None.
      **settings: of the method, such as `epochs=5`.

    Raises:
      UserError: something that was given is invalid, or training diverged.
    """
    if retrain is not None and retrained is not None:
        raise UserError("retrain and retrained are both given; train a model, or bring one")
    if _home(model) and (retrain is not None or method == "retrain"):
        raise UserError(
            f"{type(model).__name__} is a module that has its parameters, and cannot be trained "
            "from new ones; give its class, or a function that takes rngs and returns it, and the "
            "module as variables; of Equinox, a pair of functions (init, apply)"
        )
    config = _config(malignant, mean, std, seed)
    config.augment = augment
    config_lib.change(config.train, retrain or {}, "retrain")
    config_lib.change(config.watch, watch or {}, "watch")
    config.retrained = retrain is not None
    names = (method,) if isinstance(method, str) else method
    if not isinstance(names, tuple | list) or not all(isinstance(each, str) for each in names):
        raise UserError(
            f"method is {shown(method)}; allowed: a name, such as 'salun' or 'mymethods:passes', "
            "or several in turn, such as ('ssd', 'finetune')"
        )
    names = tuple(names)
    name = "_".join(str(each).rpartition(":")[2] for each in names)
    chosen = names[0] if len(names) == 1 else names
    config.methods = config_lib.methods(**{name: {"method": chosen, **settings}})
    brought = {"original": model if variables is None else variables, "retrained": retrained}
    return _run(config, name, model, brought, data, forget, folder, console)


def evaluate(
    model: Any,
    variables: Variables | None,
    data: str | Path | Mapping[str, Any] | Dataset,
    forget: Any,
    *,
    original: Variables,
    retrained: Variables | None = None,
    malignant: tuple[int, ...] = (),
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    seed: int = 0,
    folder: str | Path | None = None,
    console: Console | None = None,
) -> Result:
    """Judges a model that somebody else has unlearned; nothing is trained.

    Args:
      model: of all three, as in `unlearn`, and so are the arguments that are not named here.
      variables: the unlearned model's.
      data: what the original was trained on.
      forget: what the unlearned model is to have forgotten.
      original: the variables that it was made from.
      retrained: those of a model that was trained without the forgotten examples, where there is
        one.
      malignant: labels, for clinical metrics.
      mean: of images scaled to 0 to 1.
      std: the same.
      seed: of metrics that resample.
      folder: where files go.
      console: where progress and the table are printed.

    Raises:
      UserError: something that was given is invalid.
    """
    if original is None:
        raise UserError("original must be the variables that the judged ones were made from")
    judged = model if variables is None else variables
    brought = {"original": original, "retrained": retrained, JUDGED: judged}
    config = _config(malignant, mean, std, seed)
    return _run(config, JUDGED, model, brought, data, forget, folder, console)


def _config(
    malignant: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> ConfigDict:
    """A config of one seed, for images as they were trained on, without a retrained model."""
    config = config_lib.default()
    config.name, config.seeds, config.retrained = "request", (seed,), False
    images = {"malignant": malignant, "mean": mean, "std": std}
    config_lib.change(config.data, {name: _plain(value) for name, value in images.items()}, "data")
    return config


def _plain(value: Any) -> Any:
    """A list or an array as the tuple that a config has."""
    return tuple(np.asarray(value).tolist()) if isinstance(value, list | np.ndarray) else value


def _run(
    config: ConfigDict,
    name: str,
    model: Any,
    brought: Mapping[str, Variables | None],
    data: Any,
    forget: Any,
    folder: str | Path | None,
    console: Console | None,
) -> Result:
    """Runs the config on what is at hand; `brought` is variables by model, `name` the method's."""
    with contextlib.ExitStack() as done:
        if folder is None:
            folder = tempfile.mkdtemp(prefix="jaxunlearn-")
            done.callback(shutil.rmtree, folder, ignore_errors=True)
        home = files.local(folder, "folder").absolute()
        inputs = home / "given"
        with files.writing(home, "the folder", "name another folder"):
            inputs.mkdir(parents=True, exist_ok=True)
            files.sweep(inputs)
        done.enter_context(_named(inputs, JUDGED if JUDGED in brought else "original"))

        config.data.name, config.data.path = "npz", _data_path(data, inputs)
        config.data.malignant = config.data.malignant or getattr(data, "malignant", ())
        config_lib.change(config.forget, _request(forget, inputs), "forget")
        paths = {
            each: _given(inputs, f"{each}.msgpack", functools.partial(_dump, variables))
            for each, variables in brought.items()
            if variables is not None
        }
        config.original.path = paths["original"]
        if "retrained" in paths:
            config.retrained, config.retrained_path = True, paths["retrained"]
        if JUDGED in paths:
            entry = {"method": "brought", "path": paths[JUDGED]}
            config.methods = config_lib.methods(**{JUDGED: entry})
        if isinstance(model, str):
            config.model.name = model
        chosen = None if isinstance(model, str) else _model(model)
        ready = Prepared(config, home / "run", console, chosen)
        # Calls that differ share the folder's models, and have results of their own.
        (one,) = ready.experiments
        keys = [recipe.key for recipe in one.recipes(config.seeds[0]).values()]
        ready.folder = root = home / f"run-{make_key([ready.config.to_dict(), keys])[:16]}"
        report = cast(results.Report, experiment.carry_out(ready))

        made = load_tree(root / "models" / f"{name}-seed{config.seeds[0]}" / "variables")
        made = _like(made, brought.get(JUDGED, brought["original"]))
        predictions = {
            each: workdir.read_predictions(root, f"{each}-seed{config.seeds[0]}")
            for each in report["models"]
        }
        result = Result(name, made, predictions, report, root)
        weakref.finalize(result, done.pop_all().close)
        return result


@contextlib.contextmanager
def _named(folder: Path, variables: str) -> Iterator[None]:
    """Errors call what was given in memory by its argument, not by the file in the folder.

    Args:
      folder: where it is written.
      variables: the name of the file that has those given as `variables`.
    """
    file = rf"{re.escape(str(folder))}/(\w+)-[0-9a-f]{{16}}\.\w+"
    written = re.compile(rf"(?:config\.[\w.]*path=)?{file}")
    try:
        yield
    except UserError as error:
        text = written.sub(
            lambda found: "variables" if found[1] == variables else found[1], str(error)
        )
        if text == str(error):
            raise
        raise type(error)(text) from error


def _given(folder: Path, name: str, write: Callable[[Path], object]) -> str:
    """The path of an input that is written there, under a name that tells its content."""
    path = files.temporary(folder / name, Path(name).suffix)
    try:
        write(path)
        digest = files.sha256(path)[:16]
        os.replace(path, target := folder / f"{Path(name).stem}-{digest}{path.suffix}")
    finally:
        files.discard(path)
    return str(target)


def _data_path(data: Any, folder: Path) -> str:
    """The path of the data; what is in memory is written."""
    if isinstance(data, str | Path):
        return str(files.local(data, "data").absolute())
    if isinstance(data, Dataset):
        data = _arrays(data)
    if not isinstance(data, Mapping):
        raise UserError(f"data must be a path, a dict of arrays or a Dataset, got {shown(data)}")
    arrays = {"about_name": np.asarray("data")}
    arrays |= {name: _array(name, data[name]) for name in npz.NAMES if name in data}
    return _given(folder, "data.npz", lambda path: np.savez(path, **arrays))  # type: ignore[arg-type]


def _array(name: str, value: Any) -> np.ndarray:
    """An array of the caller's."""
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{name} must be an array, got {shown(value)}: {error}") from error


def _arrays(dataset: Dataset) -> dict[str, Any]:
    """A data set by the names of MedMNIST's layout."""
    arrays: dict[str, Any] = {"class_names": np.array(dataset.class_names)}
    about = {f"about_{field}": getattr(dataset, field) for field in npz.ABOUT}
    arrays |= {name: np.array(value) for name, value in about.items() if value}
    for which in SETS:
        examples = getattr(dataset, which)
        arrays |= {f"{which}_images": examples.images, f"{which}_labels": examples.labels}
        if examples.groups is not None:
            arrays[f"{which}_groups"] = examples.groups
    return arrays


def _request(forget: Any, folder: Path) -> Mapping[str, Any]:
    """Fields of `config.forget`; indices are written."""
    if isinstance(forget, Mapping):
        check_named(forget, "forget")
        return forget
    if isinstance(forget, float | np.floating):
        return {"kind": "fraction", "fraction": float(forget)}
    indices = _array("forget", forget)
    if indices.ndim != 1 or not indices.size:
        raise UserError(
            f"forget is {shown(forget)}; give training indices in a list, a share such as 0.1, or "
            "fields of config.forget in a dict"
        )
    path = _given(folder, "forget.npy", lambda path: np.save(path, indices))
    return {"kind": "indices", "path": path}


def _home(value: Any) -> Any:
    """The module of `models` for modules that have their parameters, where this is one."""
    if is_nnx(value):
        from jaxunlearn.models import nnx

        return nnx
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(value, equinox.Module):
        from jaxunlearn.models import equinox as home

        return home
    return None


def _model(given: Any) -> Any:
    """The model that was given, as a plan takes it."""
    home = _home(given)
    return home.from_instance(given) if home else given


def _tree(variables: Any) -> Any:
    """Variables as a dict, which those of an nnx module are not."""
    home = _home(variables)
    if home:
        return home.variables(variables)
    # An nnx.State is a mapping too, of what cannot be written.
    if not isinstance(variables, Mapping) or type(variables).__module__.startswith("flax.nnx"):
        raise UserError(
            'variables must be a dict with "params", or an nnx or Equinox module that has them, '
            f"got {type(variables).__name__}"
        )
    return variables


def _like(made: Any, given: Any) -> Any:
    """Variables that were made, in the containers and types that others were given in."""
    old = _tree(given)
    if "params" not in old:  # of a model that has nothing else, they are all there is
        made = made["params"]
    new = jax.tree.map(_as_given, serialization.from_state_dict(old, made), old)
    home = _home(given)
    return home.with_variables(given, new) if home else new


def _dump(variables: Any, path: Path) -> None:
    """Writes a model's variables in Flax's own format."""
    state = serialization.to_state_dict(jax.device_get(_tree(variables)))
    path.write_bytes(serialization.msgpack_serialize(state))


def _as_given(new: Any, old: Any) -> np.ndarray:
    """A leaf in the type that it came in."""
    return np.asarray(new).astype(np.asarray(old).dtype)
