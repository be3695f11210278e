"""The command line as a user meets it: real processes, real kills."""

import os
import re
import signal
import sys
import time

import pytest
import toy
from process import ROOT, environment, finish, start

from jaxunlearn import allocator, main, store
from jaxunlearn.errors import UserError

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import toy

def get_config():
    config = toy.experiment_config({data!r})
    config.train.epochs = 60
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    data = toy.write_npz(tmp_path / "data.npz")
    path.write_text(CONFIG.format(tests=str(ROOT / "tests"), data=data), "utf-8")
    return path


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_to_the_same_bits(config_file, tmp_path):
    workdir = tmp_path / "killed" / "run"
    process = start(f"--config={config_file}", f"--workdir={workdir}")
    deadline = time.monotonic() + 240
    while not list((workdir.parent / "store").glob("[!.]*.pass-*")):  # a dot: still being written
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / "metrics.json").exists()

    code, out, err = finish(f"--config={config_file}", f"--workdir={workdir}")
    assert code == 0, err
    assert "resumed after epoch" in out
    straight = tmp_path / "straight" / "run"
    code, out, err = finish(f"--config={config_file}", f"--workdir={straight}")
    assert code == 0 and "resumed" not in out, err
    for file in sorted((straight / "predictions").iterdir()):
        here, there = store.read_npz(file), store.read_npz(workdir / "predictions" / file.name)
        assert all(here[name].tobytes() == there[name].tobytes() for name in here)
    assert not list((workdir.parent / "store").glob("[!.]*.pass-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize("given", [None, "", "glibc.malloc.check=0"])
def test_the_allocator_is_set_up_once_and_a_users_own_settings_are_kept(tmp_path, given):
    config = tmp_path / "config.py"
    config.write_text(
        "import os, sys\n"
        "def get_config():\n"
        "    print((os.environ['GLIBC_TUNABLES'], sys.argv[1:]))\n"
    )
    env = environment()
    env.pop("GLIBC_TUNABLES", None)
    if given is not None:
        env["GLIBC_TUNABLES"] = given
    flags = [f"--config={config}", "--workdir=a b"]
    _, out, _ = finish(*flags, env=env)
    assert out.strip() == repr((allocator.TUNABLES if given is None else given, flags))


@pytest.mark.slow
def test_control_c_is_one_line(config_file, tmp_path):
    process = start(f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "store").glob("[!.]*.pass-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "jaxunlearn: interrupted; rerun the same command to resume"


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "no config given; give one such as --config=configs/quickstart.py"),
        (["--config=configs/nowhere.py"], f"nowhere.py does not exist in {ROOT}/configs; give one"),
        ([QUICKSTART, "--config.modle.width=3"], "of config 'modle': did you mean 'model'?"),
        ([QUICKSTART, "--config.model.width.x=3"], "config.model.width is a value, without fields"),
        ([QUICKSTART, "--config.model.width=x"], "--config.model.width must be an integer, got"),
        (
            [QUICKSTART, "--config.methods.neggrad.lr=1"],
            "--config.methods.neggrad.lr=1: unknown field of config.methods 'neggrad': allowed: "
            "finetune, random_label, salun, salun_cra; a new one needs a config file",
        ),
        ([QUICKSTART, "--config.methods['neggrad'].lr=1"], "field of config.methods 'neggrad'"),
        (
            [QUICKSTART, "--config.methods=finetune"],
            "set field by field, such as --config.methods.FIELD=VALUE, got 'finetune'",
        ),
        ([QUICKSTART, "--config.retrained=no"], "--config.retrained must be true or false, got"),
        ([QUICKSTART, "--dry_run=yes"], "--dry_run must be true or false, got 'yes'"),
        (
            [QUICKSTART, "--config.requests=({'groups': (1,)"],
            "--config.requests must be values with commas between them, texts in quotes and every "
            "bracket closed, such as 1,2 or ('P17','P42'), got \"({'groups': (1,)\"",
        ),
        (
            [QUICKSTART, "--config.forget.ids=P17,12_1"],
            "--config.forget.ids has 12_1, which without quotes is the number 121; give",
        ),
        ([QUICKSTART, "--config.forget.ids", "(0x1F, '12_1')"], "0x1F, which without quotes is"),
        (["--confg=configs/quickstart.py"], "Did you mean: config"),
        ([QUICKSTART, "seeds=3"], "unexpected argument 'seeds=3'"),
        ([QUICKSTART, "--config.model.width=0"], "1 or more, got 0"),
        (
            ["--config=configs/breastmnist_salun_cra.py", "--config.data.path=/nowhere.npz"],
            "/nowhere.npz",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_2(tmp_path, flags, message):
    code, out, err = finish(*flags, f"--workdir={tmp_path / 'run'}")
    assert code == 2, err
    assert err.startswith("jaxunlearn: ") and message in err
    assert len(err.strip().splitlines()) == 1 and out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["jaxunlearn.main", "jaxunlearn.pool"])
def test_a_flag_is_no_folder_of_results(tmp_path, module):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'name': 'x'})\n"
    )
    given = [f"--config={config}"] if module == "jaxunlearn.main" else ["a", "b"]
    code, out, err = finish(*given, "--workdir", "--dry_run", module=module, cwd=tmp_path)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "--workdir=--dry_run: a folder must not start with -; give --workdir=FOLDER" in err
    assert list(tmp_path.iterdir()) == [config]


def test_help_ends_with_where_fields_are_explained():
    code, out, err = finish("--help")
    assert code == 0 and err == "" and "--workdir" in out
    assert "docs/configs.md and jaxunlearn/config.py" in out.splitlines()[-1]


@pytest.mark.parametrize(
    "given, message",
    [
        ("configs/quickstrat.py", "in {}/configs; did you mean 'quickstart.py'?"),
        ("configs/other.py", "in {}/configs; give one such as --config=configs/quickstart.py"),
        ("config/quickstart.py", "there is no folder {}/config; give the file's whole path"),
        ("configs", "configs is no file"),
        ("configs/quickstart.py:0.5", "takes no argument; give --config=configs/quickstart.py"),
        ("configs/needs.py", "needs an argument; give --config=configs/needs.py:ARGUMENT"),
    ],
)
def test_a_config_that_cannot_be_had(given, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("def get_config(): pass")
    (tmp_path / "configs" / "needs.py").write_text("def get_config(share): pass")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main.load_config(given)
    assert message.format(tmp_path) in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "text, message",
    [
        ("import nosuchpackage", "No module named 'nosuchpackage'"),
        ("def get_config(:", "invalid syntax"),
        ("def get_config():\n    return 1 / 0", "division by zero"),
        (
            "from jaxunlearn import default\ndefault().batch_size = 3",
            "line 2: unknown field 'batch_size'; there is config.eval.batch_size and config.train.",
        ),
        (
            "from jaxunlearn import default\ndefault().forget.gruops = 3",
            "line 2: unknown field 'gruops'; did you mean 'groups'",
        ),
        ("def get_config():\n    pass", "returned None; end it with `return config`"),
        ("x = 1", "get_config"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_one_line(tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    code, _, err = finish(f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    *before, last = err.strip().splitlines()
    assert code == 2 and last.startswith("jaxunlearn: ") and message in last, err
    assert not before or "get_config() returned None" in before[-1]  # absl's own warning


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_loads_and_passes_the_check(path):
    from jaxunlearn import config as config_lib
    from jaxunlearn import grid

    space = {}
    exec(compile(path.read_text("utf-8"), path, "exec"), space)
    config = space["get_config"]()
    for cell in grid.cells(config):
        config_lib.check(cell.config)
    assert config.name == path.stem


def test_a_config_that_is_not_here_is_the_installed_one(tmp_path, monkeypatch):
    installed = tmp_path / "jaxunlearn" / "configs" / "quickstart.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "jaxunlearn" / "main.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "_users_own", lambda path, function: function())
    text = "from ml_collections import ConfigDict\ndef get_config(*given):\n"
    installed.write_text(text + "    return ConfigDict({'name': 'installed', 'given': given})")
    assert main.load_config("configs/quickstart.py").name == "installed"
    assert main.load_config("configs/quickstart.py:5:6").given == ("5:6",)
    here = tmp_path / "configs" / "quickstart.py"
    here.parent.mkdir()
    here.write_text(text + "    return ConfigDict({'name': 'here', 'given': given})")
    assert main.load_config("configs/quickstart.py").name == "here"
    colon = tmp_path / "a:b.py"
    colon.write_text(here.read_text())
    assert main.load_config(f"{colon}").given == ()
    assert main.load_config(f"{colon}:x").given == ("x",)
    for missing in ("configs/other.py", "jaxunlearn/quickstart.py", "../configs/x.py", "configs"):
        with pytest.raises(SystemExit):
            main.load_config(missing)


def until_a_point_is_kept(process, store_folder):
    deadline = time.monotonic() + 240
    while not list(store_folder.glob("[!.]*.pass-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopped_by_the_system_it_keeps_its_last_epoch(config_file, tmp_path):
    """As a cluster's time limit does; --config.checkpoint_every is far from the last epoch."""
    flags = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    process = start(*flags, "--config.checkpoint_every=10", "--config.train.epochs=5000")
    until_a_point_is_kept(process, tmp_path / "store")
    time.sleep(0.3)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.strip() == "jaxunlearn: stopped; rerun the same command to resume"
    assert list((tmp_path / "store").glob("*.pass-*"))
    store.Store(tmp_path / "store", print)  # what a writer's thread still made is swept
    assert not [p for p in (tmp_path / "store").iterdir() if ".tmp-" in p.name]


def test_runs_at_once_train_every_model_once_and_give_the_same(config_file, tmp_path):
    """Four start together on one store; two share a folder of results."""
    runs = [tmp_path / name for name in ("a", "b", "c", "c")]
    flags = [f"--config={config_file}", f"--config.store={tmp_path / 'store'}"]
    processes = [start(*flags, f"--workdir={run}", "--config.train.epochs=8") for run in runs]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    trained = sum(out.count("100%") for out, _ in ends)
    assert trained == 3  # original, retrained, finetune
    assert not any("damaged" in out or "twice" in out for out, _ in ends)
    assert len(list((tmp_path / "store").iterdir())) == 3
    for file in sorted((tmp_path / "a" / "predictions").iterdir()):
        for run in runs[1:3]:
            assert file.read_bytes() == (run / "predictions" / file.name).read_bytes()


def test_control_c_before_the_run_has_begun_is_one_line(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import time\nprint('loading', flush=True)\ntime.sleep(300)")
    process = start(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "jaxunlearn: interrupted; rerun the same command to resume"


def test_brackets_colons_and_a_terminal_without_unicode(config_file, tmp_path):
    """What a user's folders and shell may be like, in one run."""
    folder = tmp_path / "[old] runs:10*"
    env = environment(PYTHONUTF8="0", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0")
    flags = [
        f"--config={config_file}",
        f"--workdir={folder / '[/b]run'}",
        f"--config.store={folder / '[x]store'}",
        "--config.train.epochs=2",
    ]
    for _ in range(2):  # the second from what the first has stored
        code, out, err = finish(*flags, env=env)
        assert code == 0, err
        assert f"Results: {folder / '[/b]run'}" in out
    assert (folder / "[/b]run" / "metrics.json").exists() and (folder / "[x]store").is_dir()


def test_a_pipe_that_closes_is_left_in_silence(config_file, tmp_path):
    process = start(f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    with process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode in (1, 128 + signal.SIGPIPE) and err == ""


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--workdir=gs://bucket/run", "--workdir must be on this machine's file system"),
        ("--config.store=s3://bucket", "config.store must be on this machine's file system"),
        ("--workdir=~nosuchuser/run", "there is no such user's home folder"),
        (f"--workdir=/tmp/{'x' * 300}", "a name of 300 bytes; allowed: up to 255"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(flag, message, tmp_path, monkeypatch):
    from jaxunlearn import config as config_lib
    from jaxunlearn import experiment

    monkeypatch.chdir(tmp_path)
    config, workdir = config_lib.default(), "run"
    if flag.startswith("--workdir="):
        workdir = flag.removeprefix("--workdir=")
    else:
        config.store = flag.removeprefix("--config.store=")
    config.data.count = 10
    with pytest.raises(UserError, match=re.escape(message)):
        experiment.run(config, workdir)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pathmnist_shaped_file_goes_through_the_published_config(tmp_path):
    """Nine classes, RGB, labels [N, 1], made binary by the config's malignant classes."""
    data = toy.write_npz(
        tmp_path / "path.npz", (2000, 300, 600), num_classes=9, channels=3, size=16, groups=False
    )
    code, out, err = finish(
        "--config=configs/pathmnist_salun_cra.py",
        f"--config.data.path={data}",
        "--config.data.size=16",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.name=cnn",
        "--config.model.width=8",
        "--config.train.epochs=2",
        "--config.methods.finetune.epochs=1",
        *(
            f"--config.methods.{name}{how}.epochs=1"
            for name in ("random_label", "salun", "salun_cra")
            for how in ("", "_once", "_flip")
        ),
    )
    assert code == 0, err
    predictions = store.read_npz(tmp_path / "run" / "predictions" / "salun_cra-seed0.npz")
    assert predictions["test_logits"].shape == (600, 2)
    assert "salun_cra_flip" in out
