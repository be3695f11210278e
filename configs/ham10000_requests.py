"""HAM10000, made small: five requests one after another, each for 2% of the images by lesion.

The data are an .npz of one's own in MedMNIST's layout with lesion ids as groups; see
docs/results/requests.md.
"""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "ham10000_requests"
    config.data.name = "npz"
    config.data.path = "ham10000_28.npz"
    config.data.malignant = (0, 1, 4)  # akiec, bcc, mel
    config.model.width = 8
    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.lr = 0.05
    config.forget.kind = "random_groups"
    config.forget.fraction = 0.02
    config.requests = tuple({"seed": seed} for seed in range(1, 6))
    fast = {"epochs": 2, "batch_size": 64}
    config.methods = methods(finetune=fast, salun=fast)
    return config
