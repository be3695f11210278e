"""The device mesh: parameters on every device, the batch split between them.

One code path for one device or many: programs are `jax.jit` with shardings over a 1-D mesh `data`,
  so XLA puts in the reductions and N devices compute what one would, batch norm's moments included.
"""

import importlib.metadata
import math
import os
import platform
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.errors import UserError, one_line

PACKAGES = ("jaxunlearn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Of JAX's own switches, those that change what is computed.
SWITCHES = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_explicit_x64_dtypes",
    "jax_legacy_prng_key",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
)
# Of the compiler's flags, those that do not.
HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump")


def make_mesh(count: int = 0) -> Mesh:
    """Returns a 1-D mesh `data` over the first `count` local devices; 0 means all of them."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # a platform asked for that is not here
        raise UserError(
            f"JAX finds no device: {one_line(error)}; unset JAX_PLATFORMS, which is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}, or install what it needs, such as "
            "'jaxunlearn[cuda]'"
        ) from error
    if not 0 <= count <= len(devices):
        raise UserError(
            f"config.devices must be 1 to {len(devices)} on this machine ({devices[0].platform}), "
            f"or 0 for all of them, got {count}"
        )
    return jax.make_mesh(
        (count or len(devices),),
        ("data",),
        devices=devices[: count or len(devices)],
        axis_types=(jax.sharding.AxisType.Auto,),
    )


def describe(mesh: Mesh) -> dict[str, Any]:
    """The machine as results and stored models name it: device, cores, versions."""
    device = mesh.devices.flat[0]
    return {
        "device": f"{mesh.size} × {device.platform} {device.device_kind}",
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
    }


def _version(package: str) -> str:
    """The version that is installed; of a checkout that is only on the path, that it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def memory(mesh: Mesh) -> float:
    """Bytes of memory of each device; of a CPU, the machine's share."""
    if on_cpu(mesh):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / mesh.size
    stats = mesh.devices.flat[0].memory_stats() or {}
    return stats.get("bytes_limit", math.inf)


def check_switches() -> None:
    """Raises where JAX makes float64 of what is float32 here, as its 64-bit mode does."""
    if jax.config.read("jax_enable_x64"):
        raise UserError(
            "JAX's 64-bit mode is on, and models are trained in float32 here; unset "
            "JAX_ENABLE_X64, or set the option jax_enable_x64 to False"
        )


def switches() -> dict[str, Any]:
    """The settings of JAX and of its compiler that change what is computed."""
    found = {name: getattr(jax.config, name, None) for name in SWITCHES}
    flags = os.environ.get("XLA_FLAGS", "").split()
    found["xla_flags"] = sorted(flag for flag in flags if not flag.startswith(HARMLESS))
    return {name: value if isinstance(value, list) else str(value) for name, value in found.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of the tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batches(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts an array `[..., batch]` on the mesh, each batch split between the devices."""
    spec = PartitionSpec(*[None] * (array.ndim - 1), "data")
    return jax.device_put(array, NamedSharding(mesh, spec))


def on_cpu(mesh: Mesh) -> bool:
    """Whether to call steps one by one: a convolution in a loop is ~20 times slower on a CPU."""
    return mesh.devices.flat[0].platform == "cpu"
