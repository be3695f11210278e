"""CIFAR-100: seven augmentation scenarios × FT, RL, SalUn × 10% and 50% forgotten.

Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502. A scenario is used for the original, the
retrained and the unlearned models alike.
"""

from jaxunlearn.augment import SCENARIOS
from jaxunlearn.config import as_published, default, methods


def get_config():
    config = default()
    as_published(config)
    config.name = "cifar100_augmentation"
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4866, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    config.forget.balanced = False
    config.axes = (("augment", tuple(SCENARIOS)), ("forget.fraction", (0.1, 0.5)))
    config.methods = methods(
        finetune={"lr": 0.013}, random_label={}, salun={"mask": {"augment": True}}
    )
    return config
