"""Names of a user's own code, from files as a user has them."""

import sys

import pytest

from jaxunlearn import names
from jaxunlearn.errors import UserError

TABLE = {"finetune": 1, "salun": 2}
MINE = """
from pathlib import Path

def passes(task, config):
    yield

class Group:
    inner = 3

value = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (
        ("mine_a", MINE),
        ("mine_b", "import nosuchpackage"),
        ("mine_c", "1 / 0"),
        ("mine_d", "def f(:"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    for name in ("mine_a", "mine_b", "mine_c", "mine_d"):
        sys.modules.pop(name, None)


def test_a_table_has_its_names_and_a_path_its_object(folder):
    assert names.resolve("method", "salun", TABLE) == 2
    assert names.resolve("method", "mine_a:passes", TABLE).__name__ == "passes"
    assert names.by_path("mine_a:Group.inner") == 3
    assert names.by_path("mine_a:value") == 7


@pytest.mark.parametrize(
    "name, message",
    [
        ("saluun", r"unknown method 'saluun': did you mean 'salun'\? .*MODULE:NAME for your own"),
        ("mine_a:pases", r"unknown name in mine_a 'pases': did you mean 'passes'.*Group, passes$"),
        ("mine_a:Group.iner", "did you mean 'inner'"),
        ("mine_x:passes", "there is no module 'mine_x'; start in the folder"),
        ("mine_a.sub:passes", "'mine_a' is not a package|no module 'mine_a.sub'"),
        ("mine_b:passes", "importing mine_b fails: No module named 'nosuchpackage'"),
        ("mine_c:passes", "importing mine_c fails: division by zero"),
        ("mine_d:f", "importing mine_d fails: .*invalid syntax"),
        (":passes", "must be MODULE:NAME"),
        ("mine_a:", "must be MODULE:NAME"),
        (".mine_a:passes", "importing .mine_a fails"),
    ],
)
def test_what_is_wrong_is_one_line(folder, name, message):
    with pytest.raises(UserError, match=message) as caught:
        names.resolve("method", name, TABLE)
    assert "\n" not in str(caught.value)
