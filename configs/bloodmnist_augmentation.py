"""BloodMNIST, all classes: seven augmentation scenarios × FT, RL, SalUn × 20% and 50% forgotten.

The question of Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502, asked of blood cells, as
in https://arxiv.org/abs/2508.18509.
"""

from jaxunlearn.augment import SCENARIOS
from jaxunlearn.config import as_published, default, methods


def get_config():
    config = default()
    as_published(config)
    config.name = "bloodmnist_augmentation"
    config.data.name = "bloodmnist"
    config.data.size = 64
    config.axes = (("augment", tuple(SCENARIOS)), ("forget.fraction", (0.2, 0.5)))
    config.methods = methods(
        finetune={"lr": 0.013}, random_label={}, salun={"mask": {"augment": True}}
    )
    return config
