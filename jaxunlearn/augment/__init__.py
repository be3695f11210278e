"""Augmentations: functions of uint8 images and keys that run inside the compiled step.

augment = build("trivialaugment")
images, targets = augment(images, targets, key)
"""

from jaxunlearn.augment.build import (
    POLICIES,
    SCENARIOS,
    Augment,
    Chain,
    build,
    build_chain,
    chain,
    defaults,
)

__all__ = [
    "POLICIES",
    "SCENARIOS",
    "Augment",
    "Chain",
    "build",
    "build_chain",
    "chain",
    "defaults",
]
