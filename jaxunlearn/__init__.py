"""Machine unlearning for image classification in JAX, judged for clinical safety."""

__version__ = "0.1.0"
