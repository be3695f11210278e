"""Data sources by name, each giving the same `Dataset`; `forget` turns requests into splits."""

from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.data.load import SOURCES, load

__all__ = ["SOURCES", "Dataset", "Examples", "load"]
