"""Binary DermaMNIST, 20% of train removed (50%: `--config=configs/dermamnist_salun_cra.py:0.5`).

"Does Machine Unlearning Preserve Clinical Safety?", Falcao & Cordeiro 2026,
https://arxiv.org/abs/2604.23854. The paper's text leaves open whether a random label may be the
true one: `_flip` entries never draw it.
"""

from jaxunlearn.config import default, methods


def get_config(fraction="0.2"):
    config = default()
    config.name = "dermamnist_salun_cra"
    config.data.name = "dermamnist"
    config.data.size = 64
    config.data.binary = True
    config.forget.fraction = float(fraction)
    config.eval.attack = "svc"
    flip = {"relabel": {"exclude_true": True}}
    config.methods = methods(
        finetune={"lr": 0.013},
        random_label={},
        random_label_flip={"method": "random_label", **flip},
        salun={},
        salun_flip={"method": "salun", **flip},
        salun_cra={},
        salun_cra_flip={"method": "salun_cra", **flip},
    )
    return config
