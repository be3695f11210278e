"""SalUn: random relabelling that may change only the weights salient to the forget set.

Fan et al. 2024, https://arxiv.org/abs/2310.12508. `jaxunlearn.methods.saliency` makes the mask, and
says where the published code departs from the paper.
"""

from jaxunlearn.methods import random_label

NEEDS = ("forget", "retain", "labels")
COST = "E + f"
DEFAULTS = {**random_label.DEFAULTS, "mask": {"ratio": 0.5}}
TUNE = {"lr": None, "mask.ratio": (0.1, 0.3, 0.5, 0.7, 0.9)}
RULES, READS = random_label.RULES, random_label.READS
passes, check = random_label.passes, random_label.check
