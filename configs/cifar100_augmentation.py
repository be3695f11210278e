"""CIFAR-100 under an augmentation scenario: Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502."""

from jaxunlearn.config import default, methods


def get_config(fraction="0.1"):
    config = default()
    config.name = "cifar100_augmentation"
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    config.forget.fraction = float(fraction)
    config.forget.balanced = False
    config.augment = "crop_flip"
    config.eval.attack = "svc"
    config.methods = methods(finetune={}, random_label={}, salun={})
    return config
