"""Every code block of the README and the docs: Python runs, and commands are understood."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags
from PIL import Image

from jaxunlearn import config as config_lib
from jaxunlearn import plan
from jaxunlearn.data.load import load
from jaxunlearn.models import build

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    (ROOT / name)
    for name in ("README.md", "CONTRIBUTING.md", "launch/README.md", *ROOT.glob("docs/**/*.md"))
)
BLOCKS = [
    (page.relative_to(ROOT), block)
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
]
COMMANDS = [
    (page.relative_to(ROOT), command)
    for page in PAGES
    for command in re.findall(r"python -m jaxunlearn\.main[^\n`&|]*", page.read_text())
    if "--config" in command and "…" not in command
]
LAUNCHES = [
    (page.relative_to(ROOT), command)
    for page in [*PAGES, *ROOT.glob("launch/*.py"), ROOT / "launch" / "k8s" / "job.yaml"]
    for command in re.findall(r"python -m launch\.[^\n`&|]*", page.read_text())
]


def test_there_are_some():
    assert len(BLOCKS) >= 5 and len(COMMANDS) >= 6


def write_images(folder):
    """PNGs of one grey each, and the list of them."""
    lines = ["file,label,set,patient"]
    sets = ["train", "train", "train", "val", "test"]
    for i, which in enumerate(sets):
        Image.new("L", (40, 30), 90 * i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('nevus', 'melanoma')[i % 2]},{which},P{i // 2}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("page, block", BLOCKS, ids=lambda value: str(value)[:30])
def test_python_runs(page, block, tmp_path, monkeypatch):
    """In an empty folder, which it may write to; what `get_config` returns passes the check."""
    if "import equinox" in block:
        pytest.importorskip("equinox")
    if "jaxunlearn.models.nnx" in block and not hasattr(nnx, "data"):
        pytest.skip("nnx modules need flax 0.12 or newer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in re.findall(r"^# (\w+\.py)\n(.*?)(?=^# \w+\.py\n|\Z)", block, re.M | re.S):
        (tmp_path / name).write_text(text)
        block = text
    names = {"__name__": "example"}
    if "images.csv" in block:
        write_images(tmp_path)
    exec(compile(block, str(page), "exec"), names)
    if "images.csv" in block:
        config = config_lib.default()
        config.data.name, config.data.path = "npz", "mine.npz"
        made = load(config.data)
        assert made.class_names == ("nevus", "melanoma") and made.train.images[1, 0, 0, 0] == 90
        assert made.train.labels.tolist() == [0, 1, 0] and made.train.groups.tolist() == [0, 0, 1]
    if "get_config" in names:
        config_lib.check(names["get_config"]())
    if "entries" in names:
        config = config_lib.default()
        config.methods = names["entries"]
        config_lib.check(config)


def test_a_wrapper_takes_greyscale_images_into_a_model_of_rgb():
    (block,) = (block for _, block in BLOCKS if "def imagenet" in block)
    names: dict = {}
    exec(block, names)
    init, apply = names["imagenet"]()
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 1))
    variables = init(jax.random.key(1), images[:1])
    assert variables["params"]["Conv_0"]["kernel"].shape[2] == 3
    logits, _ = apply(variables, images, False, None)
    net = build("resnet18", num_classes=1000)
    rgb = jax.numpy.concatenate([images] * 3, axis=-1)
    assert logits.shape == (2, 1000)
    assert (logits == net.apply(variables, rgb, False, None)[0]).all()


@pytest.mark.parametrize("page, command", LAUNCHES, ids=lambda value: str(value)[:60])
def test_flags_of_launch_are_there(page, command):
    importlib.import_module(command.split()[2])
    known = {"config", *flags.FLAGS}
    names = set(re.findall(r"(?<= --)[\w-]+", command))
    assert names <= known and (ROOT / f"{command.split()[2].replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in (link for link in links if "://" not in link):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert heading in [title.lower().replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("page, command", COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_are_understood(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)[3:]
    if arguments[0] == "--config=my.py":  # the reader's own file, which the page shows
        return
    monkeypatch.setattr(sys, "argv", ["jaxunlearn", *arguments])  # where overrides are looked for
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    assert values(sys.argv) == ["jaxunlearn"]  # nothing is left over
    config_lib.check(values["config"].value)
    assert plan.cells(values["config"].value)
