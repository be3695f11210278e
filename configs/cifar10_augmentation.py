"""CIFAR-10: seven augmentation scenarios × FT, RL, SalUn × 10% and 50% forgotten.

Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502. A scenario is used for the original, the
retrained and the unlearned models alike.
"""

from jaxunlearn.augment import SCENARIOS
from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "cifar10_augmentation"
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    # The levels that this mean makes 0.
    config.augment_params.random_erasing.fill = (125, 123, 114)
    config.forget.balanced = False
    config.axes = (("augment", tuple(SCENARIOS)), ("forget.fraction", (0.1, 0.5)))
    config.eval.attack = "svc"
    config.methods = methods(finetune={"lr": 0.013}, random_label={}, salun={})
    return config
