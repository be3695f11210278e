"""What a run works with, made ready before anything is trained or written."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import devices, files, plan, processes, tune, workdir
from jaxunlearn.plan import Experiment
from jaxunlearn.store import Store
from jaxunlearn.trained import Trainer
from jaxunlearn.training.programs import Programs


class Prepared:
    """What a run works with: its plan, compiled programs, the store, and where to print and write.

    Only the first of several processes prints, and has the store and the folder of results.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: str | Path,
        console: Console | None,
        model: Any = None,
        bfloat16: bool | None = None,
    ):
        """`bfloat16`: whether the machine of the models computes in it; None: as this one does."""
        self.folder = files.local(folder, "--workdir")
        devices.check_switches()
        self.config = config_lib.plain(config)
        config_lib.check(self.config)
        self.config = tune.with_chosen(self.config)
        mesh = devices.make_mesh(self.config.devices)
        self.programs = Programs(mesh, self.config.convolution)
        self.console = (console or Console()) if processes.is_first() else Console(quiet=True)
        if bfloat16 is None:
            bfloat16 = self.programs.convolution.bfloat16
        self.experiments = plan.make(self.config, mesh.size, bfloat16, model)
        for one in self.experiments:
            tune.check_candidates(one.cell.config)
        processes.check_same(lambda: _fingerprint(self.config, self.experiments, mesh))
        self.where = self.folder.absolute().parent / "store"
        if self.config.store:
            self.where = files.local(self.config.store, "config.store")

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def inner(self, one: Experiment) -> Path:
        """The folder of an experiment's results."""
        if one.request:
            return self.folder / "requests" / str(one.request)
        return self.folder / "cells" / one.cell.label if self.config.axes else self.folder

    def diverged(self, one: Experiment) -> Path:
        """The folder of what is left of an experiment's runs that diverged."""
        return self.inner(one) / "diverged"

    def claim(self) -> None:
        """Makes the folders of results, or sees that they are of this very config."""
        for folder, config in self._folders():
            workdir.claim(folder, config)

    def check(self) -> None:
        """Raises where a folder of results is of another config."""
        for folder, config in self._folders():
            workdir.check(folder, config)

    def _folders(self) -> Iterator[tuple[Path, ConfigDict]]:
        """Each folder of results with its config."""
        yield self.folder, self.config
        for one in self.experiments:
            if self.inner(one) != self.folder:
                yield self.inner(one), one.cell.config

    @functools.cached_property
    def store(self) -> Store:
        """The folder of models."""
        return Store(self.where, self.say, elsewhere=not processes.is_first())

    def trainer(self, one: Experiment) -> Trainer:
        """What makes an experiment's models."""
        return Trainer(
            programs=self.programs,
            store=self.store,
            console=self.console,
            checkpoint_every=self.config.checkpoint_every,
            predict_batch=one.cell.config.eval.batch_size,
            diverged=self.diverged(one),
        )


def _fingerprint(config: ConfigDict, experiments: list[Experiment], mesh: Mesh) -> list[str]:
    """What must be the same in all processes of a run: config, the models' keys, the versions."""
    settings = {k: v for k, v in config.to_dict().items() if k not in workdir.INCIDENTAL}
    keys = {
        recipe.key
        for one in experiments
        for seed in one.cell.config.seeds
        for recipe in one.recipes(seed).values()
    }
    versions = devices.describe(mesh)["versions"]
    return [*sorted(keys), str(versions), json.dumps(settings, sort_keys=True)]
