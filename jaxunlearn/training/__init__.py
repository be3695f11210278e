"""Training: the words that methods speak in, the compiled step, the loop, and sweeps.

A method (see `jaxunlearn.methods`) is a generator of actions, such as `Pass` and `Replace`; `run`
carries them out. Everything that a step reads (the order of the examples, labels, learning rate,
key) is on the device before its epoch starts, so the hot loop moves nothing.
"""

from jaxunlearn.training.images import Images
from jaxunlearn.training.links import add_decay, add_noise, clip_norm, keep
from jaxunlearn.training.loop import DivergedError, Point, Result, run
from jaxunlearn.training.passes import (
    Action,
    Ask,
    Batch,
    Link,
    Objective,
    Pass,
    Replace,
    Restore,
    Save,
    Variables,
    cross_entropy,
)
from jaxunlearn.training.programs import Programs
from jaxunlearn.training.step import Bench, Setup, fresh, normalise
from jaxunlearn.training.sweep import predict, sweep

__all__ = [
    "Action",
    "Ask",
    "Batch",
    "Bench",
    "DivergedError",
    "Images",
    "Link",
    "Objective",
    "Pass",
    "Point",
    "Programs",
    "Replace",
    "Restore",
    "Result",
    "Save",
    "Setup",
    "Variables",
    "add_decay",
    "add_noise",
    "clip_norm",
    "cross_entropy",
    "fresh",
    "keep",
    "normalise",
    "predict",
    "run",
    "sweep",
]
