"""SalUn on PathMNIST, all classes: Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18509."""

from jaxunlearn.config import as_published, default, methods


def get_config():
    config = default()
    as_published(config)
    config.name = "pathmnist_salun"
    config.data.name = "pathmnist"
    config.data.size = 64
    config.methods = methods(salun={})
    return config
