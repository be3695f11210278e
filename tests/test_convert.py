"""PyTorch's ResNets as ours: where PyTorch is there its logits, else names and layouts by hand."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxunlearn.errors import UserError
from jaxunlearn.models import brought, build, convert

BLOCKS = {"resnet18": ((2, 2, 2, 2), 2, 1), "resnet50": ((3, 4, 6, 3), 3, 4)}


def state_dict(name, width, classes, stem=3, channels=3):
    """Random arrays under the names and in the shapes of torchvision's."""
    blocks, convolutions, wider = BLOCKS[name]
    rng, made = np.random.default_rng(0), {}

    def conv(path, out, inner, size):
        scale = 1 / np.sqrt(inner * size * size)
        made[f"{path}.weight"] = rng.normal(0, scale, (out, inner, size, size)).astype("f4")

    def norm(path, count):
        for field in ("weight", "running_var"):
            made[f"{path}.{field}"] = rng.uniform(0.5, 1.5, count).astype("f4")
        for field in ("bias", "running_mean"):
            made[f"{path}.{field}"] = rng.normal(0, 0.1, count).astype("f4")
        made[f"{path}.num_batches_tracked"] = np.array(7)

    conv("conv1", width, channels, stem)
    norm("bn1", width)
    inner = width
    for stage, count in enumerate(blocks):
        own = width * 2**stage
        for i in range(count):
            path, at = f"layer{stage + 1}.{i}", inner
            for k in range(1, convolutions + 1):
                size = 3 if wider == 1 or k == 2 else 1
                out = own * wider if k == 3 else own
                conv(f"{path}.conv{k}", out, at, size)
                norm(f"{path}.bn{k}", out)
                at = out
            if i == 0 and (stage or wider > 1):
                conv(f"{path}.downsample.0", at, inner, 1)
                norm(f"{path}.downsample.1", at)
            inner = at
    made["fc.weight"] = rng.normal(0, 0.1, (classes, inner)).astype("f4")
    made["fc.bias"] = rng.normal(0, 0.1, classes).astype("f4")
    return made


def ours(name, arrays, size, tmp_path, width=8, classes=3):
    """Our model, and the variables read from the file."""
    save_file(arrays, tmp_path / "model.safetensors")
    model = build(name, num_classes=classes, width=width)
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3)))
    return model, brought.read(str(tmp_path / "model.safetensors"), "path", like)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("stem", "size"), [(3, 32), (7, 160)])
def test_every_array_has_its_place(name, stem, size, tmp_path):
    arrays = state_dict(name, 8, 3, stem)
    _, variables = ours(name, arrays, size, tmp_path)
    flat = flatten_dict(variables, sep="/")
    assert len(flat) == sum(not key.endswith("tracked") for key in arrays)
    np.testing.assert_array_equal(
        flat["params/Conv_0/kernel"][1, 2, 0], arrays["conv1.weight"][:, 0, 1, 2]
    )
    np.testing.assert_array_equal(flat["params/Dense_0/kernel"], arrays["fc.weight"].T)
    before = "layer1.0.downsample.1" if name == "resnet50" else "layer1.1.bn1"
    at = 4 if name == "resnet50" else 3
    np.testing.assert_array_equal(
        flat[f"batch_stats/BatchNorm_{at}/var"], arrays[f"{before}.running_var"]
    )


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("stem", "size"), [(3, 32), (7, 160)])
def test_the_logits_are_pytorchs(name, stem, size, tmp_path):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    arrays = state_dict(name, 8, 3, stem)
    given = {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)

    def norm(x, path):
        fields = (given[f"{path}.{f}"] for f in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *fields, eps=1e-5)

    def conv(x, path, stride):
        kernel = given[f"{path}.weight"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = functional.relu(norm(conv(x, "conv1", 1 if stem == 3 else 2), "bn1"))
    if stem == 7:
        x = functional.max_pool2d(x, 3, 2, 1)
    blocks, convolutions, wider = BLOCKS[name]
    for stage, count in enumerate(blocks):
        for i in range(count):
            path, y, first = f"layer{stage + 1}.{i}", x, 2 if stage and i == 0 else 1
            for k in range(1, convolutions + 1):
                stride = first if k == (1 if wider == 1 else 2) else 1
                y = norm(conv(y, f"{path}.conv{k}", stride), f"{path}.bn{k}")
                y = functional.relu(y) if k < convolutions else y
            if f"{path}.downsample.0.weight" in given:
                x = norm(conv(x, f"{path}.downsample.0", first), f"{path}.downsample.1")
            x = functional.relu(x + y)
    expected = (x.mean((2, 3)) @ given["fc.weight"].T + given["fc.bias"]).numpy()

    model, variables = ours(name, arrays, size, tmp_path)
    logits = jax.jit(lambda v, x: model.apply(v, x, False, None)[0])(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_a_stages_blocks_are_in_order_of_their_numbers(monkeypatch):
    monkeypatch.setitem(BLOCKS, "deep", ((1, 1, 12, 1), 2, 1))
    arrays = state_dict("deep", 4, 3)
    made = convert.resnet(dict(arrays))
    first = 1 + 2 + 3  # the stem, and the blocks before, of which the second has another shortcut
    for block, at in ((0, first), (1, first + 3), (2, first + 5), (10, first + 21)):
        theirs = arrays[f"layer3.{block}.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(made[f"params/Conv_{at}/kernel"], theirs)


def test_names_of_a_wrapper_are_cut_and_what_is_left_over_is_told(tmp_path):
    arrays = state_dict("resnet18", 8, 3)
    wrapped = {f"module.{key}": array for key, array in arrays.items()}
    assert convert.is_resnet(wrapped)
    assert convert.resnet(wrapped).keys() == convert.resnet(arrays).keys()
    with pytest.raises(UserError, match=r"has auxiliary\.weight, which the model has not"):
        ours("resnet18", {**arrays, "auxiliary.weight": np.zeros(3, "f4")}, 32, tmp_path)
    del arrays["layer2.0.bn1.running_var"]
    with pytest.raises(UserError, match="lacks batch_stats/BatchNorm_5/var"):
        ours("resnet18", arrays, 32, tmp_path)
    with pytest.raises(UserError, match=r"has params/Dense_0/.* as float32"):
        ours("resnet18", state_dict("resnet18", 8, 4), 32, tmp_path)
    assert not convert.is_resnet({"conv1.weight": 0})
