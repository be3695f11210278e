"""Every method at this library's defaults in one table: `all_methods.py:breastmnist`.

  quickstart   synthetic lesions, four epochs at most: minutes on a laptop
  breastmnist  546 ultrasound images, 20% forgotten, five seeds
  ham10000     dermoscopy of an .npz of one's own with lesion ids, 10% of the lesions, three seeds
  cifar10      10% at random, cropped and flipped; the whole set wants a GPU

The defaults are the authors' where there are any, for CIFAR-10 or larger images with batches of 64
to 256; the small sets are trained in batches of 64, and so is every method on them. Methods for
whole classes alone are left out. How near the defaults come to a good setting is another question:
see `config.tune`.
"""

from jaxunlearn.config import default, methods
from jaxunlearn.methods import METHODS
from jaxunlearn.training.step import OPTIMIZER

SETS = ("quickstart", "breastmnist", "ham10000", "cifar10")


def entries(batch_size=None, most_epochs=10**6):
    """All methods that any request can use, but the one that unlearning is held against."""
    found = {}
    for name, method in METHODS.items():
        if "random" not in method.requests or name == "retrain":
            continue
        size = batch_size or {**OPTIMIZER, **method.defaults}["batch_size"]
        found[name] = {"batch_size": size}
        if "epochs" in method.defaults:
            found[name]["epochs"] = min(method.defaults["epochs"], most_epochs)
    return methods(**found)


def get_config(which="quickstart"):
    if which not in SETS:
        raise ValueError(f"all_methods.py:{which}: choose one of {', '.join(SETS)}")
    config = default()
    config.name = "all_methods" if which == "quickstart" else f"all_methods_{which}"
    config.model.width = 16
    config.train.batch_size = 64
    config.train.lr = 0.05
    if which == "quickstart":
        config.model.width = 8
        config.data.count = 1000
        config.train.epochs = 10
        config.seeds = (0, 1, 2)
        config.methods = entries(64, most_epochs=4)
    if which == "breastmnist":
        config.data.name = "breastmnist"
        config.train.epochs = 40
        config.seeds = (0, 1, 2, 3, 4)
        config.methods = entries(64)
    if which == "ham10000":
        config.data.name = "npz"
        config.data.path = "ham10000_28.npz"
        config.data.malignant = (0, 1, 4)  # akiec, bcc, mel
        config.forget.kind = "random_groups"
        config.forget.fraction = 0.1
        config.train.epochs = 30
        config.seeds = (0, 1, 2)
        config.methods = entries(64)
    if which == "cifar10":
        config.data.name = "cifar10"
        config.data.mean = (0.4914, 0.4822, 0.4465)
        config.data.std = (0.2470, 0.2435, 0.2616)
        config.augment = "crop_flip"
        config.forget.fraction = 0.1
        config.forget.balanced = False
        config.train.batch_size = 128
        config.train.epochs = 60
        config.methods = entries()
        del config.methods["salun_cra"]  # no class of it is malignant
    return config
