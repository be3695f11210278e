"""Between images as a model sees them and their levels, for methods that make images."""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.methods.task import Task


def check(settings: Any, dataset: Dataset, policies: Collection[str]) -> None:
    """Raises where augmentation would mix images of the method's own with others."""
    mixing = sorted({"mixup", "cutmix"}.intersection(policies))
    if mixing:
        raise UserError(
            f"{settings.method} trains on images of its own, which {mixing[0]} would mix with "
            "others; remove one of them from the config"
        )


def scale(task: Task) -> dict[str, Any]:
    """The mean and standard deviation of each channel, float32 `[1, 1, 1, C]`, by name."""
    channels, setup = task.bench.images.shape[-1], task.bench.setup
    return {
        name: np.broadcast_to(np.asarray(values, np.float32), (1, 1, 1, channels))
        for name, values in (("mean", setup.mean), ("std", setup.std))
    }


def to_levels(seen: Any, scale: dict[str, Any]) -> Any:
    """Levels of 0 to 1 of normalised images `[N, H, W, C]`."""
    return seen * scale["std"] + scale["mean"]


def to_seen(levels: Any, scale: dict[str, Any]) -> Any:
    """Normalised images of levels of 0 to 1 `[N, H, W, C]`."""
    return (levels - scale["mean"]) / scale["std"]
