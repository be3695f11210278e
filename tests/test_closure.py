"""The store's keys follow the sources that make a model, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEYS = """
import sys
sys.path.insert(0, "tests")
import toy
from jaxunlearn import closure, plan
from jaxunlearn import config as config_lib

config = toy.experiment_config(sys.argv[1], finetune={}, salun={}, masked={
    "method": "finetune", "mask": {"ratio": 0.5}})
config.train.batch_size = 16
(experiment,) = plan.make(config, 1)
for name, recipe in experiment.recipes(0).items():
    print(name, recipe.key)
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package that a test may edit, and its keys."""
    import toy

    for folder in ("jaxunlearn", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    data = toy.write_npz(tmp_path / "data.npz")

    def keys():
        result = subprocess.run(
            [sys.executable, "-c", KEYS, data],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(line.split() for line in result.stdout.splitlines())

    return tmp_path / "jaxunlearn", keys


def append(path, text="\n# edited\n"):
    path.write_text(path.read_text() + text)


@pytest.mark.slow
def test_a_new_method_model_and_metric_change_no_key_and_an_edited_step_all(checkout):
    package, keys = checkout
    before = keys()
    shutil.copy(package / "methods" / "finetune.py", package / "methods" / "new.py")
    table = package / "methods" / "table.py"
    table.write_text(
        table.read_text()
        .replace("    finetune,\n", "    finetune,\n    new,\n", 1)
        .replace('"finetune": from', '"new": from_module(new),\n    "finetune": from', 1)
    )
    shutil.copy(package / "models" / "cnn.py", package / "models" / "new.py")
    build = package / "models" / "build.py"
    append(build, "from jaxunlearn.models.new import CNN as New\n")
    append(build, 'MODELS["new"] = functools.partial(shipped, New)\n')
    append(package / "metrics" / "evaluate.py")
    append(package / "report" / "sheets.py")
    assert keys() == before
    append(package / "methods" / "saliency.py")
    edited = keys()
    assert {name for name in before if edited[name] != before[name]} == {"salun", "masked"}
    append(package / "methods" / "random_label.py")
    edited, again = keys(), edited
    assert {name for name in before if edited[name] != again[name]} == {"salun"}
    append(package / "models" / "resnet.py")
    assert keys() == edited  # another architecture than the one that is used
    append(package / "training" / "step.py")
    final = keys()
    assert all(final[name] != edited[name] for name in before)
