"""SalUn on OrganAMNIST, all classes: Falcao & Cordeiro 2025, https://arxiv.org/abs/2508.18509."""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "organamnist_salun"
    config.data.name = "organamnist"
    config.data.size = 64
    config.eval.attack = "svc"
    config.methods = methods(salun={})
    return config
