"""BreastMNIST: the published code's relabelling methods in both of its orders, beside its numbers.

The recipe of `breastmnist_salun_cra.py` and the published attack; docs/fidelity.md has the result.
"""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "breastmnist_fidelity"
    config.data.name = "breastmnist"
    config.model.width = 16
    config.seeds = (0, 1, 2)
    config.train.epochs = 40
    config.train.batch_size = 64
    config.train.lr = 0.05
    config.eval.attack = "svc"
    config.eval.members = "first"
    mixed = {"batch_size": 64}
    first = {**mixed, "relabel": {"order": "forget_first"}}
    config.methods = methods(
        finetune=mixed,
        random_label=mixed,
        salun=mixed,
        random_label_first={"method": "random_label", **first},
        salun_first={"method": "salun", **first},
    )
    return config
