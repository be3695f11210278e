"""BreastMNIST (breast ultrasound, 546 training images), 20% removed: small enough for a laptop.

The methods and the question are those of Falcao & Cordeiro 2026, https://arxiv.org/abs/2604.23854;
the data set is ours, and so is the recipe: 40 epochs and smaller batches, for 546 images. A random
label may be the true one, except in the `_flip` entries.
"""

from jaxunlearn.config import default, methods


def get_config(fraction="0.2"):
    config = default()
    config.name = "breastmnist_salun_cra"
    config.data.name = "breastmnist"
    config.forget.fraction = float(fraction)
    config.train.epochs = 40
    config.train.batch_size = 64
    config.train.lr = 0.05
    small = {"batch_size": 64}
    flip = {"batch_size": 64, "relabel": {"exclude_true": True}}
    config.methods = methods(
        finetune=small,
        random_label=small,
        random_label_flip={"method": "random_label", **flip},
        salun=small,
        salun_flip={"method": "salun", **flip},
        salun_cra=small,
        salun_cra_flip={"method": "salun_cra", **flip},
    )
    return config
