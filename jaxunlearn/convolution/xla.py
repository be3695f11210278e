"""XLA's C interface for functions that its programs call, by ctypes: no compiler is needed.

The layouts are those of `xla/ffi/api/c_api.h`, which comes with jaxlib; within a major version of
the interface they only grow at their ends.
"""

import ctypes
import re
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import jax

MAJOR = 0  # of the interface's version that this file follows
METADATA = 1  # the extension by which XLA asks for a handler's version
INTERNAL = 13  # an error's code


class _Version(Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _ErrorArguments(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("message", c_char_p),
        ("code", c_int),
    )


class _Api(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("make_error", CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))),
    )


class _Metadata(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    )


class _Extension(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("kind", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


class _Buffer(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("count", c_int64),
        ("kinds", c_void_p),
        ("each", POINTER(POINTER(_Buffer))),
    )


class _Text(Structure):
    _fields_ = (("start", c_void_p), ("length", c_size_t))


class _Attributes(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", c_void_p),
        ("count", c_int64),
        ("kinds", c_void_p),
        ("names", c_void_p),
        ("each", POINTER(POINTER(_Text))),
    )


class _Frame(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_HANDLER = CFUNCTYPE(c_void_p, POINTER(_Frame))
_KEPT: dict[str, object] = {}  # what XLA may call for as long as the process lives


def _minor() -> int:
    """The minor version of XLA's interface, by the header that comes with it."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    found = re.search(r"define XLA_FFI_API_MINOR (\d+)", header.read_text(encoding="utf-8"))
    if found is None:
        raise OSError(f"{header} does not tell the version of XLA's interface")
    return int(found[1])


def register(name: str, run: Callable[[bytes, list[int]], None]) -> None:
    """Makes a function callable from programs on a CPU, by `jax.ffi.ffi_call`, under a name.

    Args:
      name: what programs call it.
      run: gets the call's one attribute, a text, and the addresses of operands and results.

    Raises:
      Exception: this version of XLA has another interface; of whichever kind JAX raises.
    """
    if name in _KEPT:
        return
    minor = _minor()

    @_HANDLER
    def handler(frame):
        call = frame.contents
        try:
            if call.extension and call.extension.contents.kind == METADATA:
                metadata = call.extension.contents.metadata.contents
                # XLA refuses another major version than its own, older ones another minor one too.
                metadata.version.major = MAJOR
                metadata.version.minor = minor
                metadata.traits = 0
                return None
            text = call.attributes.each[0].contents
            buffers = (
                part.each[i].contents.data
                for part in (call.arguments, call.results)
                for i in range(part.count)
            )
            run(ctypes.string_at(text.start, text.length), list(buffers))
        except BaseException as error:  # nothing may escape into XLA
            message = f"{type(error).__name__}: {error}".encode()
            arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, INTERNAL)
            return call.api.contents.make_error(ctypes.byref(arguments))
        return None

    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (c_void_p, c_char_p, c_void_p)
    capsule = new_capsule(ctypes.cast(handler, c_void_p), None, None)
    _KEPT[name] = handler
    try:
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except BaseException:
        del _KEPT[name]
        raise
