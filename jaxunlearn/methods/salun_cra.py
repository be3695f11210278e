"""SalUn-CRA: SalUn that makes the model unsure about forgotten malignant examples.

"Does Machine Unlearning Preserve Clinical Safety?", Falcao & Cordeiro 2026,
https://arxiv.org/abs/2604.23854; `jaxunlearn.methods.cra` is our reading of it.
"""

from jaxunlearn.methods import cra, salun

NEEDS = ("forget", "retain", "labels")
COST = "E + f"
DEFAULTS = {**salun.DEFAULTS, "cra": {**cra.DEFAULTS, "target": "entropy"}}
TUNE = salun.TUNE
RULES, READS = salun.RULES, salun.READS
passes, check = salun.passes, salun.check
