"""The mesh: how many devices, and what lies where."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import devices, training
from jaxunlearn.augment import ops
from jaxunlearn.errors import UserError
from jaxunlearn.training import programs


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


def test_a_step_too_large_for_the_memory_is_refused_before_it_is_compiled(monkeypatch):
    programs = training.Programs(devices.make_mesh(1))
    x = devices.replicate(np.zeros(1000, np.float32), programs.mesh)
    with pytest.raises(UserError, match=r"needs 3\.73e\+03 GiB of memory or more .*; lower batch"):
        programs(lambda x: (2 * jnp.broadcast_to(x, (10**6, 1000, 1000))).sum(), x)
    monkeypatch.setattr(devices, "memory", lambda mesh: 1000.0)
    with pytest.raises(UserError, match=r"lower batch_size \(to \d+% of it, at most\)"):
        programs(lambda x: x + 1, x)
    monkeypatch.undo()
    assert programs(lambda x: x + 1, x)(x).sum() == 1000 and len(programs) == 1

    # What is made where it is read takes no memory, be it for other platforms or for this one.
    images = devices.replicate(np.zeros((32, 512, 512, 3), np.uint8), programs.mesh)
    steps = jax.tree.map(lambda field: np.stack([field] * 32), ops.Step())
    traced = jax.jit(ops.run).trace(images, steps)
    assert programs._largest(traced.jaxpr.jaxpr) < 2**31


def test_a_platform_that_is_not_here_is_named(monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(UserError, match="unset JAX_PLATFORMS, which is 'tpu', or install"):
        devices.make_mesh()


def test_64_bit_mode_is_refused_and_switches_that_change_numbers_are_told(monkeypatch):
    before = devices.switches()
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=4", "count=8"))
    assert devices.switches() == before  # the same numbers on any number of devices
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert devices.switches() != before
    monkeypatch.undo()
    made = training.Programs(devices.make_mesh(1))
    with jax.default_matmul_precision("bfloat16"):
        assert devices.switches() != before
        assert made.describe()["convolution"] == f"{made.convolution.name} at bfloat16"
    assert made.describe()["convolution"] == made.convolution.name
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert devices.switches() != before
    monkeypatch.undo()
    assert devices.switches() == before
    if hasattr(jax.config, "jax_high_dynamic_range_gumbel"):
        jax.config.update("jax_high_dynamic_range_gumbel", True)
        try:
            assert devices.switches() != before
        finally:
            jax.config.update("jax_high_dynamic_range_gumbel", False)
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(UserError, match="64-bit mode is on"):
            devices.check_switches()
    finally:
        jax.config.update("jax_enable_x64", False)
    devices.check_switches()


def test_so_many_programs_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(programs, "MOST", 3)
    made = training.Programs(devices.make_mesh(1))

    def double(x):
        return 2 * x

    for size in (1, 2, 3, 4, 4, 1, 2):
        x = devices.replicate(np.ones(size, np.float32), made.mesh)
        assert made(double, x)(x).tolist() == [2] * size
        assert len(made) <= 3


def test_float32_is_asked_for_on_accelerators_unless_the_user_has_set_another(monkeypatch):
    mesh = devices.make_mesh(1)
    assert devices.in_full(mesh) == (mesh.devices.flat[0].platform != "cpu")
    monkeypatch.setattr(devices, "on_cpu", lambda mesh: False)
    assert devices.in_full(mesh)
    with devices.full_precision(mesh):
        assert jax.config.jax_default_matmul_precision == "float32"
    with jax.default_matmul_precision("tensorfloat32"):
        assert not devices.in_full(mesh)
        with devices.full_precision(mesh):
            assert jax.config.jax_default_matmul_precision == "tensorfloat32"
