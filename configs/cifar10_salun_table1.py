"""The methods of SalUn's first table: CIFAR-10, ResNet-18, 10% at random, ten seeds.

Fan et al. 2024, https://arxiv.org/abs/2310.12508, table 1, to be held beside it. Rates are those of
the published scripts where they have one. IU is not the published code's, which only scales a
gradient: see `jaxunlearn.methods.influence`.
"""

from jaxunlearn.config import as_published, default, methods


def get_config(fraction="0.1"):
    config = default()
    as_published(config)
    config.name = "cifar10_salun_table1"
    config.seeds = tuple(range(10))
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment = "crop_flip"
    config.forget.balanced = False
    config.forget.fraction = float(fraction)
    relabel = {"order": "forget_first"}  # as the published RL.py has it for this data set
    config.methods = methods(
        finetune={},
        random_label={"relabel": relabel},
        gradient_ascent={"clip": 0.0, "frozen_statistics": False},
        influence={},
        boundary_expand={"batch_size": 256},
        boundary_shrink={"batch_size": 256},
        l1_sparse={},
        salun={"relabel": relabel, "mask": {"augment": True}},
        salun_soft={},  # in RL_pro.py the two are mixed
    )
    return config
