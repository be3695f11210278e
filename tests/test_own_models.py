"""Models that users bring, in the shapes that they have, and what is said of those that do not fit.

Each is a file of the user's; what it stands for is looked at by shapes alone, in the plan.
"""

import functools
import importlib
import itertools
import json
import py_compile
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from rich.console import Console

from jaxunlearn import closure, experiment, models
from jaxunlearn.errors import UserError
from jaxunlearn.models.architecture import given, named
from jaxunlearn.models.build import build_as_set
from jaxunlearn.models.dry_run import dry_run
from jaxunlearn.models.sources import described, sources

SHAPE, CLASSES = (8, 8, 1), 3
HEADER = """
import functools
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxunlearn.models import Model, from_flax

def flat(x):
    return x.reshape(len(x), -1)
"""
NAMES = itertools.count()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module of the user's beside the command; gives its name, which no other has."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name=None, header=HEADER):
        name = name or f"mynets{next(NAMES)}"
        (tmp_path / f"{name}.py").write_text(header + text)
        return name

    return write


def settings(name, **changes):
    return {"name": name, "width": 64, "dtype": "float32", **changes}


def look(name, shape=SHAPE, num_classes=CLASSES, **changes):
    """The dry run of the plan; gives the model."""
    dry_run(name, build_as_set(settings(name, **changes), num_classes), shape, num_classes)
    return models.build(num_classes=num_classes, **settings(name, **changes))


def net(call, body="", fields="num_classes: int", last=None):
    """A module with dropout and batch norm, whose call has these arguments."""
    last = last or "nn.Dense(self.num_classes)(x)"
    return f"""
class Net(nn.Module):
    {fields}
    @nn.compact
    def __call__(self, {call}):
        {body}
        x = nn.Dropout(0.5, deterministic=not train)(flat(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return {last}
"""


MODES = {
    "x, train": "",
    "x, train=False": "",
    "x, *, train": "",
    "x, *, train: bool = False": "",
    "x, training": "train = training",
    "images, is_training=False": "x, train = images, is_training",
    "x, deterministic": "train = not deterministic",
    "x, *, deterministic=True": "train = not deterministic",
    "x, mask=None, *, inference=True": "train = not inference",
    "x, **how": "train = how['train']",
    "x, train, deterministic=True": "assert train is not deterministic",
}


@pytest.mark.parametrize("call", MODES)
def test_the_call_may_name_its_mode_as_flax_users_do(write, call):
    model = look(f"{write(net(call, MODES[call]))}:Net")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
    variables = model.init(jax.random.key(0), images[:1])
    trained, state = model.apply(variables, images, True, jax.random.key(1))
    other, _ = model.apply(variables, images, True, jax.random.key(2))
    assert np.abs(trained - other).max() > 0  # dropout
    assert np.abs(state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
    logits, kept = model.apply(variables, images, False, None)
    assert toy.same_bits(kept, {"batch_stats": variables["batch_stats"]})
    alone, _ = model.apply(variables, images[:1], False, None)
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", ["train: bool", "train: bool = True", "deterministic: bool"])
def test_the_mode_may_be_a_field(write, field):
    body = "train = self.train" if "train" in field else "train = not self.deterministic"
    text = net("x", body, f"num_classes: int; {field}")
    name = write(text + "partial = functools.partial(Net, num_classes=3)")
    look(f"{name}:partial")
    model = look(f"{name}:Net")
    images = jnp.ones((4, *SHAPE))
    variables = model.init(jax.random.key(0), images)
    trained, other = (
        model.apply(variables, images, True, jax.random.key(seed))[0] for seed in (1, 2)
    )
    assert np.abs(trained - other).max() > 0
    assert model.apply(variables, images, False, None)[0].shape == (4, CLASSES)


STATIC = """
class Plain(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train, deterministic=True):
        if train:
            assert not deterministic
            x = 2 * x
        return nn.Dense(self.num_classes)(flat(x))
remat = nn.remat(Plain, static_argnums=(2, 3))
jit = nn.jit(Plain, static_argnums=(2, 3))
by_names = nn.jit(Plain, static_argnames=("train", "deterministic"))
class Nnx(nnx.Module):
    def __init__(self, num_classes, rngs): self.last = nnx.Linear(64, num_classes, rngs=rngs)
    @functools.partial(nnx.remat, static_argnums=2)
    def __call__(self, x, train):
        return self.last(flat(2 * x if train else x))
"""


@pytest.mark.parametrize("kind", ["remat", "jit", "by_names", "Nnx"])
def test_a_module_under_remat_or_jit_may_declare_its_mode_static(write, kind):
    model = look(f"{write(STATIC)}:{kind}")
    images = jnp.ones((2, *SHAPE))
    variables = model.init(jax.random.key(0), images)  # the bias is 0
    trained, _ = model.apply(variables, images, True, jax.random.key(1))
    logits, _ = model.apply(variables, images, False, None)
    np.testing.assert_allclose(trained, 2 * logits, rtol=1e-5, atol=1e-6)
    assert np.abs(logits).max() > 0


def test_parameters_with_axis_names_are_trained_as_plain_arrays(write):
    text = """
class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        mean = self.variable(
            "batch_stats", "mean", nn.with_partitioning(lambda: jnp.zeros((1, 64)), (None, "model"))
        )
        if train: mean.value = mean.value + 1
        return nn.Dense(self.num_classes, kernel_init=init)(flat(x) - mean.value)
boxed = Model(lambda key, x: Net(3).init(key, x, False), from_flax(Net(3)).apply)
"""
    name = write(text)
    model, images = look(f"{name}:Net"), jnp.ones((2, *SHAPE))
    variables = model.init(jax.random.key(0), images)
    assert variables["params"]["Dense_0"]["kernel"].shape == (64, CLASSES)
    _, state = model.apply(variables, images, True, jax.random.key(0))
    np.testing.assert_array_equal(state["batch_stats"]["mean"], np.ones((1, 64)))
    assert "sows" not in refused(f"{name}:boxed", "by names, got .*; flax.linen.unbox makes")


@pytest.mark.parametrize("argument", ["hidden", "n", "width_2", "features"])
def test_the_number_of_classes_is_not_guessed_to_be_another_argument(write, argument):
    text = f"""
class Linen(nn.Module):
    {argument}: int
    @nn.compact
    def __call__(self, x): return nn.Dense(3)(nn.Dense(self.{argument})(flat(x)))
class Nnx(nnx.Module):
    def __init__(self, {argument}, *, rngs): self.last = nnx.Linear(64, 3, rngs=rngs)
    def __call__(self, x): return self.last(flat(x))
def function({argument}): return Linen({argument})
def by_position({argument}, /): return Linen({argument})
def anything({argument}, **options): return Linen({argument})
def shifted({argument}=2, num_classes=3, /): return Linen({argument})
partial = functools.partial(Linen, name="net")
"""
    name = write(text)
    for kind in ("Linen", "Nnx", "function", "by_position", "anything", "partial"):
        asks = rf"requires {argument}; .* call the number of classes num_classes, and give"
        refused(f"{name}:{kind}", asks)
    refused(f"{name}:shifted", "cannot be built: .*positional-only")


def test_the_number_of_classes_may_go_by_any_name_that_says_so(write):
    from jaxunlearn.models.build import CLASSES as names

    text = "".join(
        f"def {one}({one}{default}): return nn.Sequential([flat, nn.Dense({one})])\n"
        for one, default in zip(names, itertools.cycle(["", "=7"]), strict=False)
    )
    name = write(text + "set = functools.partial(n_classes, n_classes=4)")
    for one in names:
        look(f"{name}:{one}")
    look(f"{name}:set", num_classes=4)
    refused(f"{name}:set", r"it gives float32\[1, 4\] for 1 images of 3 classes")


PLAIN = """
class Net(nn.Module):
    num_classes: int = 3
    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "seen", x)
        x = self.perturb("out", nn.Dense(self.num_classes)(flat(x)))
        return x
class Base(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_labels)(flat(x))
class Classes(Base):
    num_labels: int
class Half(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes, dtype=jnp.bfloat16)(flat(x))
class Listed(nn.Module):
    sizes: object
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(flat(x))
instance = Net()
unhashable = Listed(jnp.ones(3))
sequence = nn.Sequential([flat, nn.Dense(8), nn.relu, nn.Dense(3)])
pair = from_flax(Net(3))
def only_classes(num_classes): return Net(num_classes)
def nothing(): return Net(3)
def other_name(classes, **options): return Net(classes)
def by_position(num_classes, /): return Net(num_classes)
def with_default(depth=2, *, n_classes): return Net(n_classes)
def a_class(num_classes): return Classes
def no_class(): return Net
def anything(**options): return Net(options["num_classes"])
partial = functools.partial(Net, 3)
def functions(num_classes):
    def init(key, images):
        return {"params": {"w": jax.random.normal(key, (images[0].size, num_classes))}}
    def apply(variables, images, train, key):
        return flat(images) @ variables["params"]["w"], {}
    return init, apply
class Family:
    @classmethod
    def small(cls, num_classes): return Net(num_classes)
"""
KINDS = (
    "Net Classes Half instance unhashable sequence pair only_classes nothing other_name "
    "by_position with_default a_class no_class anything partial functions Family.small"
).split()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_path_names_may_be_of_any_of_these_kinds(write, kind):
    name = f"{write(PLAIN)}:{kind}"
    model = look(name)
    images = jax.ShapeDtypeStruct((5, *SHAPE), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables) == {"params"}
    for train in (False, True):
        key = jax.random.key(0) if train else None
        logits, state = jax.eval_shape(
            lambda variables, images, train=train, key=key: model.apply(
                variables, images, train, key
            ),
            variables,
            images,
        )
        assert logits.shape == (5, CLASSES) and logits.dtype == jnp.float32 and state == {}
    assert model is look(name)


@pytest.mark.parametrize("kind", ["Net", "instance", "only_classes", "pair", "partial"])
def test_a_fork_may_put_any_of_them_into_the_table(write, monkeypatch, kind):
    module = importlib.import_module(write(PLAIN))
    monkeypatch.setitem(models.MODELS, "mine", getattr(module, kind))
    assert look("mine").features is None
    assert module.__name__ in sources("mine")


NNX = """
class Net(nnx.Module):
    def __init__(self, num_classes, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, num_classes, rngs=rngs)
    def __call__(self, x):
        x = flat(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(self.dropout(self.norm(x)))
class Named(Net):
    def __call__(self, x, *, train):
        self.norm.use_running_average = not train
        return self.last(self.norm(self.layers[0](flat(x))))
def function(num_classes, rngs): return Net(num_classes, rngs=rngs)
class Fixed(Net):
    def __init__(self, rngs): super().__init__(3, rngs=rngs)
made = Net(3, rngs=nnx.Rngs(0))
def seedless(num_classes): return Net(num_classes, rngs=nnx.Rngs(0))
class Noisy(Net):
    def __call__(self, x):
        return self.last(self.dropout(self.layers[0](flat(x)), deterministic=False))
class Updating(Net):
    def __call__(self, x):
        return self.last(self.norm(self.layers[0](flat(x)), use_running_average=False))
"""


@pytest.mark.parametrize("kind", ["Net", "Named", "function", "Fixed"])
def test_an_nnx_module_is_brought_by_its_class_or_a_function_that_takes_rngs(write, kind):
    model = look(f"{write(NNX)}:{kind}")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
    variables, other = (model.init(jax.random.key(seed), images) for seed in (0, 1))
    assert set(variables) == {"params", "state"} and set(variables["state"]) == {"norm"}
    kernels = [one["params"]["layers"]["0"]["kernel"] for one in (variables, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0  # each seed has its own
    logits, kept = model.apply(variables, images, False, None)
    assert toy.same_bits(kept, {"state": variables["state"]})
    mean = variables["state"]["norm"]["mean"]
    trained, state = jax.jit(model.apply, static_argnums=2)(
        variables, images, True, jax.random.key(1)
    )
    assert np.abs(trained - logits).max() > 1e-3
    assert np.abs(state["state"]["norm"]["mean"] - mean).max() > 0
    if kind == "Net":
        again, new = (
            model.apply(variables, images, True, jax.random.key(seed))[0] for seed in (1, 2)
        )
        np.testing.assert_allclose(again, trained, rtol=1e-5, atol=1e-6)
        assert np.abs(new - trained).max() > 1e-3


@pytest.mark.parametrize(
    "kind, message",
    [
        ("made", "the same for every seed; give its class"),
        ("seedless", "the same for every seed; give its class"),
        ("Noisy", "draws random numbers in evaluation"),
        ("Updating", "it updates its variables in evaluation"),
    ],
)
def test_an_nnx_module_that_does_not_fit_is_refused(write, kind, message):
    refused(f"{write(NNX)}:{kind}", message)


def test_an_nnx_class_in_a_partial_keeps_what_the_partial_sets(write):
    text = """
class Net(nnx.Module):
    def __init__(self, hidden, num_classes, *, width=2, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, hidden + width, rngs=rngs)
        self.last = nnx.Linear(hidden + width, num_classes, rngs=rngs)
    def __call__(self, x): return self.last(self.first(flat(x)))
by_name = functools.partial(Net, hidden=5, width=1)
by_position = functools.partial(Net, 5)
whole = functools.partial(Net, 5, rngs=nnx.Rngs(0))
"""
    name = write(text)
    for kind, width in (("by_name", 6), ("by_position", 69), ("whole", 69)):
        model = look(f"{name}:{kind}")
        kernels = [
            model.init(jax.random.key(seed), jnp.ones((1, *SHAPE)))["params"]["first"]["kernel"]
            for seed in (0, 1)
        ]
        assert kernels[0].shape == (64, width) and np.abs(kernels[0] - kernels[1]).max() > 0
    refused(f"{name}:by_name", "config.model.width is 8", width=8)


def test_an_nnx_module_may_hold_arrays_as_plain_attributes(write):
    text = """
class Net(nnx.Module):
    def __init__(self, num_classes, *, rngs: nnx.Rngs):
        self.mean, self.scale = np.full((1, 64), 0.5), np.float32(3)
        self.part = Part()
        self.last = nnx.Linear(64, num_classes, rngs=rngs)
    def __call__(self, x): return self.last(self.part(flat(x) - self.mean) * self.scale)
class Part(nnx.Module):
    def __init__(self): self.std, self.unused = jnp.full((1, 64), 2.0), nnx.List([jnp.ones(3)])
    def __call__(self, x): return x / self.std
class Drifts(Net):
    def __call__(self, x):
        self.mean = self.mean + 1
        return super().__call__(x)
"""
    name = write(text, header=f"{HEADER}import numpy as np\n")
    model, images = look(f"{name}:Net"), jnp.ones((2, *SHAPE))
    variables = model.init(jax.random.key(0), images)
    last = variables["params"]["last"]
    for train in (False, True):
        logits, state = model.apply(variables, images, train, jax.random.key(0) if train else None)
        expected = 0.75 * last["kernel"].sum(0) + last["bias"]
        np.testing.assert_allclose(logits, np.tile(expected, (2, 1)), rtol=1e-5, atol=1e-6)
        assert toy.same_bits(state, {"state": variables["state"]})
    refused(f"{name}:Drifts", "it updates its variables in evaluation")


def refused(name, message, **how):
    with pytest.raises(UserError, match=message) as error:
        look(name, **how)
    text = str(error.value)
    assert text.startswith(f"model {name!r}") and "\n" not in text
    return text


OUTPUTS = {
    "(x, x)": r"it gives \(float32\[1, 3\], float32\[1, 3\]\) .* nothing but the logits",
    "{'logits': x}": r"it gives {logits: float32\[1, 3\]} .* nothing but the logits",
    "None": "it gives NoneType .* nothing but the logits",
    "x[:, 0]": r"it gives float32\[1\] .* one logit for each class, floating \[1, 3\]",
    "x[:, :1]": r"it gives float32\[1, 1\] .* one logit for each class, floating \[1, 3\]",
    "x[:, :2]": r"it gives float32\[1, 2\]",
    "nn.Dense(10)(x)": r"it gives float32\[1, 10\] for 1 images of 3 classes",
    "x[:, None]": r"it gives float32\[1, 1, 3\]",
    "jnp.mean(x, 0, keepdims=True)": r"in training it gives float32\[1, 3\] for 4 images",
    "jnp.round(x).astype(int)": r"it gives int32\[1, 3\]; return logits, float32",
    "x > 0": r"it gives bool\[1, 3\]; return logits, float32",
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_is_not_one_logit_for_each_class_is_refused(write, output):
    text = net("x, train", last=output).replace("return", "x = nn.Dense(3)(x)\n        return")
    refused(f"{write(text)}:Net", OUTPUTS[output])


WRONG = """
class Mask(nn.Module):
    def __call__(self, x, mask): return x
class Images(nn.Module):
    def __call__(self, train, x): return x
class NoCall(nn.Module):
    num_classes: int
class Counts(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "n", jnp.zeros, ())
        count.value += 1
        return nn.Dense(3)(flat(x))
class AlwaysBatch(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(flat(x)))
class AlwaysDrops(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(flat(x)))
class Undecided(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5)(flat(x)))
class Sown(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("losses", "seen", jnp.sum(x))
        return nn.Dense(3)(flat(x))
class NoParams(nn.Module):
    def __call__(self, x): return flat(x)[:, :3]
class Fixed(nn.Module):
    @nn.compact
    def __call__(self, x): return nn.Dense(3)(x.reshape(-1, 28 * 28))
class Colour(nn.Module):
    @nn.compact
    def __call__(self, x):
        assert x.shape[-1] == 3, "colour images only"
        return nn.Dense(3)(flat(x))
class Pools(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(3)(jnp.mean(x, (1, 2)))
class Flattens(nn.Module):
    @nn.compact
    def __call__(self, x): return nn.Dense(3)(flat(nn.max_pool(x, (16, 16))))
class Setup(nn.Module):
    def setup(self): raise KeyError("depth")
    def __call__(self, x): return x
class Loops(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(flat(x))
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x + 1, x)
class HalfParams(nn.Module):
    @nn.compact
    def __call__(self, x): return nn.Dense(3, param_dtype=jnp.bfloat16)(flat(x))
class Reads(nn.Module):
    @nn.compact
    def __call__(self, x): return nn.Dense(3)(flat(x) * float(jnp.sum(x)))
def two(depth, heads): return None
def needs(num_classes, depth): return None
def raises(num_classes): raise ValueError("first line\\nsecond line")
def gives(num_classes): return lambda x: x
def good_init(key, images): return {"params": {"w": jnp.zeros((64, 3))}}
def good(variables, images, train, key): return flat(images) @ variables["params"]["w"], {}
number = 5
no_functions = Model(1, good)
no_state = Model(good_init, lambda v, x, train, key: good(v, x, train, key)[0])
def as_bfloat(*args): return good(*args)[0].astype("bfloat16"), {}
bfloat = Model(good_init, as_bfloat)
extra_state = Model(good_init, lambda v, x, train, key: (good(v, x, train, key)[0], {"n": x}))
few = Model(good_init, lambda v, x: good(v, x, True, None))
a_list = Model(lambda key, images: {"params": [jnp.zeros((64, 3))]}, good)
bare = Model(lambda key, images: jnp.zeros((64, 3)), good)
whole = Model(lambda key, images: {"params": {"w": jnp.zeros((64, 3), int)}}, good)
class Callable:
    __hash__ = None
    def __call__(self, *args): return good(*args)
unhashable = Model(good_init, Callable())
"""
REFUSED = {
    "Mask": "Mask.__call__ takes x, mask; it must take images first",
    "Images": "Images.__call__ takes train, x; it must take images first",
    "NoCall": "must take images first|NoCall",
    "Counts": 'it updates its variables in evaluation, .*"counts" is immutable',
    "AlwaysBatch": "it updates its variables in evaluation, .* take an argument train",
    "AlwaysDrops": "it draws random numbers in evaluation, .*dropout",
    "Undecided": "deterministic",
    "Sown": r"got \['losses'\]\['seen'\]\[0\]; what a Flax module sows goes into",
    "NoParams": "no parameters",
    "Fixed": "on images of 8 x 8 x 1: .*; it takes images of 28 x 28 x 1",
    "Colour": "AssertionError: colour images only; it takes images of 8 x 8 x 3",
    "Pools": r"images of 8 x 8 x 1: they are too small, .* float32\[1, 0, 0, 1\]",
    "Flattens": "on images of 8 x 8 x 1: .*; it takes images of 28 x 28 x 1",
    "Setup": "fails on images of 8 x 8 x 1: KeyError: depth",
    "Loops": "fails on images of 8 x 8 x 1: .*[Rr]everse-mode differentiation",
    "HalfParams": r"parameters must be float32, .* \['params'\]\['Dense_0'\]\['bias'\] of bfloat16",
    "Reads": "ConcretizationTypeError",
    "two": "two requires depth, heads; what is set is num_classes",
    "needs": "needs requires depth; what is set is num_classes",
    "raises": "cannot be built: first line second line",
    "gives": "must be a flax.linen.Module or .* got function",
    "number": "must be a flax.linen.Module or .* got int",
    "no_functions": "its init must be a function, and hashable as one is, got int",
    "no_state": r"its apply must give \(logits, a dict of its state\), got float32\[1, 3\]",
    "bfloat": r"it gives bfloat16\[1, 3\]; return logits, float32",
    "extra_state": "evaluation turns its state of {} into {n: ",
    "few": "TypeError: .*takes 2 positional arguments but 4 were given",
    "a_list": "must be dicts within dicts, by names, got",
    "bare": 'must be a dict with "params", got float32',
    "whole": r"parameters must be float32, .* \['params'\]\['w'\] of int32",
    "unhashable": "its apply must be a function, and hashable as one is, got Callable",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_trained_is_refused_with_its_cause(write, kind):
    refused(f"{write(WRONG)}:{kind}", REFUSED[kind])


@pytest.mark.parametrize("name, size", [("cnn", 7), ("cnn", 1)])
def test_images_too_small_for_a_model_that_ships_are_the_cause_that_is_named(name, size):
    refused(name, f"on images of {size} x {size} x 1: they are too small", shape=(size, size, 1))


@pytest.mark.parametrize("name, size", [("cnn", 8), ("resnet18", 1), ("resnet18", 128)])
def test_models_that_ship_take_images_down_to_what_their_page_says(name, size):
    look(name, shape=(size, size, 3), width=8)


def test_from_flax_refuses_what_is_no_module_and_says_what_it_takes(write):
    module = importlib.import_module(write(PLAIN + "\n" + NNX.replace("Net", "Nnx")))
    for wrong in (module.Net, 5, None):
        with pytest.raises(UserError, match="from_flax takes a"):
            models.from_flax(wrong)
    with pytest.raises(UserError, match="the same for every seed"):
        models.from_flax(module.made)
    model = models.from_flax(lambda rngs: module.Nnx(3, rngs=rngs))
    assert set(model.init(jax.random.key(0), jnp.ones((1, *SHAPE)))) == {"params", "state"}


@pytest.mark.parametrize(
    "kind, option, value, takes",
    [
        ("Net", "width", 8, "neither width nor dtype"),
        ("instance", "dtype", "bfloat16", "neither width nor dtype"),
        ("pair", "width", 8, "neither width nor dtype"),
        ("wide", "dtype", "bfloat16", "width; leave dtype"),
    ],
)
def test_an_option_that_the_model_does_not_take_is_refused(write, kind, option, value, takes):
    name = f"{write(PLAIN + 'def wide(num_classes, width): return Net(num_classes)')}:{kind}"
    refused(name, rf"config\.model\.{option} is {value!r}, but it takes {takes}", **{option: value})


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_adapted_models_run_a_whole_experiment_and_resume_from_the_store(write, tmp_path, kind):
    """Batch norm and dropout, a mode that is keyword-only; layers in a list."""
    text = NNX if kind == "nnx" else net("x, *, deterministic=True", "train = not deterministic")
    config = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"))
    config.model.name, config.model.width = f"{write(text)}:Net", 64
    config.train.epochs = 2
    console = Console(quiet=True)
    first, again = (experiment.run(config, tmp_path / run, console) for run in ("one", "two"))
    assert json.dumps(first["models"]) == json.dumps(again["models"])
    assert len(list((tmp_path / "store").iterdir())) == 3  # original, retrained, unlearned


def test_a_model_that_does_not_fit_leaves_nothing_behind(write, tmp_path):
    data = toy.write_npz(tmp_path / "data.npz", num_classes=3)
    config = toy.experiment_config(data)
    config.model.name, config.model.width = f"{write(WRONG)}:Fixed", 64
    with pytest.raises(UserError, match="it takes images of 28 x 28 x 1"):
        experiment.run(config, tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


# What a model's key stands on.


BLOCK = """
import flax.linen as nn
class Block(nn.Module):
    n: int = 3
def make(): return Block()
"""
LAYOUTS = {
    "relative": (
        {"P__init": "", "P__nets": "from .blocks import Block\nclass Net(Block): pass"},
        "P.nets:Net",
        "P__blocks",
    ),
    "subpackage": (
        {
            "P__init": "",
            "P__deep__init": "",
            "P__deep__nets": "from ..parts.blocks import *\nclass Net(Block): pass",
            "P__parts__init": "",
        },
        "P.deep.nets:Net",
        "P__parts__blocks",
    ),
    "re-exported": (
        {
            "P__init": "from P.nets import Net",
            "P__nets": "from P import blocks\nNet = blocks.Block",
        },
        "P:Net",
        "P__blocks",
    ),
    "re-exported when asked for": (
        {
            "P__init": "import importlib\ndef __getattr__(name):\n"
            "    if name.startswith('_'): raise AttributeError(name)\n"
            "    return getattr(importlib.import_module('P.blocks'), name)",
        },
        "P:Block",
        "P__blocks",
    ),
    "namespace package": (
        {"P__nets": "import P.blocks\nNet = P.blocks.Block"},
        "P.nets:Net",
        "P__blocks",
    ),
    "instance from a helper": (
        {"P": "from Q import make\nnet = make()"},
        "P:net",
        "Q",
    ),
    "base class in another package": (
        {"P": "from Q.blocks import Block\nclass Net(Block): pass", "Q__init": ""},
        "P:Net",
        "Q__blocks",
    ),
    "package that imports a module above it": (
        {"P__init": "", "P__nets": "import Q\ndef Net(num_classes): return Q.Block()"},
        "P.nets:Net",
        "Q",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_edit_of_what_a_model_is_made_of_changes_its_key(tmp_path, monkeypatch, layout):
    texts, name, edited = LAYOUTS[layout]
    number = next(NAMES)
    own = {"P": f"pkg{number}", "Q": f"other{number}"}

    def named(text):
        return re.sub(r"\b[PQ]\b", lambda found: own[found[0]], text)

    def path(short):
        return tmp_path / f"{named(short.replace('__', '/').replace('init', '__init__'))}.py"

    for short, text in {**texts, edited: BLOCK}.items():
        path(short).parent.mkdir(parents=True, exist_ok=True)
        path(short).write_text(named(text))
    name = named(name)
    monkeypatch.syspath_prepend(tmp_path)
    before = closure.fingerprint(sources(name))
    closure.check(sources(name))
    path(edited).write_text(BLOCK.replace("= 3", "= 4"))
    with pytest.raises(UserError, match=r"has changed since it was imported: restart Python"):
        closure.check(sources(name))
    assert closure.fingerprint(sources(name)) == before  # what runs here is the old source
    for module in [one for one in sys.modules if one.partition(".")[0] in own.values()]:
        monkeypatch.delitem(sys.modules, module)  # as in another process
    assert closure.fingerprint(sources(name)) != before


def test_a_model_of_a_notebook_is_refused_since_it_has_no_source(monkeypatch):
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(HEADER + PLAIN, vars(module))
    for name in ("__main__:Net", "mine"):
        monkeypatch.setitem(models.MODELS, "mine", module.Net)
        with pytest.raises(UserError, match=r"the source of __main__ cannot be found.*mynets\.py"):
            closure.fingerprint(sources(name))


def test_a_script_that_holds_its_own_model_is_its_source(monkeypatch, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(HEADER + PLAIN)
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(HEADER + PLAIN, vars(module))
    before = closure.fingerprint(sources("__main__:Net"))
    path.write_text(HEADER + PLAIN + "# edited")
    again = types.ModuleType("__main__")  # as in another process
    vars(again).update(vars(module))
    monkeypatch.setitem(sys.modules, "__main__", again)
    assert closure.fingerprint(sources("__main__:Net")) != before


def test_a_compiled_module_is_known_by_its_bytes(monkeypatch, tmp_path, write):
    name = write(PLAIN)
    source = tmp_path / f"{name}.py"
    py_compile.compile(str(source), cfile=str(tmp_path / f"{name}.pyc"))
    source.unlink()
    look(f"{name}:Net")
    before = closure.fingerprint(sources(f"{name}:Net"))
    source.write_text(HEADER + PLAIN.replace("= 3", "= 4"))
    py_compile.compile(str(source), cfile=str(tmp_path / f"{name}.pyc"))
    source.unlink()
    monkeypatch.delitem(sys.modules, name)
    assert closure.fingerprint(sources(f"{name}:Net")) != before


def test_a_reloaded_module_is_the_new_one(write, tmp_path):
    name = write(PLAIN)
    module = importlib.import_module(name)
    before = closure.fingerprint(sources(f"{name}:Net"))
    (tmp_path / f"{name}.py").write_text(HEADER + PLAIN + "# edited")
    importlib.invalidate_caches()
    importlib.reload(module)
    closure.check(sources(f"{name}:Net"))
    assert closure.fingerprint(sources(f"{name}:Net")) != before


@pytest.mark.parametrize("bytecode", [True, False])
def test_an_edit_between_the_import_and_the_first_look_is_refused(
    write, tmp_path, monkeypatch, bytecode
):
    monkeypatch.setattr(sys, "dont_write_bytecode", not bytecode)
    name = write(PLAIN)
    importlib.import_module(name)
    if not bytecode:  # there is nothing to tell it by
        (tmp_path / f"{name}.py").write_text(HEADER + PLAIN + "# edited")
        return closure.check(sources(f"{name}:Net"))
    closure.fingerprint([name])
    monkeypatch.setattr(closure, "_read", {})
    (tmp_path / f"{name}.py").write_text(HEADER + PLAIN + "# edited")
    with pytest.raises(UserError, match=rf"{name}\.py has changed since it was imported: restart"):
        closure.check(sources(f"{name}:Net"))


def test_what_a_module_reads_from_files_is_a_part_of_its_key(write, tmp_path, monkeypatch):
    header = f"import numpy as np\nSCALE = np.load({str(tmp_path / 'scale.npy')!r})\n"
    text = PLAIN.replace("nn.Dense(", "SCALE[0] * nn.Dense(", 1)
    name, told = write(text, header=HEADER + header), []
    for scale in (1.0, 1.0, 2.0):
        np.save(tmp_path / "scale.npy", np.float32([scale]))
        monkeypatch.delitem(sys.modules, name, raising=False)  # as in another process
        made = named(settings(f"{name}:Net"), CLASSES, True).check(SHAPE, CLASSES)
        told.append(made.fields["computes"])
    assert told[0] == told[1] != told[2]
    shipped = named(settings("cnn", width=8), CLASSES, True)
    assert shipped.check((28, 28, 1), CLASSES) is shipped


SCALE = 1.0


def test_a_model_at_hand_computes_what_it_does_now(monkeypatch):
    """As in a notebook, where a constant is edited and the cell run again."""

    def init(key, images):
        return {"params": {"w": jnp.ones((images.shape[-1], CLASSES))}}

    def apply(variables, images, train, key):
        return SCALE * (images.mean((1, 2)) @ variables["params"]["w"]), {}

    made, logits = [], []
    images = jnp.ones((2, *SHAPE))
    for scale in (1.0, 3.0, 1.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        one = given((init, apply), SHAPE, CLASSES)
        made.append(one)
        run = jax.jit(one.model.apply, static_argnums=2)  # a trace is kept by the function
        logits.append(run(one.model.init(None, images), images, False, None)[0][0, 0])
    assert [float(each) for each in logits] == pytest.approx(
        [float(SHAPE[-1]) * s for s in (1, 3, 1)]
    )
    assert made[0].fields == made[2].fields != made[1].fields
    assert made[0].model is made[2].model is not made[1].model


def test_other_fields_of_a_tables_entry_make_another_key(write, monkeypatch):
    module = importlib.import_module(write(PLAIN))
    entries = [module.Net(3), module.Net(4), models.from_flax(module.Net(3))]
    entries += [models.from_flax(module.Net(4)), functools.partial(module.Net, 3)]
    entries += [functools.partial(module.Net, 4), module.Listed(np.zeros(3)), module.Listed((2, 3))]
    entries += [module.Listed((2, 3, 3)), module.Listed(np.ones(3)), module.only_classes]
    texts = []
    for entry in entries:
        monkeypatch.setitem(models.MODELS, "mine", entry)
        texts.append(described("mine"))
        assert "0x" not in texts[-1]
    assert len(set(texts)) == len(entries)


def test_a_package_above_an_imported_module_counts(tmp_path, write):
    package = f"pkg{next(NAMES)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("WIDTH = 3\n")
    (tmp_path / package / "sub.py").write_text("")
    name = write(PLAIN, header=HEADER + f"import {package}.sub\n")
    assert {name, package, f"{package}.sub"} <= set(closure.modules([name]))


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("from jaxunlearn.methods import find", True),
        ("from jaxunlearn.methods import METHODS as table, Task", True),
        ("from jaxunlearn import methods", True),
        ("import jaxunlearn.methods", True),
        ("from jaxunlearn.methods.table import find", True),
        ("from jaxunlearn.methods import Task", False),
    ],
)
def test_what_has_the_table_of_methods_stands_on_all_of_them(write, line, whole):
    found = closure.modules([write(PLAIN, header=HEADER + f"{line}\n")])
    assert ("jaxunlearn.methods.finetune" in found) is whole
    assert whole or "jaxunlearn.methods.task" in found


def test_libraries_are_not_followed_nor_the_librarys_own_tables(write):
    text = "from jaxunlearn.models import Model\nfrom jaxunlearn.models.layers import Conv\n"
    text += "import jaxunlearn, numpy, flax.linen as nn\nfrom flax import nnx\nNet = Conv"
    name = write(text, header="")
    found = closure.modules(sources(f"{name}:Net"))
    assert set(found) == {name, "jaxunlearn.models.layers"}
