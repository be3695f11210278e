"""SalUn on OrganAMNIST, all classes: Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18509."""

from jaxunlearn.config import as_published, default, methods


def get_config():
    config = default()
    as_published(config)
    config.name = "organamnist_salun"
    config.data.name = "organamnist"
    config.data.size = 64
    config.methods = methods(salun={})
    return config
