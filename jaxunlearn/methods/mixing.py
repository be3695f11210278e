"""The check of methods for which an image and its target must be of one example."""

from collections.abc import Callable, Collection
from typing import Any

from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError


def refused(why: str) -> Callable[[Any, Dataset, Collection[str]], None]:
    """Returns a method's `check`, which raises where augmentation mixes examples.

    Args:
      why: the method's name and its reason, the start of the message.
    """

    def check(settings: Any, dataset: Dataset, policies: Collection[str]) -> None:
        mixing = sorted({"mixup", "cutmix"}.intersection(policies))
        if mixing:
            raise UserError(
                f"{why} and cannot be combined with {mixing[0]}, which mixes examples; remove one "
                "of them from the config"
            )

    return check
