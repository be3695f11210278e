"""The mesh: how many devices, and what lies where."""

import jax
import numpy as np
import pytest

from jaxunlearn import devices
from jaxunlearn.errors import UserError


@pytest.mark.parametrize("count, size", [(0, 4), (1, 1), (3, 3), (4, 4)])
def test_a_mesh_has_the_first_devices_and_0_means_all(count, size):
    mesh = devices.make_mesh(count)
    assert mesh.axis_names == ("data",) and mesh.devices.tolist() == jax.devices()[:size]


@pytest.mark.parametrize("count", [99, 5, -1])
def test_a_count_that_the_machine_lacks_is_a_users_error(count):
    message = rf"config\.devices must be 1 to 4 on this machine \(cpu\), or 0 .*, got {count}$"
    with pytest.raises(UserError, match=message):
        devices.make_mesh(count)


def test_a_tree_is_replicated_whole_on_every_device():
    mesh = devices.make_mesh(4)
    tree = devices.replicate({"a": np.arange(6.0), "b": [np.int32(3)]}, mesh)
    for leaf in jax.tree.leaves(tree):
        assert leaf.sharding.is_fully_replicated and len(leaf.addressable_shards) == 4
    np.testing.assert_array_equal(tree["a"], np.arange(6.0))


def test_each_batch_is_split_between_the_devices():
    mesh = devices.make_mesh(4)
    order = np.arange(24).reshape(3, 8)
    sharded = devices.shard_batches(order, mesh)
    np.testing.assert_array_equal(sharded, order)
    for i, shard in enumerate(sharded.addressable_shards):
        np.testing.assert_array_equal(shard.data, order[:, 2 * i : 2 * i + 2])
