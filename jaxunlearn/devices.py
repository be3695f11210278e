"""The device mesh: parameters on every device, the batch split between them.

One code path for one device or many, on one host or several: programs are `jax.jit` with shardings
over a 1-D mesh `data`, so XLA puts in the reductions and N devices compute what one would, batch
norm's moments included.
"""

import contextlib
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
    "jax_high_dynamic_range_gumbel",
    "jax_legacy_prng_key",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
)
IN_FULL = (
    "float32 is multiplied in full on this device. Often several times faster, by shorter factors: "
    "{}JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32"
)
# Variables that compilers and libraries read, which may.
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# Of the compiler's flags, those that do not.
HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump", "--xla_gpu_cuda_data_dir")


def make_mesh(count: int = 0) -> Mesh:
    """Returns a 1-D mesh `data` over the first `count` devices; 0: over all, of every process."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # a platform asked for that is not here
        raise UserError(
            f"JAX finds no device: {one_line(error)}; unset JAX_PLATFORMS, which is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}, or install what it needs, such as "
            "'jaxunlearn[cuda]'"
        ) from error
    if count and jax.process_count() > 1:
        raise UserError(
            f"config.devices must be 0 in a run of {jax.process_count()} processes, which uses all "
            f"{len(devices)} devices, got {count}"
        )
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
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return {
        "device": f"{mesh.size} × {device.platform} {device.device_kind}{processes}",
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
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return there / len(mesh.local_devices)
    stats = mesh.local_devices[0].memory_stats() or {}
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
    found |= {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return {name: value if isinstance(value, list) else str(value) for name, value in found.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of the tree on every device."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def divisible(batch_size: int, mesh: Mesh) -> int:
    """The size, or the next larger one that the devices can share."""
    return -(-batch_size // mesh.size) * mesh.size


def shard_batches(array: np.ndarray, mesh: Mesh, axis: int = -1) -> jax.Array:
    """Puts an array on the mesh, its axis of the batch, the last one, split between the devices."""
    spec = PartitionSpec(*[None] * (axis % array.ndim), "data")
    return _put(array, NamedSharding(mesh, spec))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts every array of the tree on the devices; those of other processes have it from there."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_own_part(leaf, sharding), tree)


def _put_own_part(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """The array of which this process, as every other, has the whole: nothing is sent."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put_own_part(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf, jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype))
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def in_full(mesh: Mesh) -> bool:
    """Whether float32 must be asked for, the user not having set how JAX is to multiply.

    By default JAX has a GPU round the factors of float32 products to 11 bits, and a TPU to 8.
    """
    return not on_cpu(mesh) and not getattr(jax.config, "jax_default_matmul_precision", None)


def full_precision(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Within it float32 products are traced as such."""
    if in_full(mesh):
        return jax.default_matmul_precision("float32")
    return contextlib.nullcontext()


def on_cpu(mesh: Mesh) -> bool:
    """Whether to call steps one by one: a convolution in a loop is ~20 times slower on a CPU."""
    return mesh.devices.flat[0].platform == "cpu"
