"""Amnesiac: training on the retain set and on the forget set under wrong labels, drawn once.

The "unlearning" baseline of Graves et al. 2021, https://arxiv.org/abs/2010.10981 and
https://github.com/lmgraves/AmnesiacML, which later papers call Amnesiac; the defaults are those of
https://github.com/if-loops/selective-synaptic-dampening. It is `random_label` with labels drawn
once among the other classes, under Adam. With two classes every forget example is taught the wrong
one, and labels that stay are learned: the forget set ends below what a retrained model makes of it.

The paper's own method undoes the logged updates of all batches that held a forget example. It needs
that log of training, and with a random tenth of the data every batch is one of them; so it is not
here.
"""

from jaxunlearn.methods import random_label

NEEDS = ("forget", "retain", "labels")
COST = "E"
DEFAULTS = {
    **random_label.DEFAULTS,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 3,
    "lr": 1e-4,
    "relabel": {"exclude_true": True, "every_epoch": False, "order": "mixed"},
}
RULES, READS = random_label.RULES, random_label.READS
passes, check = random_label.passes, random_label.check
