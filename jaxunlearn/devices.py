"""The device mesh: parameters on every device, the batch split between them.

One code path for one device or many: programs are `jax.jit` with shardings over a 1-D mesh `data`,
  so XLA puts in the reductions and N devices compute what one would, batch norm's moments included.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.errors import UserError


def make_mesh(count: int = 0) -> Mesh:
    """Returns a 1-D mesh `data` over the first `count` local devices; 0 means all of them."""
    devices = jax.devices()
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
