"""A contact sheet of augmentations: what a scenario does to your own images.

python -m jaxunlearn.show --config=configs/quickstart.py --out=augment.png
"""

from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from jaxunlearn import config as config_lib
from jaxunlearn import grid, main
from jaxunlearn.augment.build import SCENARIOS, Chain, build_chain, chain
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.load import load
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng

OUT = flags.DEFINE_string("out", "augment.png", "The file to write: PNG, PDF, … by its ending.")
DRAWS = flags.DEFINE_integer("draws", 10, "Columns: training images, augmented independently.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Seeds the choice of images and their augmentation.", 0)


def scenarios(config: ConfigDict) -> dict[str, Chain]:
    """The rows of the sheet: `none`, then the scenarios of the config, or of its cells if a grid.

    A config without augmentation leaves open what to show: then they are the papers' seven.
    """
    cells = grid.cells(config)
    if not any(config_lib.augment_chain(cell.config) for cell in cells):
        params = config.augment_params
        return {name: chain(name, **params.to_dict()) for name in SCENARIOS}
    found: dict[str, dict[Chain, str]] = {"none": {(): ""}}
    for cell in cells:
        made = found.setdefault(grid.value_name(cell.config.augment), {})
        made.setdefault(config_lib.augment_chain(cell.config), cell.label)
    # Cells may have the same policies with other parameters.
    return {
        name if len(made) == 1 else label: each
        for name, made in found.items()
        for each, label in made.items()
    }


def draw(config: ConfigDict, dataset: Dataset, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Images uint8 `[draws, H, W, C]` by scenario, the same ones in every row.

    Args:
      config: which scenarios.
      dataset: the source of training images.
      draws: how many of them, of all classes in turn.
      seed: seeds the choice of images and every augmentation.
    """
    train = dataset.train
    order = stage_rng("show", seed).permutation(len(train))
    # By how many of its class come before an image: one of each class, then a second of each.
    nth = np.empty(len(order), int)
    for label in range(dataset.num_classes):
        of_label = np.flatnonzero(train.labels[order] == label)
        nth[of_label] = np.arange(len(of_label))
    chosen = order[np.argsort(nth, kind="stable")][:draws]
    images = train.images[chosen]
    targets = np.eye(dataset.num_classes, dtype=np.float32)[train.labels[chosen]]
    key = jax.random.key(seed)
    return {
        name: np.asarray(jax.jit(build_chain(chain))(images, targets, key)[0])
        for name, chain in scenarios(config).items()
    }


def save(rows: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Writes the sheet, one row per scenario."""
    from matplotlib.figure import Figure

    draws = len(next(iter(rows.values())))
    size = (1.6 + 0.8 * draws, 0.5 + 0.8 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(rows), draws, squeeze=False)
    for axes, (name, images) in zip(panels, rows.items(), strict=True):
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--out={path} cannot be written: {error}") from error


def run(argv: list[str]) -> None:
    """Makes the sheet of the config."""
    main.no_more(argv)
    config = flags.FLAGS.config
    with main.ending():
        config_lib.check(config)
        dataset = load(config.data)
        rows = draw(config, dataset, DRAWS.value, SEED.value)
        save(rows, f"{config.name}: {dataset.name}", Path(OUT.value).expanduser())
    print(f"{OUT.value}: {', '.join(rows)}")


if __name__ == "__main__":
    app.run(run, flags_parser=main.parse)
