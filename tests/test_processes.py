"""Several processes that compute one run: the numbers of one, and how they end together."""

import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import process
import pytest
import toy

from jaxunlearn import processes, runtime_log, store
from jaxunlearn.errors import UserError

CONFIG = """
from jaxunlearn.config import default, methods

def get_config():
    config = default()
    config.name = "toy"
    config.data.name, config.data.path, config.data.malignant = "npz", {path!r}, (1,)
    config.model.name = "tiny:Tiny"
    config.train.epochs, config.train.batch_size = {epochs}, 16
    config.checkpoint_every = 1
    config.methods = methods({methods})
    return config
"""
# Compiles in a moment; what devices must agree on is in it, batch norm's moments too.
MODEL = """
import flax.linen as nn

from jaxunlearn.models.layers import BatchNorm


class Tiny(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(BatchNorm()(nn.Dense(8)(images), train))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
"""
METHODS = 'salun={"epochs": 1, "batch_size": 16, "mask": {"ratio": 0.5}}'


def write_config(folder, **changes):
    values = {"path": toy.write_npz(folder / "data.npz"), "epochs": 2}
    (folder / "tiny.py").write_text(MODEL)
    (folder / "config.py").write_text(CONFIG.format(**{**values, "methods": METHODS, **changes}))
    return folder / "config.py"


def start(config, workdir, count, devices=1):
    """Starts the processes of a run; each has a config of its own where there are several."""
    configs = config if isinstance(config, list) else [config] * count
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flag = f"--xla_force_host_platform_device_count={devices}"
    return [
        process.start(
            f"--config={configs[i]}",
            f"--workdir={workdir}",
            f"--coordinator=localhost:{port}",
            f"--processes={count}",
            f"--process={i}",
            cwd=configs[i].parent,  # where the model is
            env=process.environment(XLA_FLAGS=flag),
        )
        for i in range(count)
    ]


def ends(started):
    """Exit code, stdout and stderr of each."""
    try:
        ended = [one.communicate(timeout=200) for one in started]
        return [(one.returncode, *texts) for one, texts in zip(started, ended, strict=True)]
    finally:
        for one in started:
            one.kill()


def alone_on(config, workdir, devices):
    """The same run by one process with so many devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = (f"--config={config}", f"--workdir={workdir}")
    environment = process.environment(XLA_FLAGS=flag)
    assert process.finish(*flags, cwd=config.parent, env=environment)[0] == 0


def entries(folder):
    """The stored models by key."""
    return {path.name: path for path in folder.glob("[0-9a-f]*") if "." not in path.name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    config = write_config(folder)
    alone_on(config, folder / "run", 4)
    return config, entries(folder / "store")


@pytest.mark.slow
@pytest.mark.parametrize("count, devices", [(2, 2), (4, 1)])
def test_several_processes_give_the_numbers_of_one_and_the_first_alone_writes(
    alone, tmp_path, count, devices
):
    config, models = alone
    first, *others = ends(start(config, tmp_path / "run", count, devices))
    assert first[0] == 0 and "Results: " in first[1] and first[2] == ""
    for code, out, err in others:
        assert code == 0 and err == ""
        assert not [line for line in out.splitlines() if not line.startswith("[Gloo]")]
    made = entries(tmp_path / "store")
    assert made.keys() == models.keys() and len(made) == 3
    for key, path in made.items():
        trees = [store.load_tree(p / "variables") for p in (path, models[key])]
        mine, theirs = (np.concatenate([*map(np.ravel, jax.tree.leaves(tree))]) for tree in trees)
        far = ~np.isclose(mine, theirs, rtol=1e-4, atol=1e-5)
        # Of weights whose gradients are equal but for rounding, a mask may take another.
        assert far.sum() <= 4 and np.abs(mine - theirs).max() < 0.01 and far.size > 1000
        mine, theirs = (store.read_npz(p / "logits.npz") for p in (path, models[key]))
        for which in mine:
            np.testing.assert_allclose(
                mine[which], theirs[which], atol=1e-4 if not far.any() else 0.05
            )
    machine = store.read_meta(path)["made_on"][0]["device"]
    assert machine == f"4 × cpu cpu, {count} processes"


@pytest.mark.slow
def test_when_one_is_killed_the_others_end_in_one_line_and_a_restart_gives_the_same_bits(tmp_path):
    methods = 'finetune={"epochs": 1, "batch_size": 16}'
    config = write_config(tmp_path, epochs=20, methods=methods)
    for killed in (1, 0):
        started = start(config, tmp_path / "run", 2)
        before = {path.name for path in (tmp_path / "store").glob("[0-9a-f]*.pass-*")}
        late = time.monotonic() + 100
        while {path.name for path in (tmp_path / "store").glob("[0-9a-f]*.pass-*")} <= before:
            assert time.monotonic() < late
            time.sleep(0.01)
        started[killed].send_signal(signal.SIGKILL)
        at = time.monotonic()
        told = ends(started)
        assert time.monotonic() - at < 60
        assert told[killed][0] == -signal.SIGKILL
        assert told[1 - killed][0] == 2 and told[1 - killed][2] == f"{processes.LOST}\n"
        assert not entries(tmp_path / "store")  # in the midst of the first model
    first, other = ends(start(config, tmp_path / "run", 2))
    assert first[0] == other[0] == 0 and "resumed after epoch" in first[1]
    # Of two summands the order does not count, so one process gives the same bits.
    alone_on(config, tmp_path / "whole" / "run", 2)
    made, whole = entries(tmp_path / "store"), entries(tmp_path / "whole" / "store")
    assert made.keys() == whole.keys()
    for key in made:
        assert toy.same_bits(
            *(store.load_tree(model / "variables") for model in (made[key], whole[key]))
        )


@pytest.mark.slow
def test_a_process_with_another_config_is_told_and_the_first_ends_too(tmp_path):
    (tmp_path / "other").mkdir()
    configs = [write_config(tmp_path), write_config(tmp_path / "other", epochs=4)]
    first, second = ends(start(configs, tmp_path / "run", 2))
    assert second[0] == 2 and "process 1 has another config, data, code or" in second[2]
    assert first[0] == 2 and first[2] == f"{processes.LOST}\n"


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, False),  # an allocation, without srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3"}, True),
        ({"SLURM_STEP_NUM_TASKS": "many"}, False),
    ],
)
def test_clusters_that_start_several_processes_are_known(variables, several):
    assert processes.cluster(variables) == several


@pytest.mark.parametrize(
    "flags",
    [("host", 2, 0), ("host:one", 2, 0), (":1", 2, 0), ("host:1", 2, 2), ("host:1", 2, -1)],
)
def test_flags_of_several_processes_that_do_not_fit_are_told(flags):
    with pytest.raises(UserError, match=r"--coordinator=HOST:PORT, --processes=N and --process=I"):
        processes.connect(*flags)


@pytest.mark.parametrize("flags", [("", 2, -1), ("", 0, 0), ("auto", 2, 0)])
def test_flags_of_several_processes_without_the_first_ones_address(flags):
    with pytest.raises(UserError, match="need --coordinator"):
        processes.connect(*flags)


def test_alone_a_process_asks_nobody():
    assert processes.is_first() and processes.from_first(lambda: (1, 2)) == (1, 2)
    assert not processes.is_lost(RuntimeError("UNAVAILABLE: Gloo"))
    processes.check_same(lambda: pytest.fail("there is no other"))


@pytest.mark.parametrize("rpc, said", [("PollForError", "gone"), ("RegisterTask", "alone")])
def test_what_the_runtime_says_of_lost_processes_becomes_one_line(rpc, said):
    log = f"""XLA says something useful
E1125 15:58:37.892396    4329 coordination_service_agent.cc:289] Polled an error.
Additional GRPC error information
:UNKNOWN:Error received from peer
F1125 15:58:37.892407    4329 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. This most likely indicates

RPC: /xla.coordination.CoordinationService/{rpc}
*** Check failure stack trace: ***
W1125 15:58:38.000000    4329 convolution.cc:12] slow
jaxunlearn: another line
"""
    command = [sys.executable, runtime_log.__file__, "gone", "alone"]
    ended = subprocess.run(command, input=log, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == [
        "XLA says something useful",
        "W1125 15:58:38.000000    4329 convolution.cc:12] slow",
        "jaxunlearn: another line",
        said,
    ]
    # The process itself was faster.
    ended = subprocess.run(command, input=f"gone\n{log}", capture_output=True, text=True)
    assert ended.stderr.splitlines().count("gone") == 1 and "alone" not in ended.stderr
