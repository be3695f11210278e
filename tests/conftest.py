"""Strict settings for every test, made before JAX starts."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """A test of a run that its whole file shares is slow, whichever of them comes first."""
    for item in items:
        if {"finished", "class_request"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
