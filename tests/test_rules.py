"""What a setting may be, and the one wording of what it may not."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import rules
from jaxunlearn.errors import UserError
from jaxunlearn.rules import Rule


@pytest.mark.parametrize(
    "rule, fit, unfit",
    [
        (rules.one_of(("sgd", "adam")), ["sgd"], ["sdg", None, 3, [], ()]),
        (rules.one_of({"sgd": 1}), ["sgd"], ["sdg", {}]),
        (rules.at_least(0), [0, 0.5, np.float32(2)], [-1e-9, float("nan"), "a", None, True]),
        (rules.above(0), [1e-9, 1e9], [0, float("nan"), None, float("inf"), 2e9, 10**400, True]),
        (rules.between(0, 1), [0, 1, 0.5], [-0.1, 1.1, float("nan"), "0"]),
        (rules.below(0, 1), [0, 0.999], [1, -0.1, float("nan")]),
        (rules.SEED, [0, 2**32 - 1, np.uint32(7)], [-1, 2**32, 0.0, True]),
        (
            rules.WORD,
            ["a b", "[x]", "ä", ".5"[1:]],
            ["", " ", ".x", "a/b", "a|b", "a\n", "a\0", "x" * 151, 3],
        ),
        (rules.whole(1), [1, 7, np.int64(3), 10**6], [0, 10**6 + 1, 1.0, 2.5, True, "1", None]),
        (rules.whole_numbers(0), [(), (0, 3), [np.int32(2)]], [(-1,), (0.5,), ("a",), 3, (True,)]),
        (rules.whole_numbers(), [(-5,)], [(0.5,)]),
        (rules.numbers(), [(), (0.5, -1)], [("a",), 0.5, None]),
        (rules.numbers(lambda x: x > 0, counts=(1, 3)), [(1,), (1, 2, 3)], [(), (1, 2), (0,)]),
    ],
)
def test_what_fits(rule, fit, unfit):
    for value in fit:
        rules.check({"it": value}, {"it": rule}, "config")
    for value in unfit:
        with pytest.raises(UserError, match=r"^config\.it must be "):
            rules.check({"it": value}, {"it": rule}, "config")


@pytest.mark.parametrize(
    "rule, value, message",
    [
        (rules.at_least(0), -1, "config.train.lr must be 0 or more, got -1"),
        (rules.above(0), 0, "config.train.lr must be more than 0, got 0"),
        (
            rules.above(0),
            float("inf"),
            "config.train.lr must be more than 0 and at most 1e+09, got inf",
        ),
        (
            rules.whole(1),
            2**32,
            "config.train.lr must be a whole number, 1 or more and at most 1000000, got 4294967296",
        ),
        (rules.between(0, 1), 2, "config.train.lr must be 0 to 1, got 2"),
        (rules.below(0, 1), 1, "config.train.lr must be 0 to below 1, got 1"),
        (rules.whole(1), 2.5, "config.train.lr must be a whole number, 1 or more, got 2.5"),
        (
            rules.one_of(("constant", "cosine")),
            "cosin",
            "config.train.lr must be one of constant, cosine, got 'cosin'; did you mean 'cosine'?",
        ),
        (rules.one_of(("a", "b")), "zzz", "config.train.lr must be one of a, b, got 'zzz'"),
        (Rule(lambda value: 1 / 0 > value, "x"), 1, None),
    ],
)
def test_the_message(rule, value, message):
    settings = ConfigDict({"train": {"lr": value}})
    if message is None:  # a rule that is itself wrong is not the user's error
        with pytest.raises(ZeroDivisionError):
            rules.check(settings, {"train.lr": rule}, "config")
        return
    with pytest.raises(UserError) as caught:
        rules.check(settings, {"train.lr": rule}, "config")
    assert str(caught.value) == message


def test_what_the_settings_lack_is_not_checked():
    rules.check({}, {"it": rules.whole(1), "mask.ratio": rules.between(0, 1)}, "config")


def test_a_plain_pair_is_a_rule_too():
    with pytest.raises(UserError, match=r"config\.it must be 0 to 1, got 2"):
        rules.check({"it": 2}, {"it": (lambda value: 0 <= value <= 1, "0 to 1")}, "config")


def test_a_table_that_grows_is_read_when_it_is_needed():
    table = {"a": 1}
    rule = rules.one_of(table)
    table["b"] = 2
    rules.check({"it": "b"}, {"it": rule}, "config")
    with pytest.raises(UserError, match="one of a, b, got 'c'"):
        rules.check({"it": "c"}, {"it": rule}, "config")
