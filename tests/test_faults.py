"""A part of `benchmarks/faults.py`; kills, runs at once and full disks have tests of their own."""

import subprocess
import sys

import pytest
from process import ROOT, environment


@pytest.mark.slow
def test_what_goes_wrong_is_told_and_changes_nothing():
    few = ["--kills=0", "--rounds=0", "--disks=0", "--damages=5", "--inputs=60", "--files=60"]
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), *few]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'tried': 60" in done.stdout and "'tried': 5" in done.stdout
