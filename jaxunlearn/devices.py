"""The device mesh: parameters on every device, the batch split between them.

One code path for one device or many: programs are `jax.jit` with shardings over a 1-D mesh `data`,
  so XLA puts in the reductions and N devices compute what one would, batch norm's moments included.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.errors import UserError


def make_mesh(count: int = 0) -> Mesh:
    """Returns a 1-D mesh `data` over the first `count` local devices; 0 means all of them."""
    devices = jax.devices()
    if not 0 <= count <= len(devices):
        raise UserError(
            f"devices is {count}; allowed: 1 to {len(devices)} on this machine "
            f"({devices[0].platform}), or 0 for all of them"
        )
    return jax.make_mesh(
        (count or len(devices),),
        ("data",),
        devices=devices[: count or len(devices)],
        axis_types=(jax.sharding.AxisType.Auto,),
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts every array of the tree whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batches(array: Any, mesh: Mesh) -> jax.Array:
    """Puts an array `[steps, batch]` on the mesh, each batch split between the devices."""
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(None, "data")))
