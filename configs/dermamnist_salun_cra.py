"""Binary DermaMNIST, 20% of train forgotten (50%: `--config=configs/dermamnist_salun_cra.py:0.5`).

"Does Machine Unlearning Preserve Clinical Safety?", Falcao & Cordeiro 2026,
https://arxiv.org/abs/2604.23854. The paper's text leaves open how the
random labels are drawn: entries compare three ways, see `by_labels`.
"""

from jaxunlearn.config import as_published, by_labels, default, methods


def get_config(fraction="0.2"):
    config = default()
    as_published(config)
    config.name = "dermamnist_salun_cra"
    config.data.name = "dermamnist"
    config.data.size = 64
    config.data.binary = True
    config.forget.fraction = float(fraction)
    config.methods = methods(
        finetune={"lr": 0.013}, **by_labels("random_label", "salun", "salun_cra")
    )
    return config
