import functools
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from jaxunlearn import augment
from jaxunlearn.augment import POLICIES, SCENARIOS, policies
from jaxunlearn.errors import UserError

pillow = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "augment.py"))
IN_PILLOW = [name for name in POLICIES if name not in ("none", "stain_jitter")]
DRAWS = 20_000


def batch(shape=(64, 32, 32, 3), num_classes=5):
    """Images with few levels in places and smooth ones in others, and one-hot targets."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, shape)
    images[::3] = images[::3] // 4 + np.arange(shape[2])[None, None, :, None]
    labels = rng.integers(0, num_classes, shape[0])
    return images.astype(np.uint8), np.eye(num_classes, dtype=np.float32)[labels]


@functools.cache
def draws(name, shape=(DRAWS, 32, 32, 3), **params):
    """Choices of a policy for many examples, as NumPy arrays."""
    draw = POLICIES[name](**params)[0]
    choices = jax.jit(lambda key: policies.draw_batch(draw, key, shape))(jax.random.key(3))
    return jax.tree.map(np.asarray, choices)


def assert_frequencies(observed, expected):
    """The counts are those of the expected probabilities, by chi-squared."""
    expected = np.asarray(expected, float) / np.sum(expected) * np.sum(observed)
    assert stats.chisquare(observed, expected).pvalue > 1e-3, (observed, expected)


def assert_uniform(values, levels):
    counts = np.bincount(np.ravel(values), minlength=levels)
    assert len(counts) == levels
    assert_frequencies(counts, np.ones(levels))


# ---- Names


def test_same_arguments_give_the_identical_function():
    a = augment.build("crop_flip", crop_flip={"padding": 0.25})
    assert a is augment.build(("crop_flip",), crop_flip={"padding": 0.25})
    assert a is not augment.build("crop_flip")
    assert augment.build("none") is augment.build(()) is augment.build(("none",))
    given = augment.defaults()  # as the library's config spells them out
    for name, scenario in SCENARIOS.items():
        assert augment.chain(name, **given) == tuple((policy, ()) for policy in scenario)
    area = {"area": [0.1, 0.2]}  # as a config read from JSON has it
    assert augment.build("random_erasing", random_erasing=area) is augment.build(
        "random_erasing", random_erasing={"area": (0.1, 0.2)}
    )


def test_none_is_the_identity():
    images, targets = batch()
    out = augment.build("none")(images, targets, jax.random.key(0))
    assert out[0] is images and out[1] is targets


def test_plain_name_is_the_scenario_and_a_tuple_is_literal():
    assert augment.build("trivialaugment") is augment.build(("crop_flip", "trivialaugment"))
    assert augment.build("trivialaugment") is not augment.build(("trivialaugment",))
    assert augment.build("mixup") is augment.build(("mixup",))
    for spelt in ("crop_flip, mixup", "crop_flip,mixup,", ["crop_flip", "mixup"]):
        assert augment.build(spelt) is augment.build(("crop_flip", "mixup"))
    assert augment.build("trivialaugment,") is augment.build(("trivialaugment",))


@pytest.mark.parametrize(
    ("names", "params", "message"),
    [
        ("trivial", {}, "unknown augmentation 'trivial'"),
        (("crop_flp",), {}, "did you mean 'crop_flip'"),
        ("none", {"crop_flop": {}}, "unknown augmentation 'crop_flop': did you mean 'crop_flip'"),
        ("crop_flip", {"crop_flip": {"pading": 1}}, "did you mean 'padding'"),
        ("crop_flip,mixp", {}, "did you mean 'mixup'"),
        (3, {}, "must be a name or a tuple of names, got 3"),
    ],
)
def test_wrong_name_is_one_line_that_helps(names, params, message):
    with pytest.raises(UserError, match=message) as error:
        augment.build(names, **params)
    assert "\n" not in str(error.value)


# ---- What every policy keeps


@pytest.mark.parametrize(
    "name, params, message",
    [
        ("crop_flip", {"padding": 4}, r"\.padding must be 0 to 1, .* got 4"),
        ("trivialaugment", {"num_bins": 1}, r"\.num_bins must be 2 or more, got 1"),
        ("randaugment", {"magnitude": 31}, r"\.magnitude must be 0 to below num_bins, 31, got 31"),
        ("randaugment", {"num_ops": 0}, r"\.num_ops must be 1 or more, got 0"),
        ("augmix", {"severity": 11}, r"\.severity must be 1 to num_bins, 10, got 11"),
        ("augmix", {"depth": 0}, r"\.depth must be 1 or more, got 0"),
        ("random_erasing", {"p": 2}, r"\.p must be 0 to 1, got 2"),
        ("random_erasing", {"area": (0.5, 0.2)}, r"\.area must be shares .*, got \(0\.5, 0\.2\)"),
        ("random_erasing", {"area": ("a", 0.2)}, r"\.area must be like \(0\.02, 0\.33\): finite"),
        ("random_erasing", {"fill": (256,)}, r"\.fill must be 1 or 3 levels.*, got \(256,\)"),
        ("mixup", {"alpha": 0}, r"\.alpha must be more than 0, got 0"),
        ("cutmix", {"alpha": -1}, r"\.alpha must be more than 0, got -1"),
        ("stain_jitter", {"sigma": 1}, r"\.sigma must be 0 to below 1, got 1"),
    ],
)
def test_parameter_out_of_range_is_one_line(name, params, message):
    with pytest.raises(UserError, match=rf"^augment_params\.{name}{message}"):
        augment.build(name, **{name: params})


@pytest.mark.parametrize("names", [*((name,) for name in POLICIES), *SCENARIOS.values()])
@pytest.mark.parametrize("shape", [(4, 28, 28, 3), (4, 64, 48, 1)])
def test_resolution_and_dtypes_never_change(names, shape):
    if "stain_jitter" in names and shape[-1] == 1:
        pytest.skip("colour only; the error has its own test")
    images, targets = batch(shape)
    out = jax.eval_shape(augment.build(names), images, targets, jax.random.key(0))
    assert out[0].shape == shape and out[0].dtype == np.uint8
    assert out[1].shape == targets.shape and out[1].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("names", [("crop_flip", "augmix", "cutmix"), ("autoaugment", "mixup")])
def test_four_devices_give_the_bits_of_one(names):
    images, targets = batch((16, 20, 20, 3))
    augmented = jax.jit(augment.build(names))
    one = augmented(images, targets, jax.random.key(5))
    mesh = Mesh(np.array(jax.devices()[:4]), "data")
    spread = jax.device_put((images, targets), NamedSharding(mesh, PartitionSpec("data")))
    four = augmented(*spread, jax.random.key(5))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(four[0].sharding.device_set) == 4


def test_examples_and_keys_differ():
    images = np.broadcast_to(batch()[0][:1], (32, 32, 32, 3))
    augmented = jax.jit(augment.build("crop_flip"))
    first, _ = augmented(images, images, jax.random.key(0))
    second, _ = augmented(images, images, jax.random.key(1))
    assert len(np.unique(np.asarray(first).reshape(32, -1), axis=0)) > 20
    assert not np.array_equal(first, second)


# ---- The same choices carried out in Pillow


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 32, 32, 3), (64, 28, 21, 1)])
@pytest.mark.parametrize("name", IN_PILLOW)
def test_policy_is_pillows_for_the_same_choices(name, shape):
    images, targets = batch(shape)
    draw, apply = POLICIES[name]()

    @jax.jit
    def both(key):
        choices = policies.draw_batch(draw, key, shape)
        return choices, apply(images, targets, choices)[0]

    choices, ours = both(jax.random.key(1))
    choices = jax.tree.map(np.asarray, choices)
    each = [jax.tree.map(lambda c, i=i: c[i], choices) for i in range(shape[0])]
    recipes = [pillow["recipe"](name, one, shape[1:]) for one in each]
    np.testing.assert_array_equal(ours, pillow["by_pillow"](images, recipes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_are_the_shares_of_the_pixels(name):
    images, targets = batch((64, 20, 30, 1))
    own = np.arange(64)[:, None, None, None] % 2 * np.ones_like(images)  # 0 1 0 1 …
    draw, apply = POLICIES[name]()
    choices = policies.draw_batch(draw, jax.random.key(0), images.shape)
    mixed, mixed_targets = apply((own * 255).astype(np.uint8), targets, choices)
    share = np.abs(np.asarray(mixed, float) / 255 - 1 + own).mean((1, 2, 3))  # own share
    before = np.roll(targets, 1, 0)
    expected = share[:, None] * targets + (1 - share[:, None]) * before
    np.testing.assert_allclose(mixed_targets, expected, atol=1 / 255)
    np.testing.assert_allclose(np.sum(mixed_targets, 1), 1, rtol=1e-6)


@pytest.mark.slow
def test_erased_pixels_normalise_to_nothing():
    images, targets = batch()
    draw, apply = POLICIES["random_erasing"](p=1.0)
    choices = policies.draw_batch(draw, jax.random.key(0), images.shape)
    erased, _ = apply(images, targets, choices)
    top, left, bottom, right = choices["box"][0]
    assert np.abs((erased[0, top:bottom, left:right] / 255 - 0.5) / 0.5).max() < 0.005


# ---- Distributions, on 20,000 draws


def test_trivialaugment_draws_uniformly():
    choices = draws("trivialaugment")
    assert_uniform(choices["op"] * 31 + choices["level"], 14 * 31)
    assert_uniform(choices["op"] * 2 + choices["sign"], 28)


@pytest.mark.slow
def test_randaugment_draws_two_ops_uniformly_at_one_bin():
    choices = draws("randaugment")
    assert_uniform(choices["op"][:, 0] * 14 + choices["op"][:, 1], 14 * 14)
    assert_uniform(choices["sign"][:, 0] * 2 + choices["sign"][:, 1], 4)
    assert set(choices["level"].ravel()) == {9}
    other = draws("randaugment", num_ops=3, magnitude=12)
    assert other["op"].shape == (DRAWS, 3) and set(other["level"].ravel()) == {12}


@pytest.mark.slow
def test_autoaugment_draws_each_subpolicy_and_op_by_its_probability():
    choices = draws("autoaugment")
    assert_uniform(choices["subpolicy"], 25)
    assert_uniform(choices["sign"][:, 0] * 2 + choices["sign"][:, 1], 4)
    names = [*policies.OPS, "invert"]
    for i, pair in enumerate(policies.CIFAR10_SUBPOLICIES):
        of = choices["subpolicy"] == i
        for k, (name, probability, level) in enumerate(pair):
            op = choices["op"][of, k]
            assert set(op) <= {0, names.index(name)} and set(choices["level"][of, k]) == {level}
            done = np.sum(op > 0)
            assert stats.binomtest(int(done), len(op), probability).pvalue > 1e-4, (i, k)


@pytest.mark.slow
def test_augmix_draws():
    choices = draws("augmix")
    length = np.sum(choices["op"] > 0, axis=2)
    assert_uniform(length - 1, 3)
    assert_uniform(choices["op"][choices["op"] > 0] - 1, 13)
    assert_uniform(choices["level"], 3)
    assert_uniform(choices["sign"], 2)
    weights = choices["weights"] / 65536
    assert (weights.sum(1) == 1).all() and (weights >= 0).all()
    assert stats.kstest(weights[:, 3], stats.uniform.cdf).pvalue > 1e-3
    # One share of a Dirichlet(1, 1, 1) is Beta(1, 2).
    shares = weights[:, 0] / weights[:, :3].sum(1)
    assert stats.kstest(shares, stats.beta(1, 2).cdf).pvalue > 1e-3


def test_crop_flip_draws():
    choices = draws("crop_flip")
    assert_uniform(choices["corner"][:, 0] * 9 + choices["corner"][:, 1], 81)
    assert_uniform(choices["flip"], 2)


@pytest.mark.parametrize(("shape", "turns"), [((32, 32, 3), 4), ((32, 20, 3), 2)])
def test_rotate90_flip_draws_every_symmetry_alike(shape, turns):
    choices = draws("rotate90_flip", (DRAWS, *shape))
    quarters = choices["turns"] // (4 // turns)
    assert_uniform(quarters * 2 + choices["flip"], 2 * turns)


@pytest.mark.slow
def test_random_erasing_draws():
    top, left, bottom, right = draws("random_erasing", (DRAWS, 200, 200, 1))["box"].T
    assert stats.binomtest(int(np.sum(bottom > top)), DRAWS, 0.5).pvalue > 1e-3
    some = bottom > top
    height, width = (bottom - top)[some], (right - left)[some]
    area, aspect = height * width / 200**2, height / width
    # Where no box is refused for its size (area · 3.3 < 1), area and log aspect are uniform.
    small = area < 0.28
    assert stats.kstest(area[small], stats.uniform(0.02, 0.26).cdf).statistic < 0.02
    low, high = np.log(0.3), np.log(3.3)
    assert stats.kstest(np.log(aspect[small]), stats.uniform(low, high - low).cdf).statistic < 0.02
    assert 0.018 < area.min() and area.max() < 0.34
    # Where it lies is uniform over where it fits.
    for start, size in ((top[some], height), (left[some], width)):
        place = (start + 0.5) / (201 - size)
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.slow
def test_mixup_and_cutmix_draw_from_their_beta():
    own = draws("mixup", alpha=0.4)["own"] / 65536
    assert stats.kstest(own, stats.beta(0.4, 0.4).cdf).statistic < 0.015
    top, left, bottom, right = draws("cutmix", (DRAWS, 224, 224, 1))["box"].T
    inside = (top > 0) & (left > 0) & (bottom < 224) & (right < 224)
    assert 0 <= top.min() and 0 <= left.min() and bottom.max() <= 224 and right.max() <= 224
    # A box of side s lies inside with probability (1 − s)²; its area share s² is uniform before.
    assert abs(inside.mean() - 1 / 6) < 0.01


def test_stain_jitter_draws_within_sigma():
    choices = draws("stain_jitter", sigma=0.1)
    for values in (choices["scale"] - 1, choices["shift"]):
        assert stats.kstest(values.ravel(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3


# ---- Magnitudes


def test_magnitudes_of_trivialaugment():
    space = policies.wide_space(31, (32, 32, 3))
    assert tuple(space) == policies.OPS and all(len(values) == 31 for values in space.values())
    ends = {name: (space[name][0], space[name][-1]) for name in space}
    assert ends["shear_x"] == ends["shear_y"] == ends["brightness"] == ends["color"] == (0, 0.99)
    assert ends["contrast"] == ends["sharpness"] == (0, 0.99)
    assert ends["translate_x"] == ends["translate_y"] == (0, 32)
    assert (
        ends["rotate"] == (0, 135) and ends["posterize"] == (8, 2) and ends["solarize"] == (255, 0)
    )


def test_bins_are_torchvisions():
    """What torch 2.13 gives for its linspace, as whole pixels and to the bit."""
    space = policies.wide_space(31, (32, 32, 3))
    pixels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]  # bin 15 is 15.999998
    pixels += [17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32]
    assert space["translate_x"].tolist() == pixels
    shear = policies.bins(0, 0.99, 31)
    assert shear.dtype == np.float32
    bits = ["0x1.0e56040000000p-5", "0x1.d916880000000p-2", "0x1.0e56040000000p-1"]
    assert [float(x).hex() for x in shear[[1, 14, 16]]] == bits
    # An enhancer's factor is 1 and a float32, added in float64.
    assert policies.magnitude(space, "color", 1, 0) == 1 + float(shear[1])


def test_magnitudes_of_randaugment_and_augmix():
    space = policies.narrow_space(31, (331, 662, 3))
    assert tuple(space) == policies.OPS
    assert space["translate_x"][-1] == 300 and space["translate_y"][-1] == 150
    assert space["shear_y"][-1] == 0.3 and space["rotate"][-1] == 30 and space["color"][-1] == 0.9
    assert space["posterize"][-1] == 4 and space["rotate"][9] == pytest.approx(9)
    space = policies.mix_space(10, (30, 60, 3))
    assert space["translate_x"][-1] == 20 and space["translate_y"][-1] == 10
    assert list(space["posterize"][:3]) == [4, 4, 3]


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_crops_by_pixels_are_of_so_many_at_any_size(size):
    draw, _ = policies.crop_flip(pixels=4)
    keys = jax.random.split(jax.random.key(0), 400)
    corners = np.asarray(jax.vmap(lambda key: draw(key, (size, size, 3))["corner"])(keys))
    assert corners.min() == 0 and corners.max() == 8
    with pytest.raises(UserError, match=r"crop_flip\.pixels must be 0 or more, got -1"):
        policies.crop_flip(pixels=-1)


def test_sign_turns_only_what_has_a_direction():
    space = policies.wide_space(31, (32, 32, 3))
    assert policies.magnitude(space, "rotate", 30, 1) == -135
    assert policies.magnitude(space, "color", 30, 1) == pytest.approx(0.01)
    assert policies.magnitude(space, "color", 30, 0) == pytest.approx(1.99)
    for name in ("identity", "posterize", "solarize", "autocontrast", "equalize"):
        assert policies.magnitude(space, name, 7, 1) == policies.magnitude(space, name, 7, 0)
