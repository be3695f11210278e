"""CIFAR-10: seven augmentation scenarios × FT, RL, SalUn × 10% and 50% forgotten.

Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502. A scenario is used for the original, the
retrained and the unlearned models alike.
"""

from jaxunlearn.augment import SCENARIOS
from jaxunlearn.config import as_published, default, methods


def get_config():
    config = default()
    as_published(config)
    config.name = "cifar10_augmentation"
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.forget.balanced = False
    config.axes = (("augment", tuple(SCENARIOS)), ("forget.fraction", (0.1, 0.5)))
    relabel = {"order": "forget_first"}  # the published code's order for this data set
    config.methods = methods(
        finetune={"lr": 0.013},
        random_label={"relabel": relabel},
        salun={"relabel": relabel, "mask": {"augment": True}},
    )
    return config
