"""An original that was trained elsewhere, and models that others have unlearned."""

import hashlib
import json

import flax
import jax
import numpy as np
import pytest
import toy
from flax.traverse_util import flatten_dict

from jaxunlearn import config, experiment, models, plan
from jaxunlearn.data.load import load
from jaxunlearn.errors import UserError
from jaxunlearn.models import brought, build
from jaxunlearn.store import load_tree, save_tree

LIKE = {
    "params": {"dense": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}},
    "batch_stats": {"norm": {"mean": np.zeros(2, np.float32)}},
}


def values():
    """Variables of such shapes, each leaf with numbers of its own."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), LIKE)


def write(path, tree):
    """In the format that the path's name ends in."""
    flat = flatten_dict(tree, sep="/")
    if path.suffix == ".msgpack":
        path.write_bytes(flax.serialization.msgpack_serialize(tree))
    elif path.suffix == ".npz":
        np.savez(path, **flat)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({name.replace("/", "."): leaf for name, leaf in flat.items()}, path)
    else:
        save_tree(path, tree)
    return str(path)


FORMATS = ("model.msgpack", "model.npz", "model.safetensors", "orbax")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_was_written(tmp_path, name):
    path = write(tmp_path / name, values())
    assert toy.same_bits(brought.read(path, "path", LIKE), values())


@pytest.mark.parametrize("name", FORMATS)
def test_the_fingerprint_is_of_the_content(tmp_path, name):
    first = brought.fingerprint(write(tmp_path / name, values()), "path")
    (tmp_path / "other").mkdir()
    copied = brought.fingerprint(write(tmp_path / "other" / name, values()), "path")
    changed = values()
    changed["params"]["dense"]["bias"][0] += 1
    (tmp_path / "third").mkdir()
    other = brought.fingerprint(write(tmp_path / "third" / name, changed), "path")
    assert other != first
    assert name == "orbax" or copied == first  # Orbax writes the time too


def test_params_alone_do_for_a_model_that_has_nothing_else(tmp_path):
    like = {"params": LIKE["params"]}
    path = write(tmp_path / "model.npz", values()["params"])
    assert toy.same_bits(brought.read(path, "path", like), {"params": values()["params"]})


def test_half_precision_becomes_the_models_type(tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), values())
    given = brought.read(write(tmp_path / "model.npz", half), "path", LIKE)
    assert toy.same_bits(given, jax.tree.map(lambda leaf: leaf.astype(np.float32), half))


def missing(tree):
    del tree["params"]["dense"]["bias"]


def unexpected(tree):
    tree["params"]["dense"]["scale"] = np.ones(2, np.float32)


def turned(tree):
    tree["params"]["dense"]["kernel"] = tree["params"]["dense"]["kernel"].T


def not_finite(tree):
    tree["params"]["dense"]["kernel"][1, 1] = np.nan


def whole_numbers(tree):
    tree["batch_stats"]["norm"]["mean"] = np.ones(2, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"lacks params/dense/bias, float32\[2\] in the model"),
        (unexpected, r"has params/dense/scale, which the model has not"),
        (turned, r"has params/dense/kernel as float32\[2, 3\], and the model as float32\[3, 2\]"),
        (not_finite, r"params/dense/kernel holds values that are not finite"),
        (whole_numbers, r"batch_stats/norm/mean is int32, and the model's is float32"),
    ],
)
def test_the_first_leaf_that_differs_is_named(tmp_path, change, message):
    tree = values()
    change(tree)
    path = write(tmp_path / "model.npz", tree)
    with pytest.raises(UserError, match=f"path={path}.*{message}"):
        brought.read(path, "path", LIKE)


def test_what_is_no_model_is_a_user_error(tmp_path):
    for name, content, message in (
        ("model.pth", b"x", "is a pickle.*safetensors.torch.save_file"),
        ("model.h5", b"x", "ends in none of .msgpack, .npz, .safetensors; give an Orbax folder"),
        ("model.npz", b"x", "cannot be read as a model's variables"),
        ("model.msgpack", b"\xc1", "cannot be read as a model's variables"),
        ("model.safetensors", b"x", "cannot be read as a model's variables"),
        ("none.npz", None, "there is no file of that name"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            brought.read(str(tmp_path / name), "path", LIKE)
    for folder in ("folder", "folder.ckpt"):
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match="cannot be read as a model's variables"):
            brought.read(str(tmp_path / folder), "path", LIKE)


def test_a_brought_original_gives_the_bits_of_the_one_trained_here(tmp_path):
    """The same method from the same variables, whether they were trained here or not."""
    data = toy.write_npz(tmp_path / "data.npz")
    first = toy.experiment_config(data, finetune={"epochs": 1})
    experiment.run(first, tmp_path / "first")
    report = json.loads((tmp_path / "first" / "metrics.json").read_text())
    stored = [path for path in (tmp_path / "store").iterdir() if (path / "meta.json").is_file()]
    metas = {path: json.loads((path / "meta.json").read_text())["fields"] for path in stored}
    (original,) = (
        path
        for path, fields in metas.items()
        if fields["parent"] is None and any(f["parent"] == path.name for f in metas.values())
    )
    variables = load_tree(original / "variables")
    file = write(tmp_path / "given.npz", jax.device_get(variables))

    second = toy.experiment_config(
        data,
        finetune={"epochs": 1},
        again={"method": "brought", "path": str(original)},
    )
    second.original.path = file
    again = experiment.run(second, tmp_path / "second")
    for name in ("original", "retrained", "finetune"):
        for metric in ("UA", "RA", "TA", "MIA"):
            one, two = (r["models"][name]["per_seed"][0] for r in (report, again))
            assert one[metric] == two[metric], (name, metric)
    judged = again["models"]
    assert judged["again"]["per_seed"][0]["TA"] == judged["original"]["per_seed"][0]["TA"]
    assert any("original was made elsewhere" in note for note in again["notes"])
    assert any("retrained was made by config.train" in note for note in again["notes"])


def test_a_brought_original_that_does_not_fit_ends_before_anything_is_made(tmp_path):
    changed = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    changed.original.path = write(tmp_path / "model.npz", values())
    with pytest.raises(UserError, match=r"config\.original\.path=.* lacks batch_stats"):
        experiment.run(changed, tmp_path / "run")
    assert not (tmp_path / "store").exists()


def test_a_brought_retrained_is_what_methods_are_compared_with(tmp_path):
    changed = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    model = build(**{**changed.model.to_dict(), "num_classes": 2})
    blank = np.zeros((1, 8, 8, 1), np.float32)
    for seed, name in enumerate(("original", "retrained")):
        variables = jax.device_get(model.init(jax.random.key(seed), blank))
        write(tmp_path / f"{name}.npz", variables)
    changed.train = config.default().train
    changed.original.path = str(tmp_path / "original.npz")
    changed.retrained_path = str(tmp_path / "retrained.npz")
    report = experiment.run(changed, tmp_path / "run")
    assert report["reference"] == "retrained"
    text = (tmp_path / "run" / "summary.md").read_text()
    sha = hashlib.sha256((tmp_path / "original.npz").read_bytes()).hexdigest()
    assert f"original (seed 0): made elsewhere, and read from a file of SHA-256 `{sha}`" in text
    logits = np.load(tmp_path / "run" / "predictions" / "retrained-seed0.npz")["test_logits"]
    with np.load(tmp_path / "data.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"].ravel()
    by_hand, _ = model.apply(variables, (images / np.float32(255) - 0.5) / 0.5, False, None)
    np.testing.assert_allclose(logits, by_hand, atol=1e-4)
    values = report["models"]["retrained"]["per_seed"][0]
    assert values["RTE"] is None and values["compile_seconds"] is None
    assert report["models"]["finetune"]["mean"]["RTE"] > 0 and report["batch_size"] == 256
    assert values["TA"] == pytest.approx(100 * np.mean(np.argmax(by_hand, 1) == labels))
    changed.retrained = False
    with pytest.raises(UserError, match=r"config\.retrained_path is .*set config\.retrained=True"):
        experiment.run(changed, tmp_path / "other")
    changed.retrained, changed.train.epochs = True, 3
    with pytest.raises(UserError, match=r"config\.train\.epochs is 3, which nothing reads"):
        experiment.run(changed, tmp_path / "other")


def test_train_is_not_read_where_nothing_is_trained_by_it(tmp_path):
    changed = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    model = build(**{**changed.model.to_dict(), "num_classes": 2})
    variables = jax.device_get(model.init(jax.random.key(0), np.zeros((1, 8, 8, 1))))
    changed.original.path = write(tmp_path / "model.npz", variables)
    changed.retrained = False
    with pytest.raises(UserError, match=r"config\.train\..*set config\.retrained=True without"):
        experiment.run(changed, tmp_path / "run")
    changed.train = config.default().train
    report = experiment.run(changed, tmp_path / "run")
    assert list(report["models"]) == ["original", "finetune"]


def test_a_brought_model_needs_a_path():
    with pytest.raises(UserError, match=r"methods\.theirs\.path must be a path of a model"):
        checked = config.default()
        checked.methods = config.methods(theirs={"method": "brought"})
        config.check(checked)


@pytest.mark.parametrize("which", ["retrained", "method"])
def test_one_model_cannot_stand_for_several_forget_sets(tmp_path, which):
    path = toy.write_npz(tmp_path / "data.npz")
    settings = toy.experiment_config(path)
    shapes = models.build("cnn", num_classes=2, width=8).init(
        jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)
    )
    write(tmp_path / "it.msgpack", jax.device_get(shapes))
    if which == "retrained":
        settings.retrained_path = str(tmp_path / "it.msgpack")
    else:
        entry = {"method": "brought", "path": str(tmp_path / "it.msgpack")}
        settings.methods = config.methods(theirs=entry)
    plan.make(settings, 1)
    settings.axes = (("forget.fraction", (0.1, 0.5)),)
    with pytest.raises(UserError, match=r"it\.msgpack is one model, and the grid's cells differ"):
        plan.make(settings, 1)
    settings.axes = (("eval.attack", ("threshold", "svc")),)
    assert len(plan.make(settings, 1)) == 2


def test_a_brought_model_takes_no_mask(tmp_path):
    path = toy.write_npz(tmp_path / "data.npz")
    settings = toy.experiment_config(path, theirs={"method": "brought", "path": "it"})
    settings.methods.theirs.mask.ratio = 0.5
    found = config.unread(settings, load(settings.data))
    assert "nothing is trained" in found["config.methods.theirs.mask.ratio"]


def test_retrain_as_a_method_takes_no_mask(tmp_path):
    settings = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), retrain={"epochs": 1})
    plan.make(settings, 1)
    settings.methods.retrain.mask.ratio = 0.5
    with pytest.raises(UserError, match=r"retrain cannot be masked, got mask\.ratio=0\.5"):
        plan.make(settings, 1)
