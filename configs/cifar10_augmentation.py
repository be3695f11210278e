"""CIFAR-10 under an augmentation scenario: Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18502."""

from jaxunlearn.config import default, methods


def get_config(fraction="0.1"):
    config = default()
    config.name = "cifar10_augmentation"
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.forget.fraction = float(fraction)
    config.forget.balanced = False
    config.augment = "crop_flip"
    config.eval.attack = "svc"
    config.methods = methods(finetune={}, random_label={}, salun={})
    return config
