"""Metrics: pure numpy functions of predictions. They know no model and write no file."""

from jaxunlearn.metrics import clinical, privacy, statistics, unlearning, verdicts
from jaxunlearn.metrics.evaluate import METRICS, Case, Metric, evaluate
from jaxunlearn.metrics.predictions import Predictions
from jaxunlearn.metrics.results import (
    SCHEMA,
    Judged,
    Point,
    assemble,
    compare,
    load,
    merge,
    summarise,
)

__all__ = [
    "METRICS",
    "SCHEMA",
    "Case",
    "Judged",
    "Metric",
    "Point",
    "Predictions",
    "assemble",
    "clinical",
    "compare",
    "evaluate",
    "load",
    "merge",
    "privacy",
    "statistics",
    "summarise",
    "unlearning",
    "verdicts",
]
