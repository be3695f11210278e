"""BreastMNIST (breast ultrasound, 546 training images), 20% forgotten: small enough for a laptop.

The methods and the question are those of Falcao & Cordeiro 2026, https://arxiv.org/abs/2604.23854;
the data set is ours, and so is the recipe: 40 epochs and smaller batches, for 546 images. The
paper's text leaves open how the random labels are drawn: entries compare three ways, see
`by_labels`.
"""

from jaxunlearn.config import by_labels, default, methods


def get_config(fraction="0.2"):
    config = default()
    config.name = "breastmnist_salun_cra"
    config.data.name = "breastmnist"
    config.forget.fraction = float(fraction)
    config.train.epochs = 40
    config.train.batch_size = 64
    config.train.lr = 0.05
    config.methods = methods(
        finetune={"batch_size": 64},
        **by_labels("random_label", "salun", "salun_cra", batch_size=64),
    )
    return config
