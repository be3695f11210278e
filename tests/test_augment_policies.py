import jax
import numpy as np
import pytest

from jaxunlearn import augment
from jaxunlearn.errors import UserError


def random_batch(seed=0, shape=(4, 32, 32, 3), num_classes=5):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, shape, np.uint8)
    return images, np.eye(num_classes, dtype=np.float32)[rng.integers(0, num_classes, shape[0])]


def test_same_arguments_give_the_identical_function():
    a = augment.build("crop_flip", crop_flip={"padding": 0.25})
    assert a is augment.build(("crop_flip",), crop_flip={"padding": 0.25})
    assert a is not augment.build("crop_flip")
    assert augment.build("none") is augment.build(()) is augment.build(("none",))


def test_none_is_the_identity():
    images, targets = random_batch()
    out = augment.build("none")(images, targets, jax.random.key(0))
    assert out[0] is images and out[1] is targets


@pytest.mark.parametrize(
    ("names", "params", "message"),
    [
        ("trivial", {}, "unknown augmentation 'trivial'"),
        (("crop_flp",), {}, "did you mean 'crop_flip'"),
        ("none", {"crop_flip": {}}, "to set parameters of 'crop_flip'"),
        ("crop_flip", {"crop_flip": {"pading": 1}}, "did you mean 'padding'"),
    ],
)
def test_wrong_name_is_one_line_that_helps(names, params, message):
    with pytest.raises(UserError, match=message) as error:
        augment.build(names, **params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(64, 32, 32, 3), (64, 28, 28, 1), (64, 9, 17, 3)])
def test_crop_flip_is_a_window_of_the_padded_image(shape):
    images, _ = random_batch(shape=shape)
    draw, apply = augment.POLICIES["crop_flip"]()
    choices = jax.vmap(lambda k: draw(k, shape[1:]))(jax.random.split(jax.random.key(1), shape[0]))
    out, _ = jax.jit(apply)(images, images, choices)
    pad = round(max(shape[1:3]) / 8)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for i, (top, left) in enumerate(np.asarray(choices["corner"])):
        expected = padded[i, top : top + shape[1], left : left + shape[2]]
        if choices["flip"][i]:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(out[i], expected)
