"""The config of `cell.py`'s experiment; sizes and rates come by flags."""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "cell"
    config.data.name = "npz"
    config.methods = methods(finetune={}, random_label={}, salun={})
    return config
