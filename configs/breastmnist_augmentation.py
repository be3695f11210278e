"""BreastMNIST: seven augmentation scenarios × FT, RL, SalUn, 20% forgotten; fits a laptop.

The question of Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502, on 546 ultrasound images,
with the recipe of `breastmnist_salun_cra.py`.
"""

from jaxunlearn.augment import SCENARIOS
from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "breastmnist_augmentation"
    config.data.name = "breastmnist"
    config.axes = (("augment", tuple(SCENARIOS)),)
    config.train.epochs = 40
    config.train.batch_size = 64
    config.train.lr = 0.05
    config.augment_params.random_erasing.fill = (0,)  # black, as published
    small = {"batch_size": 64}
    config.methods = methods(
        finetune=small, random_label=small, salun={**small, "mask": {"augment": True}}
    )
    return config
