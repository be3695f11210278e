"""BreastMNIST, 20% forgotten: settings chosen without a retrained model, and what that costs.

`breastmnist_tuning.py:1` is seed 1. Retrained is made to tell the regret, and reads into no choice.
"""

from jaxunlearn.config import default, methods


def get_config(seed="0"):
    config = default()
    config.name = "breastmnist_tuning"
    config.seeds = (int(seed),)
    config.data.name = "breastmnist"
    config.model.width = 16
    config.train.epochs = 40
    config.train.batch_size = 64
    config.train.lr = 0.05
    config.tune.trials = 16
    small = {"batch_size": 64}
    config.methods = methods(
        finetune=small, random_label=small, salun=small, scrub=small, ssd=small
    )
    return config
