"""A first run: synthetic lesions and every method of the papers, on a laptop's CPU.

The papers' random labels may be the true ones; `_flip` entries never draw these.
"""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "quickstart"
    config.model.width = 16
    config.data.count = 1500
    config.train.epochs = 12
    config.train.batch_size = 64
    config.train.lr = 0.05
    fast = {"epochs": 5, "batch_size": 64}
    flip = {**fast, "relabel": {"exclude_true": True}}
    config.methods = methods(
        finetune=fast,
        random_label=fast,
        salun=fast,
        salun_flip={"method": "salun", **flip},
        salun_cra=fast,
        salun_cra_flip={"method": "salun_cra", **flip},
    )
    return config
