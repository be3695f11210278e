"""Machine unlearning for image classification, judged for clinical safety.

    from jaxunlearn import default, evaluate, from_flax, methods, run, unlearn

`unlearn(model, variables, data, forget)` answers a request on a model that is at hand, and
`evaluate` judges one that somebody else has unlearned. `default()` is a config,
`methods(salun={})` fills its methods, `from_flax(module)` is a model, and `run(config, folder)`
runs it. The names load when they are first used, so that importing the package starts neither JAX
nor anything else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxunlearn.config import default, methods
    from jaxunlearn.experiment import run
    from jaxunlearn.models.model import from_flax
    from jaxunlearn.request import evaluate, unlearn

__version__ = "0.1.0"

__all__ = ["default", "evaluate", "from_flax", "methods", "run", "unlearn"]

_HOMES = {
    "default": "jaxunlearn.config",
    "evaluate": "jaxunlearn.request",
    "from_flax": "jaxunlearn.models.model",
    "run": "jaxunlearn.experiment",
    "unlearn": "jaxunlearn.request",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
