"""The library call: `unlearn` on what is at hand."""

import asyncio
import copy
import dataclasses
import io
import json

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx
from rich.console import Console

from jaxunlearn import evaluate, experiment, unlearn
from jaxunlearn.data.npz import load
from jaxunlearn.errors import UserError
from jaxunlearn.models import architecture
from jaxunlearn.models import nnx as nnx_lib
from jaxunlearn.models.build import as_model
from jaxunlearn.models.model import Model
from jaxunlearn.request import JUDGED
from jaxunlearn.store import load_tree

SETTINGS = {"epochs": 1, "batch_size": 16, "lr": 0.05}


class ViT(nn.Module):
    """Patches, one block of attention with dropout, no convolution and no batch norm."""

    classes: int = 2

    @nn.compact
    def __call__(self, x, *, deterministic=True):
        x = x.reshape(len(x), 2, 4, 2, 4, -1).swapaxes(2, 3).reshape(len(x), 4, -1)
        x = nn.Dense(8)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = nn.Dropout(0.1, deterministic=deterministic)(x)
        return nn.Dense(self.classes)(x.mean(1))


class Linear(nn.Module):
    """Compiles in no time."""

    classes: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


@pytest.fixture
def data(tmp_path):
    return toy.write_npz(tmp_path / "data.npz")


@pytest.fixture
def given():
    """A module and variables of it, as trained elsewhere."""
    return Linear(), Linear().init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))


def quiet():
    return Console(file=io.StringIO())


def arrays_of(path):
    with np.load(path) as archive:
        return dict(archive)


def test_a_request_gives_variables_predictions_values_and_a_report(data, tmp_path):
    module, variables = ViT(), ViT().init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    before = copy.deepcopy(jax.device_get(variables))
    done = unlearn(
        module,
        variables,
        data,
        np.arange(6),
        "finetune",
        malignant=(1,),
        retrain={"epochs": 1, "batch_size": 16},
        console=quiet(),
        **SETTINGS,
    )
    assert toy.same_bits(before, variables)
    assert jax.tree.structure(done.variables) == jax.tree.structure(variables)
    assert not toy.same_bits(done.variables, variables)
    assert set(done.predictions) == {"original", "retrained", "finetune"}
    logits = done.predictions["finetune"]["test"].logits
    images = arrays_of(data)["test_images"][..., :] / 255.0
    again = module.apply(done.variables, (images.astype(np.float32) - 0.5) / 0.5)
    np.testing.assert_allclose(logits, again, atol=1e-5)
    first = done.predictions["original"]["test"].logits
    assert done.changed.tolist() == np.flatnonzero(first.argmax(1) != logits.argmax(1)).tolist()
    assert len(done.predictions["finetune"]["forget"].labels) == 6
    assert done.metrics["TA"] == pytest.approx(
        100 * np.mean(logits.argmax(1) == arrays_of(data)["test_labels"].ravel())
    )
    assert "false_negatives" in done.verdicts
    assert "| finetune" in done.report()
    saved = done.save(tmp_path / "kept")
    restored = flax.serialization.msgpack_restore((saved / "variables.msgpack").read_bytes())
    assert toy.same_bits(restored, done.variables)
    assert json.loads((saved / "metrics.json").read_text())["split"]["forget"] == 6
    with pytest.raises(UserError, match="exists; name a folder that does not"):
        done.save(tmp_path / "kept")


def test_the_call_gives_the_bits_of_the_command_line(data, given, tmp_path):
    module, variables = given
    done = unlearn(module, variables, data, 0.25, "random_label", console=quiet(), **SETTINGS)
    (tmp_path / "model.msgpack").write_bytes(
        flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(variables))
    )
    config = toy.experiment_config(data, random_label=SETTINGS)
    config.model.name = "test_request:Linear"
    config.model.width, config.model.dtype = 64, "float32"
    config.train = type(config)(toy.config.default().train)
    config.original.path, config.retrained = str(tmp_path / "model.msgpack"), False
    config.forget.fraction, config.augment, config.seeds = 0.25, "none", (0,)
    config.eval.batch_size = 128
    experiment.run(config, tmp_path / "run", quiet())
    path = tmp_path / "run" / "models" / "random_label-seed0" / "variables"
    assert toy.same_bits(load_tree(path), done.variables)


def drawn(seed):
    """Variables of `Linear`, as somebody may have trained them."""
    return Linear().init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))


def answers(variables, data, rows=slice(None), which="test"):
    """By hand: what `Linear` says of the file's images."""
    images = arrays_of(data)[f"{which}_images"][rows].reshape(-1, 64) / 255.0
    dense = jax.device_get(variables["params"]["Dense_0"])
    return ((images - 0.5) / 0.5 @ dense["kernel"] + dense["bias"]).argmax(1)


def test_parameters_alone_come_back_as_they_were_given(data, given):
    module, variables = given
    done = unlearn(
        module, variables["params"], data, np.arange(6), "finetune", epochs=1, console=quiet()
    )
    assert jax.tree.structure(done.variables) == jax.tree.structure(variables["params"])
    whole = unlearn(module, variables, data, np.arange(6), "finetune", epochs=1, console=quiet())
    assert toy.same_bits(done.variables, whole.variables["params"])


def test_images_are_normalised_as_the_caller_says(data):
    original, judged = drawn(3), drawn(4)
    done = evaluate(
        Linear(),
        judged,
        data,
        np.arange(6),
        original=original,
        mean=(0.2,),
        std=(0.7,),
        console=quiet(),
    )
    images = arrays_of(data)["test_images"].reshape(-1, 64) / 255.0
    dense = jax.device_get(judged["params"]["Dense_0"])
    logits = (images - 0.2) / 0.7 @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(done.predictions[JUDGED]["test"].logits, logits, atol=1e-4)


def test_a_folder_that_is_a_file_and_arrays_that_do_not_fit_are_named_as_given(
    data, given, tmp_path
):
    (tmp_path / "file").write_text("")
    message = r"^the folder .*/file cannot be written \(.*\); name another folder$"
    with pytest.raises(UserError, match=message):
        unlearn(*given, data, np.arange(6), "finetune", folder=tmp_path / "file", console=quiet())
    arrays = arrays_of(data)
    floats = {**arrays, "train_images": arrays["train_images"] / np.float32(255)}
    with pytest.raises(UserError, match=r"^data: train_images are float32 .*round\(\)\.astype"):
        unlearn(*given, floats, np.arange(6), "finetune", console=quiet())
    with pytest.raises(UserError, match=r"forget: .*999") as caught:
        unlearn(*given, data, np.array([999]), "finetune", console=quiet())
    assert "given" not in str(caught.value) and ".npy" not in str(caught.value)


def test_what_others_have_unlearned_is_judged_as_it_is(data):
    original, unlearned, retrained = map(drawn, (3, 4, 5))
    done = evaluate(
        Linear(),
        unlearned,
        data,
        np.arange(6),
        original=original,
        retrained=retrained,
        malignant=(1,),
        console=quiet(),
    )
    assert toy.same_bits(done.variables, unlearned)
    truth = {which: arrays_of(data)[f"{which}_labels"].ravel() for which in ("train", "test")}
    for metric, which, rows in (("RA", "train", slice(6, None)), ("TA", "test", slice(None))):
        ours, gold = (
            100 * np.mean(answers(each, data, rows, which) == truth[which][rows])
            for each in (unlearned, retrained)
        )
        assert done.metrics[metric] == pytest.approx(ours)
        assert done.metrics["gaps"][metric] == pytest.approx(abs(ours - gold))
    changed = answers(original, data) != answers(unlearned, data)
    assert done.changed.tolist() == np.flatnonzero(changed).tolist() and changed.any()
    assert done.verdicts["false_negatives"]["reference"] == "retrained"
    notes = done.results["notes"]
    assert any("original was made elsewhere" in note for note in notes)
    assert any("retrained was made elsewhere" in note for note in notes)
    assert not any("config.train" in note for note in notes)


def test_without_a_retrained_model_there_are_no_gaps(data):
    done = evaluate(Linear(), drawn(4), data, 0.25, original=drawn(3), console=quiet())
    assert "gaps" not in done.metrics and set(done.predictions) == {"original", "unlearned"}


def equinox_net(eqx, norm=False):
    """An Equinox module with dropout, or with a state besides its parameters."""

    class Net(eqx.Module):
        first: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        last: eqx.nn.Linear
        norm: eqx.nn.BatchNorm | None
        sizes: tuple = (8, 8)

        def __init__(self):
            keys = jax.random.split(jax.random.key(5))
            self.first = eqx.nn.Linear(64, 4, key=keys[0])
            self.last = eqx.nn.Linear(4, 2, key=keys[1])
            self.dropout = eqx.nn.Dropout(0.5)
            self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch") if norm else None

        def __call__(self, x, key=None):
            x = jax.nn.relu(self.first(x.ravel()))
            return self.last(self.dropout(x, key=key))

    return Net()


def test_an_equinox_module_comes_back_as_one(data):
    eqx = pytest.importorskip("equinox")
    trained = equinox_net(eqx)
    before = jax.device_get(eqx.filter(trained, eqx.is_array))
    done = unlearn(trained, None, data, np.arange(10), "finetune", **SETTINGS)
    assert isinstance(done.variables, type(trained)) and done.variables.sizes == (8, 8)
    assert toy.same_bits(before, eqx.filter(trained, eqx.is_array))
    assert not toy.same_bits(before, eqx.filter(done.variables, eqx.is_array))
    with np.load(data) as arrays:
        image = (arrays["test_images"][:1].reshape(1, 8, 8) / np.float32(255) - 0.5) / 0.5
    net = eqx.nn.inference_mode(done.variables)
    expected = done.predictions["finetune"]["test"].logits[0]
    np.testing.assert_allclose(net(image), expected, rtol=1e-4, atol=1e-5)


def test_an_equinox_module_that_is_not_understood(data):
    eqx = pytest.importorskip("equinox")
    with pytest.raises(UserError, match=r"Net keeps an eqx\.nn\.State"):
        unlearn(equinox_net(eqx, norm=True), None, data, np.arange(10), "finetune", **SETTINGS)
    with pytest.raises(UserError, match="Net is a module that has its parameters"):
        unlearn(equinox_net(eqx), None, data, np.arange(10), "finetune", retrain={"epochs": 1})


class Nnx(nnx.Module):
    """With a stream of random numbers, and state that is no parameter."""

    def __init__(self, *, rngs):
        self.first, self.norm = nnx.Linear(64, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x.reshape(len(x), -1)))
        return self.last(self.dropout(nnx.relu(x)))


def test_an_nnx_module_with_its_parameters_comes_back_as_one(data):
    trained = Nnx(rngs=nnx.Rngs(7))
    before = jax.device_get(nnx_lib.variables(trained))
    done = unlearn(trained, None, data, 0.25, "finetune", console=quiet(), **SETTINGS)
    assert isinstance(done.variables, Nnx) and done.variables is not trained
    assert toy.same_bits(before, nnx_lib.variables(trained))
    assert not toy.same_bits(before, nnx_lib.variables(done.variables))
    images = (arrays_of(data)["test_images"] / np.float32(255) - 0.5) / 0.5
    done.variables.eval()
    logits = done.predictions["finetune"]["test"].logits
    np.testing.assert_allclose(done.variables(images), logits, atol=1e-5)
    trained.eval()
    np.testing.assert_allclose(
        trained(images), done.predictions["original"]["test"].logits, atol=1e-5
    )
    # Its class, which draws parameters anew, goes the same way from the same variables.
    again = unlearn(Nnx, trained, data, 0.25, "finetune", console=quiet(), **SETTINGS)
    assert toy.same_bits(again.predictions["finetune"]["test"].logits, logits)
    judged = evaluate(done.variables, None, data, 0.25, original=trained, console=quiet())
    assert judged.metrics["TA"] == done.metrics["TA"]
    for more in ({"retrain": {"epochs": 1}}, {"method": "retrain"}):
        with pytest.raises(UserError, match="Nnx is a module that has its parameters"):
            unlearn(trained, None, data, 0.25, console=quiet(), **more)
    with pytest.raises(UserError, match=r"must be a dict with .params., .* got Linear"):
        unlearn(Linear(), None, data, 0.25, console=quiet())
    for state in (nnx.state(trained), nnx.state(trained, nnx.Param)):
        with pytest.raises(UserError, match=r"or an nnx .* module that has them, got State"):
            unlearn(Nnx, state, data, 0.25, console=quiet())


class OfClasses(nnx.Module):
    """As documented: the data say how many classes there are."""

    def __init__(self, num_classes, *, rngs):
        self.last = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.last(x.reshape(len(x), -1))


class LinenOfClasses(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def nnx_of_rngs(rngs):
    return OfClasses(2, rngs=rngs)


@pytest.mark.parametrize(
    "make", [OfClasses, nnx_of_rngs, lambda rngs: OfClasses(2, rngs=rngs), LinenOfClasses]
)
def test_what_makes_a_module_is_a_model_that_can_be_trained_anew(data, make):
    trained = OfClasses(2, rngs=nnx.Rngs(7))
    if make is LinenOfClasses:
        trained = LinenOfClasses(2).init(jax.random.key(0), np.zeros((1, 8, 8, 1)), False)
    more = {"retrain": {"epochs": 1, "batch_size": 16}}
    done = unlearn(make, trained, data, 0.25, "finetune", console=quiet(), **more, **SETTINGS)
    assert done.metrics["avg_gap"] >= 0
    assert type(done.variables) is type(trained)


def test_outputs_that_are_probabilities_are_refused(data):
    class Softmax(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.softmax(nn.Dense(2)(x.reshape(len(x), -1)))

    variables = Softmax().init(jax.random.key(0), np.zeros((1, 8, 8, 1)), False)
    with pytest.raises(UserError, match=r"outputs are probabilities, .*leave out its last softmax"):
        unlearn(Softmax(), variables, data, 0.25, "finetune", console=quiet(), **SETTINGS)


@pytest.mark.parametrize("method", ["random_label", "salun_cra", "ssd"])
def test_a_head_may_have_more_classes_than_the_data(method, data):
    wide = Linear(5).init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    more = {"cra": {"target": "risk_neutral"}} if method == "salun_cra" else {}
    settings = more if method == "ssd" else {**SETTINGS, **more}
    done = unlearn(Linear(5), wide, data, 0.25, method, malignant=(1,), console=quiet(), **settings)
    assert done.predictions[method]["test"].logits.shape == (24, 5)
    right = answers(done.variables, data) == arrays_of(data)["test_labels"].ravel()
    assert done.metrics["TA"] == pytest.approx(100 * np.mean(right))
    assert set(answers(wide, data)) - {0, 1}  # it does answer classes that the data has not
    rows = (done.folder / "changed" / f"{method}-seed0.csv").read_text().splitlines()[1:]
    assert len(rows) == len(done.changed)
    assert method == "ssd" or any("class " in row for row in rows)
    assert any("5 classes apart, the data 2" in note for note in done.results["notes"])


def test_a_retrained_model_at_hand_is_compared_with(data):
    done = unlearn(
        Linear(), drawn(3), data, 0.25, "finetune", retrained=drawn(5), console=quiet(), **SETTINGS
    )
    assert set(done.predictions) == {"original", "retrained", "finetune"}
    gold = 100 * np.mean(answers(drawn(5), data) == arrays_of(data)["test_labels"].ravel())
    assert done.metrics["gaps"]["TA"] == pytest.approx(abs(done.metrics["TA"] - gold))
    with pytest.raises(UserError, match="retrain and retrained are both given"):
        unlearn(Linear(), drawn(3), data, 0.25, retrain={"epochs": 1}, retrained=drawn(5))


def test_every_form_of_data_request_and_variables(data, given):
    module, variables = given
    loaded = load(toy.config.ConfigDict({"path": data}))
    frozen = flax.core.freeze(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables))
    results = [
        unlearn(module, variables, given_data, forget, "finetune", console=quiet(), **SETTINGS)
        for given_data, forget in (
            (data, {"kind": "groups", "groups": (0, 1)}),
            (arrays_of(data) | {"file": np.arange(3), 7: "unread"}, np.arange(4)),
            (dataclasses.replace(loaded, malignant=(1,)), [0, 1, 2, 3]),
        )
    ]
    assert toy.same_bits(results[0].variables, results[1].variables)
    assert toy.same_bits(results[0].variables, results[2].variables)
    assert [each.results["dataset"]["malignant"] for each in results] == [[], [], [1]]
    half = unlearn(module, frozen, data, np.arange(4), "finetune", console=quiet(), **SETTINGS)
    assert isinstance(half.variables, flax.core.FrozenDict)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {jnp.dtype(jnp.bfloat16)}


def test_a_second_call_finds_what_the_first_has_made(data, given, tmp_path):
    text = io.StringIO()
    args = (*given, data, np.arange(4), "finetune")
    for _ in range(2):
        unlearn(*args, folder=tmp_path / "kept", console=Console(file=text), **SETTINGS)
    assert "finetune: in the store" in text.getvalue()
    other = Linear().init(jax.random.key(4), jnp.zeros((1, 8, 8, 1)))
    before = text.getvalue()
    console = Console(file=text)
    unlearn(given[0], other, *args[2:], folder=tmp_path / "kept", console=console, **SETTINGS)
    assert "in the store" not in text.getvalue()[len(before) :]


def turned(variables, images, train, key):
    logits, state = as_model(Linear()).apply(variables, images, train, key)
    return -3 * logits, state


def test_calls_that_share_a_folder_keep_their_results_apart(data, given, tmp_path):
    text = io.StringIO()
    settings = {"method": "finetune", "folder": tmp_path, "console": Console(file=text), **SETTINGS}
    first = unlearn(*given, arrays_of(data), [1, 2], **settings)
    written = (first.folder / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="the index 99999 is not in train"):
        unlearn(*given, arrays_of(data), [99999], **settings)
    second = unlearn(*given, arrays_of(data), [3, 4], **settings)
    assert (first.folder / "metrics.json").read_bytes() == written
    assert first.results["dataset"]["name"] == "data"
    for done, expected in ((first, [1, 2]), (second, [3, 4])):
        with np.load(done.folder / "split.npz") as split:
            assert split["forget"].tolist() == expected
    # The same variables in another model are another call.
    third = unlearn(
        Model(as_model(Linear()).init, turned), given[1], arrays_of(data), [1, 2], **settings
    )
    assert third.folder != first.folder
    assert (first.folder / "metrics.json").read_bytes() == written
    text.truncate(0)
    again = unlearn(*given, arrays_of(data), [1, 2], **settings)
    assert again.folder == first.folder and again.results == first.results
    assert "finetune: in the store" in text.getvalue()


def test_what_is_known_of_the_data_is_told_of_a_dataset_too(data, given):
    known = dataclasses.replace(
        load(toy.config.ConfigDict({"path": data})),
        name="toy (synthetic)",
        licence="CC0",
        synthetic=True,
    )
    found = unlearn(*given, known, [1, 2], "finetune", console=quiet(), **SETTINGS).results
    told = {name: found["dataset"][name] for name in ("name", "licence", "synthetic")}
    assert told == {"name": "toy (synthetic)", "licence": "CC0", "synthetic": True}


class Scaled(nn.Module):
    """A constant within a function that is compiled by itself."""

    scale: float

    @nn.compact
    def __call__(self, x):
        scale = jnp.full((1, 2), self.scale)
        return jax.jit(lambda logits: logits * scale)(nn.Dense(2)(x.reshape(len(x), -1)))


def bent(slope):
    """A function that is the identity, with another gradient."""
    same = jax.custom_vjp(lambda logits: logits)
    same.defvjp(lambda logits: (logits, None), lambda _, pull: (pull * slope,))
    return same


def test_models_at_hand_are_known_by_all_that_they_compute():
    def linear(constant=None, slope=1.0, features=None):
        def init(key, images):
            return {"params": {"w": jnp.zeros((64, 2))}}

        def apply(variables, images, train, key):
            logits = images.reshape(len(images), -1) @ variables["params"]["w"]
            if constant is not None:
                logits = jax.jit(lambda logits: logits + constant)(logits)
            return bent(slope)(logits), {}

        return Model(init, apply, features)

    def seen(scale):
        return lambda variables, images: images.reshape(len(images), -1) * scale

    def key(model):
        return architecture.given(model, (8, 8, 1), 2).fields["computes"]

    ones = np.ones((1, 2), np.float32)
    models = [
        *(linear(), linear(ones), linear(2 * ones), linear(slope=2.0)),
        *(linear(features=seen(1.0)), linear(features=seen(2.0))),
        *(as_model(Scaled(scale)) for scale in (1.0, 2.0)),
    ]
    keys = [key(model) for model in models]
    assert len(set(keys)) == len(keys)
    assert key(linear(1 * ones)) == keys[1] and key(as_model(Scaled(1.0))) == keys[-2]

    def counting(variables, images, train, key):
        seen = variables["count"]["seen"] + train
        return images.reshape(len(images), -1) @ variables["params"]["w"], {"count": {"seen": seen}}

    start = {"params": {"w": jnp.zeros((64, 2))}, "count": {"seen": jnp.int32(0)}}
    count = Model(lambda key, images: start, counting)  # whole numbers have no gradient
    assert key(count) not in keys and key(count) == key(count)


def test_it_runs_within_an_event_loop_as_in_a_notebook(data, given):
    async def cell():
        return unlearn(*given, data, np.arange(4), "finetune", console=quiet(), **SETTINGS)

    assert asyncio.run(cell()).metrics["RTE"] >= 0


def test_wrong_input_is_one_line(data, given):
    module, variables = given
    call = {"console": quiet(), **SETTINGS}
    odd = arrays_of(data)
    images = {name: array for name, array in odd.items() if name.endswith("_images")}
    odd |= {name: np.pad(array, 1, mode="edge")[1:-1] for name, array in images.items()}
    for args, message in (
        ((module, variables, data, np.arange(4), "salum"), "salum"),
        ((module, variables, data, np.array([0, 9999]), "finetune"), "9999"),
        ((module, variables, 3, np.arange(4), "finetune"), "data must be a path, a dict"),
        ((object(), variables, data, np.arange(4), "finetune"), "it must be a flax.linen.Module"),
        ((Linear(1), variables, data, np.arange(4), "finetune"), "one logit for each class"),
        ((Linear(3), variables, data, np.arange(4), "finetune"), r"the model as float32\[3\]"),
        ((ViT(), variables, odd, np.arange(4), "finetune"), "fails on images of 10 x 10 x"),
        (
            (module, {"params": {"a": np.zeros(2)}}, data, np.arange(4), "finetune"),
            r"^variables lacks params/.* in the model; it has params$",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            unlearn(*args, **call)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"forget.*fractoin"):
        unlearn(module, variables, data, {"fractoin": 0.1}, "finetune", **call)


def test_methods_in_stages_from_python(data, given):
    share = np.float32(0.25)
    done = unlearn(*given, data, share, ("ssd", "finetune"), batch_size=16, finetune={"epochs": 1})
    assert done.method == "ssd_finetune" and len(done.predictions["ssd_finetune"]["test"].labels)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"malignant": 1}, r"data\.malignant must be of type tuple, got 1"),
        ({"mean": 0.5}, r"data\.mean must be of type tuple, got 0\.5"),
        ({"forget": [[1], [2, 3]]}, "forget must be an array"),
        *(({"method": wrong}, "^method is .*; allowed: a name") for wrong in (None, 5, len, (5,))),
    ],
)
def test_arguments_of_a_wrong_kind(data, given, changes, message):
    settings = {"forget": 0.2, "method": "finetune", **changes}
    with pytest.raises(UserError, match=message):
        unlearn(*given, data, **settings)


def test_there_is_no_judging_without_an_original(data, given):
    net, variables = given
    with pytest.raises(UserError, match="original must be the variables"):
        evaluate(net, variables, data, 0.2, original=None)
