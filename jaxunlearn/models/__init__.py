"""Models: pairs of pure functions, those that ship by name, and the doors for others."""

from jaxunlearn.models.build import MODELS, build
from jaxunlearn.models.model import Model, from_flax, shipped

__all__ = ["MODELS", "Model", "build", "from_flax", "shipped"]
