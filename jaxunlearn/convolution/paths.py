"""Which convolutions a mesh computes with."""

import platform
import sys
from pathlib import Path as FilePath
from typing import NamedTuple

from jax.sharding import Mesh

from jaxunlearn import rules
from jaxunlearn.convolution import onednn, products
from jaxunlearn.convolution.literal import Convolution
from jaxunlearn.convolution.rewrite import Call, Choose
from jaxunlearn.errors import UserError, one_line

SETTING = rules.one_of(("auto", "onednn", "xla"))
# What a processor calls its arithmetic on bfloat16, of those kinds that oneDNN makes use of.
BFLOAT16 = {"avx512_bf16", "amx_bf16"}


class Path(NamedTuple):
    """How a mesh computes convolutions.

    Attributes:
      name: with the version, as the machine's description has it.
      choose: what computes each, see `rewrite`; None: XLA, all of them.
      reason: why they are not oneDNN's, where they might be.
      bfloat16: whether computing in bfloat16 saves time.
    """

    name: str
    choose: Choose | None
    reason: str
    bfloat16: bool

    def __str__(self) -> str:
        """A line for the user; "" where there is nothing to choose."""
        why = f"; not oneDNN: {self.reason}" if self.reason else ""
        return f"Convolutions: {self.name}{why}" if self.choose else ""


def find(setting: str, mesh: Mesh) -> Path:
    """The path of a mesh.

    Args:
      setting: `config.convolution`.
      mesh: the devices.

    Raises:
      UserError: oneDNN is asked for, and cannot be used.
    """
    reason = _reason(mesh) if setting != "xla" else "config.convolution is 'xla'"
    if setting == "onednn" and reason:
        raise UserError(f"config.convolution is 'onednn', but {reason}; set it to 'auto'")
    if mesh.devices.flat[0].platform != "cpu":
        return Path("XLA", None, "", True)
    if reason:
        return Path("XLA", products.choose, reason, False)
    bfloat16 = bool(BFLOAT16 & _flags())
    choose = onednn.choose if bfloat16 else _float32_alone
    return Path(f"oneDNN {onednn.load().version}", choose, "", bfloat16)


def _float32_alone(found: Convolution) -> Call | None:
    """What oneDNN computes where it has no arithmetic for bfloat16, which it refuses then."""
    return products.choose(found) if found.dtype == "bfloat16" else onednn.choose(found)


def _reason(mesh: Mesh) -> str:
    """Why oneDNN cannot be used, "" where it can."""
    if mesh.devices.flat[0].platform != "cpu":
        return f"it is for CPUs, and this is {mesh.devices.flat[0].platform}"
    if mesh.size > 1:
        return "it computes on one device, and these are several"
    try:
        onednn.load()
    except Exception as error:  # a library that is not there, or not like those that we know
        return f"{one_line(error)}{_advice(str(error))}"
    return ""


def _advice(error: str) -> str:
    """How to get what is missing, where we know."""
    if "libgomp" in error:
        return " (the system's package libgomp1 or libgomp has it)"
    linux = sys.platform == "linux" and platform.machine() == "x86_64"
    return " (pip install 'jaxunlearn[cpu]' brings it)" if linux and "libdnnl" in error else ""


def _flags() -> set[str]:
    """What the processor can do, by Linux's names; nothing where there is no Linux."""
    try:
        text = FilePath("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())
