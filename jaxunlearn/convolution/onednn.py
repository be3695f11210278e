"""oneDNN's convolutions in XLA's programs on a CPU.

The library is loaded by ctypes, and XLA calls it through its own C interface, so that no compiler
is needed. A call costs some 50 µs of the interpreter, and runs without the interpreter's lock; the
convolutions of a small ResNet's training step take 1 to 50 ms each.
"""

import contextlib
import ctypes
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.convolution import xla
from jaxunlearn.convolution.literal import Convolution

TARGET = "jaxunlearn.onednn.convolution"
PACKAGE = "onednn-cpu-gomp"  # that the extra `cpu` installs
MAJOR = 3  # of the versions that have the functions called here
SMALL = 7  # images of this many pixels a side, or fewer, are convolved with the batch innermost
BATCH = 16  # where the batch is this large
CHANNELS = 32  # of a layer, or more: the gradient of its kernel is computed row by row
ALIGNMENT = 64  # of memory, in bytes
CACHED = 2**20  # bytes of images whose product is computed at once, for a kernel's gradient
# oneDNN's numbers for things: see its dnnl_types.h.
CPU, IN_ORDER, TRAINING, DIRECT, ANY_LAYOUT, USERS_SCRATCHPAD = 1, 1, 64, 1, 1, 1
TYPES = {"bfloat16": 2, "float32": 3}
BYTES = {"bfloat16": 2, "float32": 4}
SRC, DST, WEIGHTS, SCRATCHPAD = 1, 17, 33, 80
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS = 129, 145, 161
QUERIES = {
    SRC: 129,
    DIFF_SRC: 130,
    WEIGHTS: 131,
    DIFF_WEIGHTS: 132,
    DST: 133,
    DIFF_DST: 134,
    SCRATCHPAD: 136,
}
# The order in memory of the axes of images, [N, C, H, W] or [1, C, H, W, N]: channels innermost.
CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def choose(found: Convolution) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """What computes a convolution here, if the library does: see `rewrite`."""
    kind = _kind(found)
    if kind is None:
        return None
    shape = tuple(found.out[axis] for axis in found.out_order)

    def call(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        if kind == "data":  # the library wants the kernel as the layer has it
            rhs = jnp.flip(rhs, [found.rhs_order.index(axis) for axis in (2, 3)])
        result = jax.ShapeDtypeStruct(shape, jnp.dtype(found.out_dtype))
        return jax.ffi.ffi_call(TARGET, result)(lhs, rhs, convolution=json.dumps([kind, *found]))

    return call


def _kind(found: Convolution) -> str | None:
    """Which of oneDNN's primitives a convolution is; None: it is none of them."""
    if found.dtype not in TYPES or found.out_dtype not in (found.dtype, "float32"):
        return None
    if min(found.low) < 0:
        return None
    if found.lhs_dilation == (1, 1) and not found.flipped:
        if not found.is_weight_gradient or found.stride != (1, 1):
            return "forward"
        padding = zip(found.low, found.high, found.out[2:], strict=True)
        return "weights" if all(max(low, high) < size for low, high, size in padding) else None
    plain = found.stride == found.rhs_dilation == (1, 1)
    # The library's layers have no padding below 0, but may leave out less than a stride at the end.
    sides = zip(*_of_layer(found), found.lhs_dilation, strict=True)
    fits = all(before >= 0 and after > -each for before, after, each in sides)
    return "data" if plain and fits else None


@functools.cache
def load() -> "_Library":
    """The library, ready for programs; raises where it is not there or not as it should be."""
    library = _Library()
    xla.register(TARGET, library.run)
    os.register_at_fork(after_in_child=library.refuse)
    return library


class _Array(NamedTuple):
    """An array with the axes that a primitive gives it, and where these lie in memory."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, size: Sequence[int], order: Sequence[int], dtype: str) -> "_Array":
        """A dense array; `order`: its axes in memory, the outermost first."""
        strides, step = [0] * len(size), 1
        for axis in reversed(order):
            strides[axis] = step
            step *= size[axis]
        return cls(tuple(size), tuple(strides), dtype)

    def swapped(self) -> "_Array":
        """With its first two axes in each other's place."""
        size, strides = ((b, a, *rest) for a, b, *rest in (self.size, self.strides))
        return _Array(size, strides, self.dtype)

    def deep(self) -> "_Array":
        """Images [N, C, H, W] as [1, C, H, W, N]."""
        (n, *size), (step, *strides) = self.size, self.strides
        return _Array((1, *size, n), (n * step, *strides, step), self.dtype)

    def deep_kernel(self) -> "_Array":
        """A kernel [O, I, h, w] as [O, I, h, w, 1]."""
        return _Array((*self.size, 1), (*self.strides, 1), self.dtype)

    def with_height(self, height: int) -> "_Array":
        """Images of another height, in memory as they are."""
        return self._replace(size=(*self.size[:2], height, *self.size[3:]))

    @property
    def bytes(self) -> int:
        """In memory, if it is dense."""
        return int(np.prod(self.size)) * BYTES[self.dtype]

    def rows_before(self, count: int) -> int:
        """Bytes from the first row of pixels to another."""
        return count * self.strides[2] * BYTES[self.dtype]

    def cropped(self, padding: Sequence[int]) -> "_Array":
        """Images without the last pixels, which a padding below 0 leaves out."""
        n, c, h, w, *rest = self.size
        h, w = (size + min(more, 0) for size, more in zip((h, w), padding, strict=True))
        return _Array((n, c, h, w, *rest), self.strides, self.dtype)


def _dense_images(array: _Array) -> _Array:
    """Such images with channels innermost."""
    return _Array.of(array.size, CHANNELS_LAST[len(array.size)], array.dtype)


class _Argument(Structure):
    """dnnl_exec_arg_t."""

    _fields_ = (("number", c_int), ("memory", c_void_p))


class _Library:
    """The loaded library, its engine and stream, and the primitives made so far."""

    def __init__(self) -> None:
        # Threads that wait for work in a loop would rob those of XLA; read when libgomp is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        path = _find()
        self._functions = ctypes.CDLL(path)
        self.version = self._version()
        if not self.version.startswith(f"{MAJOR}."):
            raise OSError(f"{path} is oneDNN {self.version}, and version {MAJOR} is needed")
        self._functions.dnnl_primitive_desc_query_md.restype = c_void_p
        self._functions.dnnl_memory_desc_get_size.restype = c_size_t
        self.execute = self._functions.dnnl_primitive_execute
        self.execute.argtypes = (c_void_p, c_void_p, c_int, c_void_p)
        # Without giving up the interpreter's lock, as it takes no time.
        self.place = ctypes.PyDLL(path).dnnl_memory_set_data_handle
        self.place.argtypes = (c_void_p, c_void_p)
        self.engine = self.new("engine_create", c_int(CPU), c_size_t(0))
        self.stream = self.new("stream_create", self.engine, c_uint(IN_ORDER))
        self.attributes = self.new("primitive_attr_create")
        self.call("primitive_attr_set_scratchpad_mode", self.attributes, c_int(USERS_SCRATCHPAD))
        self.adding = self.new("primitive_attr_create")  # to what is there
        self.call("primitive_attr_set_scratchpad_mode", self.adding, c_int(USERS_SCRATCHPAD))
        after = self.new("post_ops_create")
        self.call("post_ops_append_sum", after, c_float(1), c_int(0), c_int(0))
        self.call("primitive_attr_set_post_ops", self.adding, after)
        self._lock = threading.Lock()  # a primitive uses every core, and all share the scratch
        self._scratch = np.empty(0, np.uint8)
        self._primitives: dict[bytes, _Primitive | _Rows] = {}
        self._refused = False

    def _version(self) -> str:
        """Such as 3.2.0."""

        class Version(Structure):
            _fields_ = (("major", c_int), ("minor", c_int), ("patch", c_int))

        self._functions.dnnl_version.restype = POINTER(Version)
        found = self._functions.dnnl_version().contents
        return f"{found.major}.{found.minor}.{found.patch}"

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the library; raises where it fails."""
        status = getattr(self._functions, f"dnnl_{name}")(*arguments)
        if status:
            raise RuntimeError(f"oneDNN's {name} gave status {status}")

    def new(self, name: str, *arguments: Any) -> c_void_p:
        """What a function of the library makes; it is kept for as long as the process lives."""
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        return made

    def dense(self, array: _Array) -> c_void_p:
        """The description of an array as it lies in memory."""
        rank, kind = c_int(len(array.size)), c_int(TYPES[array.dtype])
        size, strides = _sizes(array.size), _sizes(array.strides)
        return self.new("memory_desc_create_with_strides", rank, size, kind, strides)

    def images(self, array: _Array) -> c_void_p:
        """That of such images with channels innermost, for which oneDNN is fastest."""
        return self.dense(_dense_images(array))

    def kernel(self, array: _Array) -> c_void_p:
        """That of such a kernel in a layout that oneDNN chooses."""
        rank, kind = c_int(len(array.size)), c_int(TYPES[array.dtype])
        size = _sizes(array.size)
        return self.new("memory_desc_create_with_tag", rank, size, kind, c_int(ANY_LAYOUT))

    def wanted(self, primitive: c_void_p, argument: int) -> c_void_p:
        """How a primitive wants an operand."""
        query = self._functions.dnnl_primitive_desc_query_md
        return c_void_p(query(primitive, c_int(QUERIES[argument]), c_int(0)))

    def equal(self, one: c_void_p, other: c_void_p) -> bool:
        """Whether two descriptions are the same."""
        return bool(self._functions.dnnl_memory_desc_equal(one, other))

    def size(self, described: c_void_p) -> int:
        """Bytes of memory, up to the next that is aligned."""
        size = self._functions.dnnl_memory_desc_get_size(described)
        return _aligned(size)

    def memory(self, described: c_void_p) -> c_void_p:
        """Memory of this description, which lies nowhere yet."""
        return self.new("memory_create", described, self.engine, c_void_p())

    def copy(self, source: c_void_p, target: c_void_p) -> c_void_p:
        """The description of a copy into another layout or type."""
        kind = "reorder_primitive_desc_create"
        return self.new(kind, source, self.engine, target, self.engine, self.attributes)

    def space(self, size: int) -> int:
        """The address of this many bytes, which the next primitive may overwrite."""
        if len(self._scratch) < size + ALIGNMENT:
            self._scratch = np.empty(size + ALIGNMENT, np.uint8)
        start = self._scratch.ctypes.data
        return start + -start % ALIGNMENT

    def run(self, text: bytes, buffers: list[int]) -> None:
        """Computes a convolution; XLA calls this from threads of its own."""
        with self._lock:
            if self._refused:
                raise RuntimeError("oneDNN cannot be used in a process forked from one that did")
            if text not in self._primitives:
                self._primitives[text] = _make(self, *json.loads(text))
            self._primitives[text](buffers)

    def refuse(self) -> None:
        """For a forked process, which would wait for OpenMP's threads that are not there."""
        self._lock, self._refused = threading.Lock(), True


class _Primitive:
    """A primitive, and the copies around it where it wants another layout than XLA's."""

    def __init__(
        self, library: _Library, primitive: c_void_p, arguments: Sequence[int], arrays: list[_Array]
    ):
        """A primitive of these operands, the last of which is its result."""
        self._library = library
        self._given: list[c_void_p] = []  # memory of XLA's
        self._own: list[tuple[c_void_p, int]] = []  # of ours, and where in the scratch it lies
        self.size = 0  # of the scratch that it uses, in bytes
        before: list[tuple] = []
        after: list[tuple] = []
        used: list[tuple[int, c_void_p]] = []
        for argument, array in zip(arguments, arrays, strict=True):
            is_result = argument == arguments[-1]
            described, wanted = library.dense(array), library.wanted(primitive, argument)
            memory = library.memory(described)
            self._given.append(memory)
            if library.equal(described, wanted):
                used.append((argument, memory))
                continue
            own = self._memory(wanted)
            used.append((argument, own))
            pairs = [(described, memory), (wanted, own)]
            if is_result:
                pairs.reverse()
            (after if is_result else before).append(self._copy(*pairs))
        used.append((SCRATCHPAD, self._memory(library.wanted(primitive, SCRATCHPAD))))
        self._calls = [*before, self._call(primitive, used), *after]

    def _memory(self, described: c_void_p) -> c_void_p:
        """Memory of our own."""
        memory = self._library.memory(described)
        self._own.append((memory, self.size))
        self.size += self._library.size(described)
        return memory

    def _copy(self, source: tuple, target: tuple) -> tuple:
        """The call that copies memory into another layout."""
        copy = self._library.copy(source[0], target[0])
        return self._call(copy, [(SRC, source[1]), (DST, target[1])])

    def _call(self, described: c_void_p, used: list[tuple[int, c_void_p]]) -> tuple:
        """What `execute` takes."""
        made = self._library.new("primitive_create", described)
        arguments = (_Argument * len(used))(*(_Argument(*each) for each in used))
        return made, self._library.stream, len(used), arguments

    def __call__(self, buffers: Sequence[int], before: int = 0) -> None:
        """Computes on arrays at these addresses; `before` bytes of the scratch are in use."""
        library = self._library
        start = library.space(before + self.size) + before
        for memory, address in zip(self._given, buffers, strict=True):
            library.place(memory, address)
        for memory, offset in self._own:
            library.place(memory, start + offset)
        for call in self._calls:
            status = library.execute(*call)
            if status:
                raise RuntimeError(f"oneDNN's primitive_execute gave status {status}")


class _Rows:
    """The gradient of a layer's kernel, by forward convolutions of some rows of pixels each.

    The channels of these are the layer's batch: what they sum over. oneDNN's own gradient, on
    AVX2, takes half as long again, and adds up all pixels one after the other.
    """

    def __init__(
        self, library: _Library, found: Convolution, x: _Array, dy: _Array, kernel: _Array
    ):
        self._library = library
        x = x.cropped(found.high)
        own, total = _dense_images(x), _dense_images(kernel._replace(dtype="float32"))
        self._place = _aligned(own.bytes)  # of the sum, behind the images
        self._before = self._place + _aligned(total.bytes)
        self._first, self._last = (
            _Primitive(
                library,
                library.copy(library.dense(source), library.dense(target)),
                (SRC, DST),
                [source, target],
            )
            for source, target in ((x, own), (total, kernel))
        )
        primitives: dict[tuple[int, ...], _Primitive] = {}
        self._calls = []
        stride, height = found.rhs_dilation[0], dy.size[2]
        rows = max(1, CACHED * height // (dy.bytes + own.bytes))
        for first in range(0, height, rows):
            count = min(rows, height - first)
            start = first * stride - found.low[0]
            stop = start + (count - 1) * stride + kernel.size[2]
            low, high = max(-start, 0), max(stop - x.size[2], 0)
            shape = (stop - start - low - high, count, low, high, int(first > 0))
            if shape not in primitives:
                primitives[shape] = self._primitive(found, own, dy, total, shape)
            places = own.rows_before(start + low), dy.rows_before(first)
            self._calls.append((primitives[shape], places))
        parts = (self._first, self._last, *primitives.values())
        self._size = self._before + max(each.size for each in parts)

    def _primitive(
        self, found: Convolution, x: _Array, dy: _Array, total: _Array, shape: tuple[int, ...]
    ) -> _Primitive:
        """That of some rows, which adds to the sum where it is not the first."""
        library = self._library
        height, rows, low, high, adds = shape
        x, dy = _dense_images(x.with_height(height)), dy.with_height(rows)
        dilation = [each - 1 for each in found.rhs_dilation]
        padding = (low, found.low[1]), (high, max(found.high[1], 0))
        described = library.new(
            "convolution_forward_primitive_desc_create",
            *(library.engine, c_int(TRAINING), c_int(DIRECT)),
            *(library.images(x), library.kernel(dy), None, library.images(total)),
            *_geometry(5, (1, 1), dilation, *padding),
            library.adding if adds else library.attributes,
        )
        return _Primitive(library, described, (SRC, WEIGHTS, DST), [x, dy, total])

    def __call__(self, buffers: Sequence[int]) -> None:
        """Computes on arrays at these addresses."""
        x, dy, kernel = buffers
        own = self._library.space(self._size)
        total = own + self._place
        self._first((x, own), self._before)
        for primitive, (here, there) in self._calls:
            primitive((own + here, dy + there, total), self._before)
        self._last((total, kernel), self._before)


def _make(library: _Library, kind: str, *fields: Any) -> "_Primitive | _Rows":
    """The primitive of a convolution: see `_kind`."""
    found = Convolution._make(tuple(f) if isinstance(f, list) else f for f in fields)
    lhs = _Array.of(found.lhs, found.lhs_order, found.dtype)
    rhs = _Array.of(found.rhs, found.rhs_order, found.dtype)
    out = _Array.of(found.out, found.out_order, found.out_dtype)
    deep = _is_deep(found)
    if kind == "weights" and not deep:
        if found.lhs[0] >= CHANNELS:
            return _Rows(library, found, lhs.deep(), rhs.deep_kernel(), out.deep())
        return _weights(library, found, lhs.swapped(), rhs.swapped(), out.swapped())
    if kind == "data":
        rhs = rhs.swapped()
    if deep:
        lhs, rhs, out = lhs.deep(), rhs.deep_kernel(), out.deep()
    return (_data if kind == "data" else _forward)(library, found, lhs, rhs, out)


def _is_deep(found: Convolution) -> bool:
    """Whether the batch is convolved as a third, innermost axis of the images.

    The rows of its matrix products are then the batch and no padding is multiplied. It is up to
    three times as fast for small images, whose kernels' gradients are a forward convolution then.
    """
    small = max(*found.rhs[2:], *found.out[2:]) <= SMALL and found.lhs[0] >= BATCH
    return small and found.lhs_dilation == (1, 1)


def _forward(
    library: _Library, found: Convolution, x: _Array, kernel: _Array, y: _Array
) -> _Primitive:
    """The convolution as it is."""
    x = x.cropped(found.high)
    dilation, high = ([each - 1 for each in found.rhs_dilation], [max(p, 0) for p in found.high])
    described = library.new(
        "convolution_forward_primitive_desc_create",
        *(library.engine, c_int(TRAINING), c_int(DIRECT)),
        *(library.images(x), library.kernel(kernel), None, library.images(y)),
        *_geometry(len(x.size), found.stride, dilation, found.low, high),
        library.attributes,
    )
    return _Primitive(library, described, (SRC, WEIGHTS, DST), [x, kernel, y])


def _data(
    library: _Library, found: Convolution, dy: _Array, kernel: _Array, dx: _Array
) -> _Primitive:
    """The gradient of a layer's input."""
    geometry = _geometry(len(dy.size), found.lhs_dilation, (0, 0), *_of_layer(found))
    layers = (library.images(dx), library.kernel(kernel), library.images(dy))
    described = library.new(
        "convolution_backward_data_primitive_desc_create",
        *(library.engine, c_int(DIRECT), *layers, *geometry),
        _hint(library, *layers, geometry),
        library.attributes,
    )
    return _Primitive(library, described, (DIFF_DST, WEIGHTS, DIFF_SRC), [dy, kernel, dx])


def _weights(
    library: _Library, found: Convolution, x: _Array, dy: _Array, kernel: _Array
) -> _Primitive:
    """The gradient of a layer's kernel."""
    high = _high(found.lhs, found.rhs, found.out, found.rhs_dilation, found.low)
    geometry = _geometry(4, found.rhs_dilation, (0, 0), found.low, high)
    images = (library.images(x), library.images(dy))
    described = library.new(
        "convolution_backward_weights_primitive_desc_create",
        *(library.engine, c_int(DIRECT)),
        *(images[0], library.kernel(kernel), None, images[1], *geometry),
        _hint(
            library, images[0], library.kernel(kernel._replace(dtype=x.dtype)), images[1], geometry
        ),
        library.attributes,
    )
    return _Primitive(library, described, (SRC, DIFF_DST, DIFF_WEIGHTS), [x, dy, kernel])


def _hint(library: _Library, x: Any, kernel: Any, y: Any, geometry: list) -> c_void_p:
    """The forward convolution that oneDNN wants to be told with a gradient."""
    return library.new(
        "convolution_forward_primitive_desc_create",
        *(library.engine, c_int(TRAINING), c_int(DIRECT), x, kernel, None, y, *geometry, None),
    )


def _geometry(rank: int, stride, dilation, low, high) -> list:
    """Strides, dilations and paddings as oneDNN takes them, of 2 or 3 axes."""
    third = ((1,), (0,), (0,), (0,)) if rank == 5 else ((),) * 4
    parts = zip((stride, dilation, low, high), third, strict=True)
    return [_sizes((*each, *more)) for each, more in parts]


def _of_layer(found: Convolution) -> tuple[list[int], list[int]]:
    """The padding, before and after, of the layer whose input's gradient this is."""
    low = [k - 1 - p for k, p in zip(found.rhs[2:], found.low, strict=True)]
    return low, _high(found.out, found.lhs, found.rhs, found.lhs_dilation, low)


def _high(image, out, kernel, stride, low) -> list[int]:
    """The padding at the end, below 0 where a stride leaves the last pixels out."""
    parts = zip(image[2:], out[2:], kernel[2:], stride, low, strict=True)
    return [(o - 1) * s + k - i - p for i, o, k, s, p in parts]


def _aligned(size: int) -> int:
    """Bytes up to the next address where memory may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sizes(values: Sequence[int]) -> Any:
    """Numbers as C has them."""
    return (c_int64 * len(values))(*values)


def _find() -> str:
    """Where the library is: where its package or the environment has it, or the system."""
    name = "libdnnl.so.3"
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(PACKAGE) or ():
            if file.name == name and os.path.exists(file.locate()):
                return str(file.locate())
    path = os.path.join(sys.prefix, "lib", name)
    return path if os.path.exists(path) else name
