"""Several processes, such as one on each host, that compute one run together.

All of them follow the same flow, on a mesh of all their devices. The first alone has the store and
the results; what the others need of these it tells them, so that no folder must be shared. When one
process ends, the others end too, and the same command goes on from the last point in the store.
"""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.errors import UserError, one_line

PATIENCE = 300  # seconds to wait for the others at the start
HEARTBEAT = 30  # seconds of silence after which a process counts as dead
# By each cluster's variable for how many processes it has started: JAX knows how to join these.
CLUSTERS: dict[str, Callable[[str], int]] = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda hosts: len(hosts.split(",")),
}
ALONE = (
    f"jaxunlearn: the other processes of this run did not come within {PATIENCE} seconds; start "
    "all of them, and see that each can reach --coordinator"
)
LOST = "jaxunlearn: another process of this run has ended; rerun the same command on all to resume"
# In what JAX and its collectives raise where another process is gone.
GONE = ("gloo", "nccl", "coordination", "unavailable", "deadline_exceeded", "heartbeat", "aborted")


def cluster(environment: Mapping[str, str]) -> bool:
    """Whether a cluster has started this process as one of several."""
    for variable, count in CLUSTERS.items():
        try:
            if count(environment.get(variable) or "1") > 1:
                return True
        except ValueError:
            continue
    return False


def connect(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Joins the other processes of the run, if there are any; before JAX computes anything.

    Args:
      coordinator: HOST:PORT of the first process; "auto": JAX finds its cluster by itself; empty:
        as the cluster says (SLURM, Open MPI, Cloud TPU), or alone where there is none.
      count: of processes; with a HOST:PORT.
      index: this process's, from 0; with a HOST:PORT.

    Raises:
      UserError: the flags do not fit together, or the others do not come.
    """
    arguments: dict[str, Any] = {}
    if coordinator not in ("", "auto"):
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 <= index < count):
            raise UserError(
                "several processes need --coordinator=HOST:PORT, --processes=N and --process=I, "
                f"from 0 to N-1, got {coordinator!r}, {count} and {index}"
            )
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
        }
    elif count or index >= 0:
        raise UserError("--processes and --process need --coordinator=HOST:PORT of the first one")
    elif not coordinator and not cluster(os.environ):
        return
    import jax

    _filter_log()
    # Its own way to answer SIGTERM would take the place of ours.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    known = inspect.signature(jax.distributed.initialize).parameters
    if "heartbeat_timeout_seconds" in known:  # since JAX 0.7
        arguments["heartbeat_timeout_seconds"] = HEARTBEAT
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of this run do not find each other: {one_line(error)}; give "
            "--coordinator=HOST:PORT, --processes and --process"
        ) from error


def _filter_log() -> None:
    """Sends what JAX's C++ parts write to stderr through `runtime_log.py`."""
    sys.stderr.flush()
    real = os.dup(2)
    script = Path(__file__).with_name("runtime_log.py")
    child = subprocess.Popen(
        [sys.executable, "-S", "-E", str(script), LOST, ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    sys.stderr = open(real, "w", buffering=1, encoding=sys.stderr.encoding, errors="replace")


def disconnect() -> None:
    """Waits until the others are done too."""
    import jax

    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that has the store and the results."""
    import jax

    return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, in every one; the others do not call it.

    Args:
      make: returns nested dicts and lists of arrays and what JSON can hold. Its UserError is raised
        in every process.
    """
    import jax

    if jax.process_count() == 1:
        return make()
    from flax import serialization

    error = None
    data = b""
    if is_first():
        try:
            value = make()
            data = serialization.msgpack_serialize({"value": _plain(value)})
        except UserError as raised:
            error = raised
            data = serialization.msgpack_serialize({"error": str(raised)})
    told = serialization.msgpack_restore(_broadcast(data))
    if error is not None:
        raise error
    if "error" in told:
        raise UserError(told["error"])
    return value if is_first() else told["value"]


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how messages have them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _broadcast(data: bytes) -> bytes:
    """The first process's bytes, in every process."""
    from jax.experimental import multihost_utils

    size = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
    count = int.from_bytes(multihost_utils.broadcast_one_to_all(size).tobytes(), "little")
    # Of few lengths, since each is compiled.
    padded = np.zeros(1 << max(count - 1, 1).bit_length(), np.uint8)
    if is_first():
        padded[:count] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:count].tobytes()


def check_same(describe: Callable[[], list[str]]) -> None:
    """Raises in a process whose description of the run is not the first's."""
    import jax

    if jax.process_count() > 1 and from_first(describe) != describe():
        raise UserError(
            f"process {jax.process_index()} has another config, data, code or other versions of "
            "packages than the first process; give all processes the same"
        )


def is_lost(error: BaseException | None) -> bool:
    """Whether an error says that another process of the run has ended."""
    if not isinstance(error, RuntimeError | ValueError):
        return False
    import jax

    return jax.process_count() > 1 and any(sign in str(error).lower() for sign in GONE)
