"""Methods put together from parts, on synthetic lesions: under a mask, with CRA, in stages."""

from jaxunlearn.config import default, methods


def get_config():
    config = default()
    config.name = "compositions"
    config.model.width = 16
    config.data.count = 1000
    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.lr = 0.05
    size, fast = {"batch_size": 64}, {"epochs": 4, "batch_size": 64}
    config.methods = methods(
        # any method, held to the weights with the largest forget-set gradient
        scrub_masked={"method": "scrub", **fast, "mask": {"ratio": 0.3}},
        # any method that relabels, unsure about forgotten malignant examples
        amnesiac_cra={"method": "amnesiac", **size, "cra": {"target": "entropy"}},
        # one after the other; settings are a section for each
        ssd_finetune={
            "method": ("ssd", "finetune"),
            **size,
            "ssd": {"alpha": 3.0},
            "finetune": {"epochs": 2},
        },
    )
    return config
