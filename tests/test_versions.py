"""What setup.cfg asks for: all that the package imports, at versions that .ci/run has tried."""

import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn"}


def declared(section, *keys):
    """What entries of setup.cfg require: name -> lowest version, None where any will do."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    given = [line for key in keys for line in setup[section][key].strip().splitlines()]
    lines = [line.partition(";")[0].strip() for line in given]  # without the platforms
    found = [re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?(?:[>=]=([\d.]+))?", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] for match in found}


def imported(tree):
    """The names of the third-party packages that a module imports, wherever in it."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.append(node.module)
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"jaxunlearn"}
    return {IMPORTED_AS.get(top, top.replace("_", "-")) for top in tops}


def test_the_lowest_versions_tried_are_those_that_setup_cfg_allows():
    lines = (ROOT / ".ci/lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    core, test = declared("options", "install_requires"), declared("options.extras_require", "test")
    assert tried == core | test


def test_all_that_the_package_imports_is_declared():
    core = set(declared("options", "install_requires"))
    optional = ("tfds", "safetensors", "equinox")
    options = (declared("options.extras_require", extra) for extra in optional)
    extras = set().union(*options)
    used = set()
    for path in [*ROOT.glob("jaxunlearn/**/*.py"), *ROOT.glob("configs/*.py")]:
        tree = ast.parse(path.read_text())
        used |= imported(tree)
        assert imported(tree) <= core | extras, path
        if path.name == "equinox.py":
            continue  # who has such a module has it; this is imported where one is met
        # What a plain installation lacks is imported where it is asked for, not at the top.
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imported(ast.Module(top, [])) <= core, path
    assert {"jax", "scikit-learn", "tensorflow-datasets", "safetensors"} <= used
