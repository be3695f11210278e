import io

import pytest
from rich.console import Console

from jaxunlearn.report import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def lines(clock, updates, **options):
    """What is printed by updates of (seconds since the last, share, images, loss, accuracy)."""
    out = io.StringIO()
    calls = []
    console = Console(file=out, width=100, **options)
    with progress.progress(console, "seed 0 · it", lambda: calls.append(clock.now)) as update:
        for seconds, *update_args in updates:
            clock.now += seconds
            update(*update_args)
    assert len(calls) == len(updates)  # a sign of life to those who wait for the model
    return out.getvalue()


def test_plain_lines_come_now_and_then_and_one_at_the_end(clock):
    updates = [(40.0, 0.25, 64, 1.0, 0.5), (2.0, 0.5, 64, 0.7, 0.75), (20.0, 1.0, 64, 0.5, 1.0)]
    first, last = lines(clock, updates).splitlines()
    # 40 s were compiling: no rate yet, and the time left is told by the whole
    assert first == "seed 0 · it:  25%   120 s left          started  loss 1.000  accuracy  50.0%"
    # 128 images in the 22 s since the first were done
    assert last == "seed 0 · it: 100%     0 s left       6 images/s  loss 0.500  accuracy 100.0%"


def test_what_is_left_is_told_by_what_this_run_has_done_itself(clock):
    updates = [(0.0, 0.9, 0, 0.2, 0.9), (40.0, 0.95, 64, 0.1, 0.9), (20.0, 1.0, 64, 0.1, 1.0)]
    assert ":  95%    40 s left          started" in lines(clock, updates)
    # A second stage makes the whole longer: its first pass ends at a half again.
    updates = [(40.0, 1.0, 64, 0.1, 0.9), (20.0, 0.5, 64, 0.1, 1.0), (20.0, 0.75, 64, 0.1, 1.0)]
    assert lines(clock, updates).startswith("seed 0 · it:  75%    20 s left       3 images/s")


def test_nothing_to_do_is_said(clock):
    assert lines(clock, []) == "seed 0 · it: nothing to do\n"


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one cannot draw it
    text = lines(clock, [(1.0, 0.5, 10, 0.25, 0.5)], force_terminal=True)
    assert "seed 0 · it" in text and "50%" in text and "loss 0.250" in text
