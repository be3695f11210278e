"""The command line: `python -m jaxunlearn.main --config=configs/quickstart.py`.

It is kept short: flags and one call. `jaxunlearn.experiment.run` is what notebooks and tests call.
"""

import ast
import contextlib
import inspect
import itertools
import os
import re
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

INTERRUPTED = b"jaxunlearn: interrupted; rerun the same command to resume\n"


def _leave(signum: int, frame: Any) -> NoReturn:
    """Ends at once, in one line: the imports below take seconds in which a user may think again."""
    os.write(2, INTERRUPTED)
    os._exit(128 + signum)


if __name__ == "__main__":
    from jaxunlearn.allocator import restart_with_huge_pages

    signal.signal(signal.SIGINT, _leave)
    # Control-C waits until the program that this one turns into can answer it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    restart_with_huge_pages()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

import logging  # noqa: E402
from pathlib import Path  # noqa: E402

from absl import app, flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from jaxunlearn import processes  # noqa: E402
from jaxunlearn.errors import Stopped, UserError, near, one_line, shown, unknown  # noqa: E402

WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where results go; default: runs/NAME, NAME the config's."
)
# As a flag does, where --workdir is given without a value and takes the next argument for it.
flags.register_validator(
    "workdir",
    lambda folder: not folder.startswith("-"),
    "a folder must not start with -; give --workdir=FOLDER",
)
flags.DEFINE_string(
    "config",
    None,
    "The experiment, a file of configs/; --config.FIELD=VALUE overrides a field.",
    allow_override=True,
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Tell what would be forgotten and trained, and train nothing."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of the first of several processes, or auto; not needed where SLURM, Open MPI or "
    "Cloud TPU has started them.",
)
PROCESSES = flags.DEFINE_integer("processes", 0, "How many there are; with --coordinator.")
PROCESS = flags.DEFINE_integer("process", -1, "Which one this is, from 0; with --coordinator.")
# What a flag's value must be, by its type, where absl has no words for it.
ALLOWED = {
    "bool": "true or false",
    "tuple": "values with commas between them, texts in quotes and every bracket closed, such as "
    "1,2 or ('P17','P42')",
}


def main(argv: list[str]) -> None:
    """Runs the config's experiment; a user's error ends in one line and exit code 2."""
    no_more(argv)
    config = flags.FLAGS.config
    with ending():
        processes.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        folder = WORKDIR.value or f"runs/{config.name}"
        if DRY_RUN.value:
            from jaxunlearn.rehearsal import rehearse

            rehearse(config, folder)
        else:
            from jaxunlearn import experiment

            experiment.run(config, folder)
        processes.disconnect()


class ending:
    """However the work in the context ends, a user sees one line of it at most."""

    def __enter__(self) -> None:
        for stream in (sys.stdout, sys.stderr):  # ± and × on a terminal that has no such signs
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        # Where one of Orbax's writers fails, which we tell of, all of them complain at length.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        threading.excepthook = lambda args: None
        sys.unraisablehook = lambda args: None
        sys.excepthook = _of_main_thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _stop)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # At once, as writer threads would print tracebacks.
        if isinstance(error, UserError):
            _end(str(error))
        if isinstance(error, KeyboardInterrupt):
            os.write(2, INTERRUPTED)
            os._exit(128 + signal.SIGINT)
        if isinstance(error, Stopped):
            os.write(2, b"jaxunlearn: stopped; rerun the same command to resume\n")
            os._exit(128 + signal.SIGTERM)
        if isinstance(error, BrokenPipeError):  # as `| head` leaves it: others say nothing either
            os._exit(128 + signal.SIGPIPE)
        if error is not None and processes.is_lost(error):
            os.write(2, f"{processes.LOST}\n".encode())
            os._exit(2)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            _end("the memory of this machine is not enough; lower batch_size or model.width")
        if isinstance(error, FileNotFoundError):  # a user's own files were looked at before
            _end(f"{one_line(error)}; rerun the same command, which makes it again")
        if isinstance(error, OSError):
            _end(f"{one_line(error)}; free some space, or give other folders")


def _of_main_thread(*error: Any) -> None:
    """Prints the traceback of a fault of ours, and none of TensorStore's threads."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(*error)


def _end(message: str) -> NoReturn:
    """`fail`, without waiting for threads."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"jaxunlearn: {UserError(message)}", file=sys.stderr, flush=True)
    os._exit(2)


def _stop(signum: int, frame: Any) -> NoReturn:
    """Lets the run keep its last point; the next signal of the kind ends it at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Stopped


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what a user can get wrong in them is one line too."""
    argv = [argv[0], "--verbosity=-3", *argv[1:]]  # the rest is storage details, a page per model
    if "--help" in argv:
        app.usage(shorthelp=True, writeto_stdout=True)
        print("\nThe config's fields are explained in docs/configs.md and jaxunlearn/config.py.")
        sys.exit()
    config = None
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        given, argv = _without_config(argv)
        if not given:
            flags.FLAGS(argv)  # a misspelt --config is told with its near match
            fail("no config given; give one such as --config=configs/quickstart.py")
        config = load_config(given)
        config_flags.DEFINE_config_dict("config", config, sys_argv=argv, allow_override=True)
        rest = flags.FLAGS(argv)
        _ = flags.FLAGS.config.name
        _check_ids(argv)
        return rest
    except (flags.Error, LookupError, AttributeError, ValueError, TypeError, OSError) as error:
        message = _unknown_field(argv, config) or _wrong_value(error)
        fail(message or f"the flags are not understood: {one_line(error)}")


def _unknown_field(argv: list[str], config: ConfigDict | None) -> str:
    """Which flag sets a field that the config has not, and those that it has; "" if none does."""
    for argument in argv if config is not None else ():
        # methods['NAME'] is a field too.
        name, *path = re.findall(r"[^.\[\]'\"]+", argument.partition("=")[0]) or [""]
        where, section = "config", config
        for field in path if name in ("--config", "-config") else ():
            if not isinstance(section, ConfigDict):
                return f"{argument}: {where} is a value, without fields; give --{where}=VALUE"
            if field not in section:
                new = "; a new one needs a config file" if where == "config.methods" else ""
                return f"{argument}: {unknown(f'field of {where}', field, section)}{new}"
            where, section = f"{where}.{field}", section[field]
    return ""


def _check_ids(argv: list[str]) -> None:
    """Ends where ids without quotes are numbers that are written otherwise: 12_1 would be 121."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if name != "config.forget.ids":
            continue
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", value if equals else following)
        for word in re.findall(r"(?<![\w.])\d[\w.]*", bare):
            with contextlib.suppress(ValueError, SyntaxError):  # no number
                if str(number := ast.literal_eval(word)) != word:
                    fail(
                        f"--config.forget.ids has {word}, which without quotes is the number "
                        f"{number}; give \"('{word}',)\""
                    )


def _wrong_value(error: Exception) -> str:
    """Which flag has a value that cannot be read, and what it must be; "" if another error."""
    given = str(error).removeprefix("flag --").removesuffix(f": {error.__context__}")
    name, _, value = given.partition("=")
    if not isinstance(error, flags.IllegalFlagValueError) or error.__context__ is None:
        return ""
    parser = flags.FLAGS[name].parser
    section = f"set field by field, such as --{name}.FIELD=VALUE"
    allowed = parser.syntactic_help or ALLOWED.get(parser.flag_type(), section)
    return f"--{name} must be {allowed}, got {shown(value)}"


def _without_config(argv: list[str]) -> tuple[str, list[str]]:
    """The last value of --config, "" where there is none, and the other arguments."""
    given, arguments = "", iter(argv)
    rest: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument == "--":
            return given, [*rest, argument, *arguments]
        if name in ("--config", "-config"):
            given = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    return given, rest


def load_config(given: str) -> ConfigDict:
    """The config that PATH or PATH:ARGUMENT gives; PATH may be one of the installed configs/."""
    path, argument = _find_config(given)
    module = sys.modules["config"] = types.ModuleType("config")
    module.__file__ = str(path)
    # Read as it is now: no bytecode that an edit within the same second would leave in force.
    _users_own(path, lambda: exec(compile(path.read_bytes(), path, "exec"), module.__dict__))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        fail(f"the config file {path} has no function get_config()")
    try:
        inspect.signature(get_config).bind(*argument)
    except TypeError:
        if argument:
            fail(f"--config={given}: its get_config() takes no argument; give --config={path}")
        fail(f"--config={given}: its get_config() needs an argument; give --config={path}:ARGUMENT")
    config = _users_own(path, lambda: get_config(*argument))
    if config is None:
        fail(f"get_config() of {path} returned None; end it with `return config`")
    if not isinstance(config, ConfigDict) or not isinstance(config.get("name"), str):
        fail(
            f"get_config() of {path} must return a config built on jaxunlearn.config.default(), "
            f"got {shown(config)}"
        )
    return config


def _users_own(path: Path, function: Callable[[], Any]) -> Any:
    """What the function of a config file returns; it may raise anything, and leave the program."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        line = getattr(error, "lineno", None)
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == str(path):
                line = frame.lineno
        where = f"{path}, line {line}" if line else path
        fail(f"the config file fails: {where}: {_no_field(error) or f'{kind}{one_line(error)}'}")


def _no_field(error: BaseException) -> str:
    """Which field a config has not, and those that are near; "" where that is not the error."""
    found = re.search(r'Key "(.*?)" does not exist and cannot be added', str(error))
    if not isinstance(error, AttributeError) or not found:
        return ""
    from flax.traverse_util import flatten_dict

    from jaxunlearn import config

    fields = flatten_dict(config.default().to_dict(), sep=".")
    sections = {path.rpartition(".")[0] for path in fields if "." in path}
    named = {f"config.{path}": path.rpartition(".")[2] for path in (*fields, *sections)}
    same = [path for path, name in named.items() if name == found[1]]
    close = near(found[1], named.values())
    advice = f"; there is {' and '.join(same)}" if same else close
    return f"unknown field {shown(found[1])}{advice}"


def _find_config(given: str) -> tuple[Path, list[str]]:
    """The config's file, and the argument of its function, if any."""
    path = given
    argument: list[str] = []
    while not os.path.isfile(path):
        installed = Path(__file__).parent / path
        if Path(path).parts[:-1] == ("configs",) and installed.is_file():
            return installed, argument
        path, colon, more = path.rpartition(":")  # a path may have colons of its own
        if not colon:
            fail(_no_config(Path(given.partition(":")[0])))
        argument = [":".join([more, *argument])]
    return Path(path), argument


def _no_config(path: Path) -> str:
    """Where a config file was looked for, and what is there in its place."""
    if path.exists():
        return f"the config file {path} is no file; give one such as --config=configs/quickstart.py"
    folders = [path.absolute().parent]
    if path.parts[:-1] == ("configs",):
        folders.append(Path(__file__).parent / "configs")
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        return (
            f"the config file {path} does not exist: there is no folder {folders[0]}; give the "
            f"file's whole path, or start where {path.parent} is"
        )
    advice = near(path.name, {file.name for folder in there for file in folder.glob("*.py")})
    advice = advice or "; give one such as --config=configs/quickstart.py"
    return f"the config file {path} does not exist in {' or '.join(map(str, there))}{advice}"


def no_more(argv: list[str]) -> None:
    """Rejects positional arguments."""
    if argv[1:]:
        fail(
            f"unexpected argument {shown(' '.join(argv[1:]))}; flags start with --, "
            "such as --config.seeds=0,1,2"
        )


def fail(message: str) -> NoReturn:
    """Ends the program with one line and exit code 2."""
    print(f"jaxunlearn: {UserError(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
