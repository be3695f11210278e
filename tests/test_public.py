"""What `jaxunlearn` itself offers."""

import subprocess
import sys

import jaxunlearn
from jaxunlearn import config as config_lib
from jaxunlearn import default, experiment, from_flax, methods, models, request, run


def test_the_public_names_are_those_of_their_rooms():
    names = {"default", "evaluate", "from_flax", "methods", "run", "unlearn"}
    assert set(jaxunlearn.__all__) == names
    assert (default, run, from_flax) == (config_lib.default, experiment.run, models.from_flax)
    assert jaxunlearn.unlearn is request.unlearn and jaxunlearn.evaluate is request.evaluate
    entries = {"salun": {"lr": 0.5}, "finetune": {}}
    assert methods(**entries).to_dict() == config_lib.methods(**entries).to_dict()
    assert list(methods(**entries)) == ["salun", "finetune"]
    assert not hasattr(jaxunlearn, "unheard_of")


def test_importing_the_package_starts_no_jax():
    code = "import sys, jaxunlearn; print(sorted({'jax', 'flax', 'optax'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
