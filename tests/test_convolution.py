"""Convolutions exchanged in a program compute what XLA's own do, whichever way they came there."""

import ctypes
import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import process
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn import devices, models, training
from jaxunlearn.convolution import onednn, paths, products, xla
from jaxunlearn.convolution.rewrite import rewrite
from jaxunlearn.errors import UserError

REASON = paths.find("auto", devices.make_mesh(1)).reason
needs_onednn = pytest.mark.skipif(bool(REASON), reason=REASON)
PATHS = [pytest.param("onednn", marks=needs_onednn), "xla"]
NHWC = ("NHWC", "HWIO", "NHWC")


def x64():
    """A context of 64-bit numbers, by its name in new and old versions of JAX."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


@functools.cache
def programs(path="auto", count=1):
    return training.Programs(devices.make_mesh(count), path)


def convolution(x, kernel, stride=1, numbers=NHWC):
    pad = [(size // 2, size // 2) for size in np.shape(kernel)[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=numbers)


def with_gradients(stride, x, kernel, dy):
    """The convolution, and the gradients of its images and of its kernel."""
    y, gradients = jax.vjp(functools.partial(convolution, stride=stride), x, kernel)
    return y, *gradients(dy)


def operands(shape, features, size, stride, seed=0):
    """Images, a kernel and a gradient with respect to the result, in float64."""
    rng = np.random.default_rng(seed)
    images, kernel = (
        rng.standard_normal(each) for each in (shape, (size, size, shape[-1], features))
    )
    height, width = (-(-each // stride) for each in shape[1:3])
    return images, kernel, rng.standard_normal((shape[0], height, width, features))


def run(path, function, *args):
    """The function by a path, as the library compiles it."""
    args = devices.replicate(args, programs(path).mesh)
    return programs(path)(function, *args)(*args)


def exchanged(function, *args, choose=onednn.choose):
    """The names of the primitives of a function's program, with convolutions exchanged."""
    args = jax.tree.map(jnp.asarray, args)
    new = rewrite(function, jax.jit(function).trace(*args), choose)
    text = str(jax.make_jaxpr(new)(*args))
    return text.count("ffi_call["), text.count("conv_general_dilated[")


def assert_close(actual, exact, tolerance):
    """Within `tolerance` of the largest entry, array by array."""
    for a, b in zip(actual, exact, strict=True):
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


SHAPES = [  # images, features, size, stride
    ((16, 28, 28, 3), 16, 3, 1),
    ((16, 28, 28, 16), 16, 3, 1),
    ((16, 28, 28, 16), 32, 3, 2),
    ((16, 28, 28, 16), 32, 1, 2),
    ((16, 28, 28, 32), 16, 3, 1),
    ((16, 15, 28, 32), 16, 3, 2),
    ((32, 14, 14, 32), 64, 3, 2),  # small enough to have the batch innermost
    ((32, 14, 14, 32), 64, 1, 2),
    ((32, 7, 7, 64), 64, 3, 1),
    ((32, 7, 7, 64), 128, 3, 2),
    ((32, 7, 7, 64), 128, 1, 2),
    ((32, 4, 4, 64), 32, 3, 1),
    ((1, 28, 28, 1), 16, 3, 1),  # one image, grey
    ((1, 4, 4, 3), 5, 3, 1),
    ((5, 13, 9, 3), 7, 3, 2),  # odd sizes, a ragged batch
    ((13, 15, 15, 3), 5, 3, 1),
    ((3, 16, 15, 2), 4, 3, 2),
    ((17, 9, 9, 5), 3, 1, 1),
    ((3, 32, 32, 3), 8, 7, 2),  # the stem of large images
    ((2, 65, 64, 3), 8, 7, 2),
    ((2, 1, 1, 2), 3, 3, 1),  # every tap but one sees padding alone
    ((16, 5, 5, 2), 2, 3, 2),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("shape", "features", "size", "stride"), SHAPES)
def test_values_and_gradients_are_exact(path, shape, features, size, stride):
    given = operands(shape, features, size, stride)
    function = functools.partial(with_gradients, stride)
    with x64():
        exact = jax.jit(function)(*given)
    found = run(path, function, *(each.astype(np.float32) for each in given))
    assert all(each.dtype == jnp.float32 for each in found)
    # Of few channels the gradient of the kernel is oneDNN's own, which adds up all pixels in a row.
    assert_close(found, exact, 2e-6 if shape[-1] >= onednn.CHANNELS else 4e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("size", "padding"), [(1, (0, 3)), (2, (1, 4)), (2, (1, 1)), (3, (1, 2))])
def test_a_transposed_convolution_may_be_padded_beyond_its_kernel(path, size, padding):
    """Where the library has no such layer, XLA computes it."""
    images, kernel, _ = operands((4, 6, 6, 3), 5, size, 1)
    function = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=(padding, padding),
        lhs_dilation=(2, 2),
        dimension_numbers=NHWC,
    )
    with x64():
        exact = jax.jit(function)(images, kernel)
    found = run(path, function, *(each.astype(np.float32) for each in (images, kernel)))
    assert_close([found], [exact], 2e-6)


@needs_onednn
def test_the_library_is_found_where_its_package_was_installed(monkeypatch, tmp_path):
    file = tmp_path / "local" / "lib" / "libdnnl.so.3"
    file.parent.mkdir(parents=True)
    file.touch()

    class Found(type(Path("libdnnl.so.3"))):
        def locate(self):
            return file

    monkeypatch.setattr(onednn.metadata, "files", lambda package: [Found("x.py"), Found(file.name)])
    assert onednn._find() == str(file)
    file.unlink()
    assert onednn._find() in (f"{sys.prefix}/lib/libdnnl.so.3", "libdnnl.so.3")

    def missing(package):
        raise onednn.metadata.PackageNotFoundError

    monkeypatch.setattr(onednn.metadata, "files", missing)
    assert onednn._find().endswith("libdnnl.so.3")


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_sums_in_float32(path):
    """Also where the library has no arithmetic for it, and XLA computes."""
    given = operands((32, 14, 14, 8), 8, 3, 1)
    low = [jnp.asarray(each, jnp.bfloat16) for each in given]
    found = run(path, functools.partial(with_gradients, 1), *low)
    assert all(each.dtype == jnp.bfloat16 for each in found)
    with x64():
        exact = jax.jit(functools.partial(with_gradients, 1))(
            *(np.asarray(each, np.float64) for each in low)
        )
    assert_close(found, exact, 2**-7)


@pytest.mark.parametrize("path", PATHS)
def test_each_of_a_networks_convolutions_is_exchanged_and_its_gradients_are_right(
    path, monkeypatch
):
    # With a kink at 0 a change of rounding, 1e-7 of an image, can turn a gradient by some percent.
    monkeypatch.setattr(nn, "relu", nn.softplus)
    model = models.build("resnet18", num_classes=3, width=8)
    images = np.random.default_rng(0).random((16, 28, 28, 3), np.float32)
    variables = jax.device_get(model.init(jax.random.key(0), images))

    def loss(params, x):
        logits, _ = model.apply({**variables, "params": params}, x, True, None)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    gradient = jax.grad(loss)
    found = run(path, gradient, variables["params"], images)
    plain = jax.jit(gradient)(variables["params"], images)
    assert_close(jax.tree.leaves(found), jax.tree.leaves(plain), 1e-5)
    calls, left = exchanged(gradient, variables["params"], images)
    assert (calls, left) == (20 + 20 + 19, 0)  # the images themselves have no gradient


@needs_onednn
def test_it_is_the_same_in_every_order_of_axes():
    x, kernel, _ = operands((4, 14, 14, 3), 5, 3, 1)
    plain = jax.jit(convolution)(x, kernel)
    for numbers, axes, taps in (
        (("NCHW", "OIHW", "NCHW"), (0, 3, 1, 2), (3, 2, 0, 1)),
        (("HWNC", "HWIO", "HWNC"), (1, 2, 0, 3), (0, 1, 2, 3)),
    ):

        def function(x, kernel, numbers=numbers):
            return lax.conv_general_dilated(
                x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers
            )

        given = (x.transpose(axes).astype(np.float32), kernel.transpose(taps).astype(np.float32))
        assert exchanged(function, *given) == (1, 0)
        found = run("onednn", function, *given)
        np.testing.assert_allclose(found, np.transpose(plain, axes), atol=1e-5)


class Linen(nn.Module):
    """A module of a user's own."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(8, (3, 3), strides=2, padding="VALID")(x)
        return nn.Dense(2)(x.mean((1, 2)))


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (5, 5), strides=(2, 2), padding="SAME", rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


needs_nnx = pytest.mark.skipif(not hasattr(nnx, "List"), reason="nnx needs flax 0.12")


@pytest.mark.parametrize(("module", "count"), [(Linen(), 2), pytest.param(Nnx, 1, marks=needs_nnx)])
@pytest.mark.parametrize("path", PATHS)
def test_modules_of_others_are_served_as_the_librarys_own(path, module, count):
    model = models.from_flax(module)
    x = np.random.default_rng(0).random((6, 15, 15, 3), np.float32)
    variables = jax.device_get(model.init(jax.random.key(0), x))

    def loss(params, x):
        return jnp.sum(model.apply({**variables, "params": params}, x, True, None)[0] ** 2)

    gradient = jax.grad(loss)
    assert exchanged(gradient, variables["params"], x) == (3 * count - 1, 0)
    found = run(path, gradient, variables["params"], x)
    plain = jax.jit(gradient)(variables["params"], x)
    assert_close(jax.tree.leaves(found), jax.tree.leaves(plain), 1e-5)


def in_a_loop(x, kernel):
    return lax.fori_loop(0, 3, lambda i, y: convolution(y, kernel), x)


def in_a_scan(x, kernel):
    return lax.scan(lambda y, _: (convolution(y, kernel), None), x, None, length=3)[0]


def in_a_branch(x, kernel):
    return lax.cond(x[0, 0, 0, 0] < 9, lambda: convolution(x, kernel), lambda: x)


def rematerialised(x, kernel):
    return jax.grad(lambda k: jnp.sum(jax.checkpoint(convolution)(x, k) ** 2))(kernel)


def forward_mode(x, kernel):
    return jax.jvp(convolution, (x, kernel), (kernel.sum() * x, 2 * kernel))[1]


def of_every_example(x, kernel):
    one = jax.grad(lambda k, image: jnp.sum(convolution(image[None], k) ** 3))
    return jax.vmap(one, (None, 0))(kernel, x)


def of_every_kernel(x, kernel):
    return jax.vmap(lambda k: convolution(x, k))(jnp.stack([kernel, 2 * kernel]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "function",
    [
        in_a_loop,
        in_a_scan,
        in_a_branch,
        rematerialised,
        forward_mode,
        of_every_example,
        of_every_kernel,
    ],
)
def test_loops_branches_and_transformations_stay_what_they_are(path, function):
    x, kernel, _ = (each.astype(np.float32) for each in operands((6, 14, 14, 3), 3, 3, 1))
    plain = jax.jit(function)(x, kernel)
    np.testing.assert_allclose(
        run(path, function, x, kernel), plain, rtol=0, atol=1e-5 * np.abs(plain).max()
    )
    if function is not of_every_example:  # which is in groups, of one example each
        assert exchanged(function, x, kernel)[0] > 0


@needs_onednn
def test_padding_wider_than_the_kernel_is_right():
    def function(x, kernel, dy):
        def wide(x, kernel):
            return lax.conv_general_dilated(
                x, kernel, (1, 1), [(5, 4), (0, 6)], dimension_numbers=NHWC
            )

        y, gradients = jax.vjp(wide, x, kernel)
        return y, *gradients(dy)

    x, kernel, _ = (each.astype(np.float32) for each in operands((3, 14, 14, 16), 4, 3, 1))
    dy = np.random.default_rng(1).standard_normal((3, 21, 18, 4)).astype(np.float32)
    assert_close(run("onednn", function, x, kernel, dy), jax.jit(function)(x, kernel, dy), 1e-5)


def test_what_is_no_convolution_of_ours_is_left_alone():
    x, kernel, _ = operands((2, 9, 9, 4), 4, 3, 1)

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x, kernel[:, :, :1], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4
        )

    def in_one_dimension(x, kernel):
        return lax.conv_general_dilated(
            x[0], kernel[0], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    for function in (grouped, in_one_dimension):
        assert exchanged(function, *map(np.float32, (x, kernel))) == (0, 1)
    assert exchanged(convolution, *map(np.float16, (x, kernel))) == (0, 1)
    with x64():
        assert exchanged(convolution, x, kernel) == (0, 1)
        assert exchanged(convolution, x, kernel, choose=products.choose) == (0, 1)


def test_a_program_without_convolutions_is_the_function_itself():
    function = jnp.sin
    assert rewrite(function, jax.jit(function).trace(1.0), onednn.choose) is function


def test_several_devices_keep_xlas_own_and_give_the_same_numbers():
    several = programs("auto", 4)
    assert several.convolution.name == "XLA" and "several" in several.convolution.reason
    given = [each.astype(np.float32) for each in operands((16, 14, 14, 3), 4, 3, 1)]
    batch = NamedSharding(several.mesh, PartitionSpec("data"))
    whole = NamedSharding(several.mesh, PartitionSpec())
    placed = [jax.device_put(x, s) for x, s in zip(given, (batch, whole, batch), strict=True)]
    function = functools.partial(with_gradients, 1)
    found = several(function, *placed)(*placed)
    assert_close(found, jax.jit(function)(*given), 1e-5)
    with pytest.raises(UserError, match=r"convolution is 'onednn', but .* several; set it"):
        programs("onednn", 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(onednn, "_find", lambda: "libnone.so.3"), "libnone.so.3"),
        (lambda patch: patch.setattr(onednn, "MAJOR", 9), "version 9 is needed"),
        (
            lambda patch: (patch.setattr(xla, "MAJOR", 9), patch.setattr(onednn, "TARGET", "new")),
            "version",
        ),
    ],
    ids=["no library", "another oneDNN", "another XLA"],
)
def test_where_it_cannot_be_used_xlas_own_is_and_the_reason_is_told(monkeypatch, change, reason):
    if reason != "libnone.so.3" and REASON:
        pytest.skip(REASON)
    onednn.load.cache_clear()
    try:
        change(monkeypatch)
        path = paths.find("auto", devices.make_mesh(1))
        assert path.name == "XLA" and reason in path.reason and "\n" not in path.reason
        with pytest.raises(UserError, match=r"convolution is 'onednn', but"):
            paths.find("onednn", devices.make_mesh(1))
    finally:
        onednn.load.cache_clear()


@needs_onednn
@pytest.mark.parametrize(("shape", "features", "size", "stride"), SHAPES)
def test_none_is_computed_by_onednns_slow_reference(monkeypatch, shape, features, size, stride):
    library, names = onednn.load(), []
    new = library.new

    def recorded(function, *arguments):
        made = new(function, *arguments)
        if function.endswith("primitive_desc_create"):
            name = ctypes.c_char_p()
            library.call("primitive_desc_query", made, 8, 0, ctypes.byref(name))
            names.append(name.value.decode())
        return made

    def made(found):
        kind = onednn._kind(found)
        onednn._make(library, *json.loads(json.dumps([kind, *found])))

    monkeypatch.setattr(library, "new", recorded)
    given = [x.astype(np.float32) for x in operands((64, *shape[1:]), features, size, stride)]
    function = functools.partial(with_gradients, stride)
    rewrite(function, jax.jit(function).trace(*given), made)
    assert len(names) >= 3 and not [name for name in names if name.startswith("ref")]


@needs_onednn
def test_a_failure_within_is_an_exception():
    def broken(x):
        return jax.ffi.ffi_call(onednn.TARGET, x)(x, convolution=json.dumps(["none"]))

    with pytest.raises(Exception, match=r"TypeError|missing|expected"):
        jax.block_until_ready(jax.jit(broken)(jnp.ones(3)))


def outcome(body, **environment):
    """What a program of its own prints."""
    code = "import numpy as np, jax, os\nimport test_convolution as t\n" + textwrap.dedent(body)
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**process.environment(), **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


SOME = "given = [x.astype(np.float32) for x in t.operands((32, 14, 14, 16), 16, 3, 1)]\n"


@needs_onednn
@pytest.mark.parametrize("threads", ["1", "2"])
def test_repeats_are_equal_to_the_bit(threads):
    body = """
    import functools
    program = t.programs("onednn")
    for shape in ((32, 14, 14, 16), (32, 7, 7, 16)):
        given = [x.astype(np.float32) for x in t.operands(shape, 16, 3, 1)]
        results = [t.run("onednn", functools.partial(t.with_gradients, 1), *given)]
        results += [t.run("onednn", functools.partial(t.with_gradients, 1), *given)
                    for _ in range(20)]
        for result in results:
            for a, b in zip(result, results[0]):
                assert (np.asarray(a) == np.asarray(b)).all()
    print(len(results))
    """
    assert outcome(body, OMP_NUM_THREADS=threads) == "21\n"


@needs_onednn
def test_a_process_ends_with_a_step_in_flight():
    body = (
        SOME
        + """
args = t.devices.replicate(given[:2], t.programs("onednn").mesh)
program = t.programs("onednn")(t.in_a_loop, *args)
program(*args)
for _ in range(20):
    result = program(*args)
print("end")
"""
    )
    assert outcome(body) == "end\n"


@needs_onednn
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_refused():
    body = (
        SOME
        + """
import warnings
warnings.simplefilter("ignore")
args = t.devices.replicate(given[:2], t.programs("onednn").mesh)
program = t.programs("onednn")(t.convolution, *args)
jax.block_until_ready(program(*args))
if not os.fork():
    try:
        jax.block_until_ready(program(*args))
    except Exception as error:
        print("forked" in str(error), flush=True)
    os._exit(0)
os.wait()
"""
    )
    assert outcome(body) == "True\n"
