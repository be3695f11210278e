"""Variables that were trained elsewhere: read from a file, and held against the model's own."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn import files
from jaxunlearn.data import reading
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.models import convert
from jaxunlearn.training.passes import Variables

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
FORM = reading.Form(
    "a model's variables",
    "give an Orbax folder, or a .msgpack of flax.serialization, an .npz or a .safetensors file "
    "whose names are paths such as params/Dense_0/kernel",
)


def _orbax(path: Path) -> Any:
    from jaxunlearn.store import load_tree

    return load_tree(path)


def _msgpack(path: Path) -> Any:
    return serialization.msgpack_restore(path.read_bytes())


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        return _by_path(dict(archive))


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(
            f"{reading.named(path)} needs the extra safetensors: pip install -e '.[safetensors]'"
        ) from None
    arrays = load_file(path)
    return _by_path(convert.resnet(arrays) if convert.is_resnet(arrays) else arrays)


READERS: dict[str, Callable[[Path], Any]] = {
    ".msgpack": _msgpack,
    ".npz": _npz,
    ".safetensors": _safetensors,
}


def _by_path(arrays: Mapping[str, np.ndarray]) -> Any:
    """Nested dicts of arrays whose names are paths, with slashes or else dots."""
    separator = "/" if any("/" in name for name in arrays) else "."
    return unflatten_dict(dict(arrays), sep=separator)


def read(given: str, what: str, like: Variables) -> Variables:
    """Variables of a model from a file, or from a folder of Orbax's or of our store.

    Args:
      given: the path: what its name ends in says what it is.
      what: what the user calls it, such as "config.original.path".
      like: the model's own variables, or their shapes.

    Returns:
      Nested dicts of numpy arrays in the shapes and types of `like`.

    Raises:
      UserError: the path cannot be read, or holds other variables than the model's.
    """
    tree = _read(_path(given, what), what)
    if not isinstance(tree, Mapping):
        raise UserError(f"{what}={given} holds {type(tree).__name__}, no dict of variables")
    if "params" not in tree and set(like) == {"params"}:
        tree = {"params": tree}
    return _fit(tree, like, f"{what}={given}")


def fingerprint(given: str, what: str) -> str:
    """SHA-256 of the file, or of all files of the folder with their names."""
    path = _path(given, what)
    if path.is_file():
        return files.sha256(path)
    inner = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path)} {files.sha256(file)}" for file in inner)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _path(given: str, what: str) -> Path:
    """The path as it can be read."""
    path = files.local(given, what)
    if path.suffix in PICKLES and not path.is_dir():
        raise UserError(
            f"{what}={given} is a pickle, which can run any program when it is read; save it anew: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    if not path.is_dir():
        return reading.regular(path, what, FORM)
    return path / "variables" if (path / "variables").is_dir() else path


def _read(path: Path, what: str) -> Any:
    """What the path holds."""
    reader = _orbax if path.is_dir() else READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{what}={path} ends in none of {', '.join(READERS)}; {FORM.advice}")
    try:
        return reader(path)
    except UserError:
        raise
    except Exception as error:  # whatever a format's own library raises at a damaged file
        message = f"{what}={path} cannot be read as {FORM.kind}: {one_line(error)}; {FORM.advice}"
        raise UserError(message) from error


def _fit(tree: Mapping[str, Any], like: Variables, where: str) -> Variables:
    """The tree as numpy arrays of the model's types; raises at the first leaf that differs."""
    found, wanted = (flatten_dict(dict(each), sep="/") for each in (tree, like))
    for name, own in wanted.items():
        if name not in found:
            there = ", ".join(sorted({path.partition("/")[0] for path in found})[:8]) or "nothing"
            raise UserError(f"{where} lacks {name}, {_shown(own)} in the model; it has {there}")
        if np.shape(found[name]) != own.shape:
            given = _shown(np.asarray(found[name]))
            raise UserError(f"{where} has {name} as {given}, and the model as {_shown(own)}")
    for name in found:
        if name not in wanted:
            raise UserError(f"{where} has {name}, which the model has not")
    return unflatten_dict(
        {name: _leaf(found[name], own, f"{where}: {name}") for name, own in wanted.items()},
        sep="/",
    )


def _leaf(value: Any, own: Any, where: str) -> np.ndarray:
    """A leaf in the type of the model's own, which must hold its values."""
    array = np.asarray(value)
    kinds = [np.dtype(dtype).kind for dtype in (array.dtype, own.dtype)]
    floating = [kind in "fV" for kind in kinds]  # V: bfloat16 and the like
    if floating[0] != floating[1]:
        raise UserError(f"{where} is {array.dtype}, and the model's is {own.dtype}")
    array = array.astype(own.dtype, copy=False)
    if floating[0] and not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise UserError(f"{where} holds values that are not finite")
    return array


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
