"""Tuning: each method's rate, epochs and main knob, chosen without ever reading a retrained model.

Methods' published settings do not transfer from one data set and model to another. With
`config.tune.trials` above 0 every entry of `config.methods` is tuned on the first seed before the
seeds are run:

- The candidates are the entry as it is, and other values of the settings that its method's module
  names in `TUNE`: of rates, half decades around the entry's, to 1.5 decades either way. Where these
  make more combinations than `trials`, a draw of them.
- Successive halving (Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943) over epochs: all
  candidates run for few, the better half for twice as many, up to those of the entry; each time
  from the original, as a schedule of fewer epochs is another one. A method without epochs has one
  rung.
- Better is a lower `metrics.proxy` gap, which reads forget, retain and validation, and no test set.
  A trial that reliably misses more malignant validation images than the original comes after all
  that do not.
  The best trial of any rung is chosen, so that epochs are too. The entry as it is, with all of its
  epochs, is always a trial.

What one run chose is used by others with `config.tune.chosen`, see `with_chosen`.

A trial is a model like any other, and goes through the store. One that diverges is the worst. What
was chosen from, and with a retrained model what the choice has cost against it, stands in
`tuning.json` and `tuning.md`.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from jaxunlearn import config as config_lib
from jaxunlearn import files, metrics, processes, workdir
from jaxunlearn.errors import UserError, shown
from jaxunlearn.grid import cells
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods.table import find
from jaxunlearn.metrics import proxy, results
from jaxunlearn.plan import Experiment
from jaxunlearn.trained import Recipe, Trained, Trainer

FACTORS = tuple(10 ** (half / 2) for half in (-3, -2, -1, 1, 2, 3))  # of a rate

Changes = dict[str, Any]  # settings by dotted name


class Trial(NamedTuple):
    """One model that was tried.

    Attributes:
      changes: the settings that are tuned, by dotted name, with its epochs.
      key: of the model in the store.
      gaps: the four parts of its proxy gap; None: it diverged.
      misses_more: see `proxy.misses_more`.
      seconds: as RTE; 0 where it diverged.
    """

    changes: Changes
    key: str
    gaps: dict[str, float] | None
    misses_more: bool
    seconds: float

    @property
    def proxy_gap(self) -> float:
        """Their mean, in percentage points."""
        if self.gaps is None:
            return math.inf
        return sum(self.gaps.values()) / len(self.gaps)

    @property
    def score(self) -> float:
        """The proxy gap, above all others' where it misses more."""
        return self.proxy_gap + 100 * self.misses_more


class Tuned(NamedTuple):
    """What was tried for an entry: all trials in order, the chosen one, and the entry as it is."""

    trials: list[Trial]
    chosen: Trial
    given: Trial

    @property
    def spent(self) -> dict[str, Any]:
        """What it took: the number of trials, how many diverged or miss more, and their seconds.

        Seconds leave out those that diverged, and compilation, as RTE does.
        """
        return {
            "trials": len(self.trials),
            "diverged": sum(trial.gaps is None for trial in self.trials),
            "miss_more": sum(trial.misses_more for trial in self.trials),
            "seconds": sum(trial.seconds for trial in self.trials),
        }


def with_chosen(config: ConfigDict) -> ConfigDict:
    """The config with the settings that the run of `config.tune.chosen` chose for its methods.

    Args:
      config: left as it is, and returned where it names no such run.

    Raises:
      UserError: the file is none of tuning, or none of the methods is in it.
    """
    path = config.tune.chosen
    if not path:
        return config
    if config.tune.trials:
        raise UserError("config.tune chooses anew by trials or uses what was chosen; leave one out")
    file = files.local(path, "config.tune.chosen")
    try:
        methods = json.loads(file.read_text(encoding="utf-8"))["methods"]
        chosen = {name: dict(entry["chosen"]["settings"]) for name, entry in methods.items()}
        of = {name: entry.get("method") for name, entry in methods.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"config.tune.chosen={path} cannot be read as what a run has chosen; give the "
            "tuning.json of a run with config.tune.trials"
        ) from error
    there = [name for name in config.methods if name in chosen]
    if not there:
        raise UserError(
            f"config.tune.chosen={path} has settings of {', '.join(chosen)}, and config.methods "
            f"names {', '.join(config.methods) or 'none'}; give entries the names that they had"
        )
    made = config_lib.plain(config)
    for name in there:
        method = _method(made.methods[name])
        if of[name] not in (None, method):  # none where an older version has written it
            raise UserError(
                f"config.tune.chosen={path} has settings of {of[name]} for config.methods.{name}, "
                f"which is {method}; give one of the two entries another name"
            )
        changes = unflatten_dict(chosen[name], sep=".")
        config_lib.change(made.methods[name], changes, f"what {path} has for config.methods.{name}")
    return made


def candidates(
    tune: Mapping[str, tuple | None], settings: ConfigDict, trials: int, seed: int
) -> list[Changes]:
    """Settings to try, those of the entry first.

    Args:
      tune: see `Method.tune`.
      settings: the entry's.
      trials: how many at most.
      seed: draws which, where there are more.
    """
    values = [_values_of(path, known, settings) for path, known in tune.items()]
    grid = [dict(zip(tune, point, strict=True)) for point in itertools.product(*values)]
    if len(grid) <= trials:
        return grid
    drawn = stage_rng("tune", seed).permutation(len(grid) - 1)[: trials - 1]
    return [grid[0], *(grid[1 + i] for i in sorted(drawn))]


def _values_of(path: str, known: tuple | None, settings: ConfigDict) -> list[Any]:
    """What to try of a setting, the entry's own value first."""
    given = operator.attrgetter(path)(settings)
    others = known or [float(f"{given * factor:.3g}") for factor in FACTORS]
    return [given, *(value for value in others if value != given)]


def check_candidates(config: ConfigDict) -> None:
    """Raises where a method's `TUNE` has what its setting cannot be."""
    for name, settings in config.methods.items() if config.tune.trials else ():
        for path, known in find(settings.method).tune.items():
            where = f"TUNE of config.methods.{name}, {path}"
            given = operator.attrgetter(path)(settings)
            if known is None and not isinstance(given, float):
                raise UserError(
                    f"{where}: None stands for factors of a rate, a float, and it is "
                    f"{shown(given)}; name the values to try"
                )
            for value in _values_of(path, known, settings):
                entry = copy.deepcopy(settings)
                try:
                    config_lib.change(entry, unflatten_dict({path: value}, sep="."), where)
                    config_lib.check_method(name, entry)
                except UserError as error:
                    raise UserError(f"{where} has {shown(value)}: {error}") from error


def rungs(settings: ConfigDict, count: int) -> list[tuple[int | None, int]]:
    """Each rung's epochs, and how many of `count` candidates reach it; without epochs one rung."""
    if "epochs" not in settings:
        return [(None, count)]
    epochs, counts = [settings.epochs], [count]
    while epochs[0] > 1 and counts[-1] > 1:
        epochs.insert(0, -(-epochs[0] // 2))
        counts.append(-(-counts[-1] // 2))
    return list(zip(epochs, counts, strict=True))


def halving(
    points: list[Changes],
    ladder: list[tuple[int | None, int]],
    score: Callable[[Changes, int | None], float],
) -> None:
    """Successive halving: the points of each rung are the lowest of the one before.

    Args:
      points: all of the first rung.
      ladder: see `rungs`.
      score: of a point at a rung's epochs; lower is better, of equal ones the earlier, and an
        infinite one ends there.
    """
    for epochs, count in ladder:
        points = points[:count]
        scores = [score(point, epochs) for point in points]
        best = np.argsort(scores, kind="stable")
        points = [points[i] for i in best if scores[i] < math.inf]


def choose(one: Experiment, trainer: Trainer) -> tuple[Experiment, dict[str, Tuned]]:
    """The experiment with tuned methods, and what was tried for each; as it is where none is tuned.

    Of several methods one whose trials all diverge stays as it is given.

    Raises:
      UserError: every trial of the only one diverged.
    """
    found = {name: _tune(one, name, trainer) for name, _ in _entries(one)}
    tuned = {name: each for name, each in found.items() if each is not None}
    if not tuned:
        return one, tuned
    changed = _with(one, {name: found.chosen.changes for name, found in tuned.items()})
    return changed._replace(notes=[*one.notes, _note(one, tuned)]), tuned


def planned(one: Experiment) -> Iterator[tuple[str, Recipe, int]]:
    """What tuning will make at most: an entry's name, a recipe like its trials', and how many."""
    for name, settings in _entries(one):
        points = _candidates(one, settings)
        ladder = rungs(settings, len(points))
        for epochs, count in ladder:
            last = epochs == ladder[-1][0] and count < len(points)  # the entry as it is, besides
            yield name, _recipe(one, name, _at(points[0], epochs)), count + last


def _entries(one: Experiment) -> list[tuple[str, ConfigDict]]:
    """The entries of `methods` that are tuned."""
    if not one.cell.config.tune.trials:
        return []
    return [
        (name, settings)
        for name, settings in one.cell.config.methods.items()
        if find(settings.method).tune
    ]


def _candidates(one: Experiment, settings: ConfigDict) -> list[Changes]:
    """Of an entry."""
    config, tune = one.cell.config, find(settings.method).tune
    return candidates(tune, settings, config.tune.trials, config.seeds[0])


def _tune(one: Experiment, name: str, trainer: Trainer) -> Tuned | None:
    """Tries an entry's candidates; None where all diverge."""
    config, settings = one.cell.config, one.cell.config.methods[name]
    recipes = one.recipes(config.seeds[0])
    original = _read(one, trainer.obtain(recipes["original"]))
    tried: dict[str, Trial] = {}

    def judge(trained: Trained) -> dict[str, Any]:
        model = _read(one, trained)
        gaps = proxy.proxy_gaps(model, original, config.eval.attack, config.eval.members)
        more = proxy.misses_more(model, original, one.dataset.malignant, config.eval.malignant_rule)
        return {"gaps": gaps, "misses_more": more, "seconds": trained.meta()["seconds"]}

    def attempt(changes: Changes) -> Trial:
        recipe = _recipe(one, name, changes)
        if recipe.key not in tried:
            trained = trainer.attempt(recipe)
            value: dict[str, Any] = {"gaps": None, "misses_more": False, "seconds": 0.0}
            if trained:
                value = processes.from_first(functools.partial(judge, trained))
            tried[recipe.key] = Trial(changes, recipe.key, **value)
        return tried[recipe.key]

    points = _candidates(one, settings)
    ladder = rungs(settings, len(points))
    halving(points, ladder, lambda point, epochs: attempt(_at(point, epochs)).score)
    given = attempt(_at(points[0], ladder[-1][0]))
    trials = list(tried.values())
    chosen = min(trials, key=lambda trial: trial.score)
    if chosen.gaps is None:
        message = (
            f"config.methods.{name}: each of its {len(trials)} trials diverged; give it a lower "
            "lr to start from, or set config.tune.trials higher"
        )
        if len(config.methods) == 1 or one.cell.point:
            raise UserError(message)
        trainer.console.print(message, highlight=False, markup=False)
        return None
    return Tuned(trials, chosen, given)


def _at(point: Changes, epochs: int | None) -> Changes:
    """A candidate at a rung's epochs."""
    return point if epochs is None else {**point, "epochs": epochs}


def _recipe(one: Experiment, name: str, changes: Changes) -> Recipe:
    """Of a trial, under a name that tells it from others."""
    recipe = _with(one, {name: changes}).recipes(one.cell.config.seeds[0])[name]
    return dataclasses.replace(recipe, name=f"{name} {_text(changes)} ({recipe.key[:8]})")


def _read(one: Experiment, trained: Trained) -> dict[str, metrics.Predictions]:
    """What the proxy gap may read, in the first process."""
    if not processes.is_first():
        return {}
    predictions = one.predictions(trained.logits())
    return {which: predictions[which] for which in proxy.SETS}


def _with(one: Experiment, changes: Mapping[str, Changes]) -> Experiment:
    """The experiment with changed entries of `methods`."""
    config = config_lib.plain(one.cell.config)
    for name, changed in changes.items():
        config.methods[name].update_from_flattened_dict(changed)
    return one._replace(cell=one.cell._replace(config=config))


def _method(settings: ConfigDict) -> str:
    """Which method an entry is of, or which several in turn."""
    return settings.method if isinstance(settings.method, str) else ", ".join(settings.method)


def _text(changes: Changes) -> str:
    """Settings in short."""
    return " ".join(f"{path}={value}" for path, value in changes.items())


def _note(one: Experiment, tuned: Mapping[str, Tuned]) -> str:
    """What a reader of the table must know."""
    parts = []
    for name, found in tuned.items():
        spent = found.spent
        lost = f", {spent['diverged']} of them diverged" if spent["diverged"] else ""
        if found.chosen.misses_more:
            others = "every other one" if spent["diverged"] else "each of them"
            lost += f", {others} reliably misses more malignant validation images than the original"
        parts.append(
            f"{name} tuned in {spent['seconds']:.1f} s, {spent['trials']} trials{lost}: "
            f"{_text(found.chosen.changes)}"
        )
    config = one.cell.config
    parts += [f"{name} as it is" for name in config.methods if name not in tuned]
    where = f"{one.cell.label}: settings" if one.cell.point else "Settings"
    return (
        f"{where} were chosen on seed {config.seeds[0]}, without a retrained model and the test "
        f"set, in time that RTE leaves out (tuning.json): {'; '.join(parts)}."
    )


def check_at_once(config: ConfigDict) -> None:
    """Raises where models are to be made in parts, and settings are not known before all are."""
    if any(cell.config.tune.trials for cell in cells(config)):
        raise UserError(
            "config.tune chooses settings from many models, one after the other; run the config "
            "as a whole (python -m jaxunlearn.main), or set tune.trials=0"
        )


def write(
    one: Experiment,
    tuned: Mapping[str, Tuned],
    trainer: Trainer,
    folder: Path,
    *,
    gaps: bool = True,
) -> None:
    """Writes all trials; where there is a retrained model, also what each choice has cost.

    Args:
      one: the experiment.
      tuned: by entry.
      trainer: what has made its models.
      folder: of the results.
      gaps: whether retrained, if there is to be one, is made already.
    """
    config = one.cell.config
    retrained = one.recipes(config.seeds[0]).get("retrained") if gaps else None
    reference = None if retrained is None else _values(one, trainer.obtain(retrained))
    entries: dict[str, Any] = {}
    for name, found in tuned.items():
        rows: list[dict[str, Any]] = []
        for trial in found.trials:
            row = {
                "settings": trial.changes,
                "key": trial.key,
                "gaps": trial.gaps,
                "proxy_gap": None if trial.gaps is None else trial.proxy_gap,
                "misses_more": trial.misses_more,
                "seconds": trial.seconds,
            }
            if reference:
                made = Trained(trial.key, trainer.store.root / trial.key)
                row["avg_gap"] = (
                    trial.gaps and results.compare(_values(one, made), reference)["avg_gap"]
                )
            rows.append(row)
        entry = {
            "method": _method(config.methods[name]),
            **found.spent,
            "chosen": rows[found.trials.index(found.chosen)],
            "given": rows[found.trials.index(found.given)],
        }
        if reference:
            entry["best"] = min((row for row in rows if row["gaps"]), key=lambda r: r["avg_gap"])
            # what a choice by Avg Gap, which takes a retrained model, would have gained
            entry["regret"] = entry["chosen"]["avg_gap"] - entry["best"]["avg_gap"]
        entries[name] = {**entry, "all": rows}
    report = {"seed": config.seeds[0], "methods": entries}
    workdir.write_tuning(folder, report, _table(entries, bool(reference)))


def _values(one: Experiment, trained: Trained) -> dict[str, Any]:
    """A model's values as the results have them, without the clinical ones."""
    seed = one.cell.config.seeds[0]
    return one.evaluate(one.predictions(trained.logits()), seed, clinical=False)


def _table(entries: Mapping[str, Any], with_gaps: bool) -> str:
    """A row for each entry, in Markdown."""
    columns = ["method", "chosen", "trials", "diverged", "miss more", "seconds"]
    columns += ["proxy gap", "as given"]
    if with_gaps:
        columns += ["Avg Gap", "best Avg Gap", "regret", "Avg Gap as given"]
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    for name, entry in entries.items():
        chosen, given = entry["chosen"], entry["given"]
        row = [name, _text(chosen["settings"])]
        row += [str(entry[count]) for count in ("trials", "diverged", "miss_more")]
        row += [f"{entry['seconds']:.1f}", _points(chosen["proxy_gap"])]
        row.append(_points(given["proxy_gap"]))
        if with_gaps:
            gaps = [chosen["avg_gap"], entry["best"]["avg_gap"], entry["regret"], given["avg_gap"]]
            row += map(_points, gaps)
        lines.append(" | ".join(row))
    notes = [
        "Gaps are in percentage points, of one seed; seconds are of the trials, as RTE. Trials "
        "that reliably miss more malignant validation images than the original come last."
    ]
    if with_gaps:
        notes.append(
            "The best Avg Gap of all trials takes a retrained model to be told; regret is what the "
            "choice without one is above it."
        )
    return "\n".join([*(f"| {line} |" for line in lines), "", " ".join(notes)]) + "\n"


def _points(gap: float | None) -> str:
    """A gap as the table shows it."""
    return "diverged" if gap is None else f"{gap:.2f}"
