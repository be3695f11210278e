"""Strict settings for every test, made before JAX starts."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=4",
            # Most of the time of these tests is compilation.
            "--xla_backend_optimization_level=0",
        ]
    )
# Programs that are compiled once for all tests, their children included, and for no user.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxunlearn-tests-")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """A test of a run that its whole file shares is slow, whichever of them comes first."""
    for item in items:
        if {"finished", "class_request"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _programs_go_with_their_file():
    """A process may map so many pieces of memory, and every compiled program is some."""
    yield
    import toy

    toy.programs.cache_clear()
    jax.clear_caches()
