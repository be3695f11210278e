"""The commands as a user starts them, whatever the shell that pytest itself was started from."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What a shell may have set and a test must not depend on.
SHELLS = ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "PYTHONWARNINGS")


def environment(**changes):
    """The surroundings of a child: one device, as a user has; UTF-8; this checkout's package."""
    kept = {name: value for name, value in os.environ.items() if name not in SHELLS}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    fixed = {"XLA_FLAGS": "", "PYTHONUTF8": "1", "PYTHONPATH": path}
    return {**kept, **fixed, **changes}


def start(*flags, module="jaxunlearn.main", cwd=ROOT, env=None):
    """Starts a command of the package; the process."""
    # A shell starts background jobs with SIGINT ignored, which children inherit, whereas a handler
    # becomes the default one. Not by preexec_fn, which can deadlock beside JAX's threads.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=cwd,
            env=env or environment(),
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(*flags, **options):
    """Runs a command to its end; exit code, stdout, stderr."""
    process = start(*flags, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
