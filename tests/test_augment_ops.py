import runpy
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.augment import ops, policies

pillow = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "augment.py"))

SHAPES = [(32, 32, 3), (28, 28, 1), (17, 23, 3), (24, 15, 1)]


def images_of(shape, seed=0):
    """Random, narrow, smooth, constant, two-level and near-black images, uint8 `[N, H, W, C]`."""
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 256, (2, *shape))
    ramp = np.broadcast_to(np.linspace(3, 250, shape[1])[None, :, None], shape)
    low, high = np.sort(rng.choice(256, 2, replace=False))
    return np.stack(
        [
            *random,
            rng.integers(90, 140, shape),
            ramp,
            np.full(shape, 77),
            np.zeros(shape),
            np.full(shape, 255),
            np.where(random[0] > 128, high, low),
            np.where(random[0] > 250, 1, 0),
            np.where(random[1] > 250, 254, 255),
        ]
    ).astype(np.uint8)


def by_pillow(image, name, value):
    done = pillow["pillow_op"](pillow["to_pillow"](image), name, value)
    return pillow["from_pillow"](done)


def spaces(shape):
    """Every op at every bin and sign of every policy: (op, magnitude)."""
    made = [
        policies.wide_space(31, shape),
        policies.narrow_space(31, shape),
        policies.narrow_space(10, shape) | {"invert": np.zeros(10)},
        policies.mix_space(10, shape),
    ]
    return {
        (name, policies.magnitude(space, name, level, sign))
        for space in made
        for name in space
        for level in range(len(space[name]))
        for sign in (0, 1)
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ops.ENCODERS)
def test_op_is_pillows_at_every_magnitude(name, shape):
    magnitudes = sorted(value for other, value in spaces(shape) if other == name)
    assert len(magnitudes) >= (1 if name in policies.OPS[12:] + ("identity", "invert") else 5)
    images = images_of(shape)
    steps = [ops.ENCODERS[name](value, *shape[:2]) for value in magnitudes]
    stacked = ops.Step(*(np.stack(field) for field in zip(*steps, strict=True)))
    over_steps = jax.vmap(ops.run, in_axes=(None, 0))
    ours = jax.jit(jax.vmap(over_steps, in_axes=(0, None)))(images, stacked)
    for image, rows in zip(images, np.asarray(ours), strict=True):
        for value, row in zip(magnitudes, rows, strict=True):
            expected = by_pillow(image, name, value)
            np.testing.assert_array_equal(row, expected, err_msg=f"{name} {value}")
