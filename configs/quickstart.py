"""A first run: synthetic lesions and the methods of the papers, on a laptop's CPU."""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "quickstart"
    config.model.width = 16
    config.data.count = 1000
    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.lr = 0.05
    fast = {"epochs": 4, "batch_size": 64}
    config.methods = methods(finetune=fast, random_label=fast, salun=fast, salun_cra=fast)
    return config
