"""The command line: `python -m jaxunlearn.main --config=configs/NAME.py --workdir=DIR`.

This file is kept short: flags and one call. `jaxunlearn.experiment.run` is what notebooks and tests
call.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from jaxunlearn import allocator
from jaxunlearn.errors import UserError, one_line

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/; --config.FIELD=VALUE overrides a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where results go; default: runs/NAME, NAME the config's."
)


def main(argv: list[str]) -> None:
    """Runs the config's experiment; a user's error ends in one line and exit code 2."""
    no_more(argv)
    from jaxunlearn import experiment

    try:
        experiment.run(CONFIG.value, WORKDIR.value or f"runs/{CONFIG.value.name}")
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(
            "jaxunlearn: interrupted; rerun the same command to resume", file=sys.stderr, flush=True
        )
        os._exit(130)  # exit now: writer threads would print tracebacks on shutdown


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what a user can get wrong in them is one line too."""
    argv = [argv[0], "--verbosity=-1", *argv[1:]]  # INFO is a page of storage details per model
    if "--help" in argv:
        return app.parse_flags_with_usage(argv)
    argv = [find_config(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["config"].present:
            fail("no config given; give one such as --config=configs/quickstart.py")
        if CONFIG.value is None:
            fail("the config's get_config() returned None; end it with `return config`")
        _ = CONFIG.value.name  # a file that could not be loaded raises only when it is read
        return rest
    except Exception as error:  # a config file is the user's own code, and may raise anything
        text = str(error)
        if "Traceback" in text:  # a config file's own failure: what went wrong is its last line
            fail(f"the config file fails: {text.strip().splitlines()[-1]}")
        text = one_line(error)
        if isinstance(error, KeyError) and " " not in text:
            fail(f"the config has no field {text!r} where a flag sets one")
        fail(f"the flags are not understood: {text}")


def find_config(argument: str) -> str:
    """The argument; where it is --config=configs/NAME.py without such a file, the installed one."""
    path, colon, rest = argument.removeprefix("--config=").partition(":")
    if not argument.startswith("--config=") or os.path.exists(path):
        return argument
    installed = Path(__file__).parent / path
    if Path(path).parts[:-1] != ("configs",) or not installed.exists():
        fail(f"no config file {path}; give one such as --config=configs/quickstart.py")
    return f"--config={installed}{colon}{rest}"


def no_more(argv: list[str]) -> None:
    """Rejects positional arguments."""
    if argv[1:]:
        fail(
            f"unexpected argument {' '.join(argv[1:])!r}; flags start with --, "
            "such as --config.seeds=0,1,2"
        )


def fail(message: str) -> NoReturn:
    """Ends the program with one line and exit code 2."""
    print(f"jaxunlearn: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    app.run(main, flags_parser=parse)
