"""What the methods that edit the parameters once, and do not train, have in common."""

from jaxunlearn.rules import Unread

# Of the settings that every entry has, those that only training reads.
READS = dict.fromkeys(
    ("optimizer", "momentum", "weight_decay"),
    Unread(lambda settings: False, "this method does not train: choose another"),
)
