"""Compiled programs, and the clock that leaves their compilation out."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import devices
from jaxunlearn.convolution import paths
from jaxunlearn.convolution.rewrite import rewrite
from jaxunlearn.errors import UserError
from jaxunlearn.jaxprs import equations

# A process may map some 65,000 pieces of memory, and each program is up to 25 of them: the compiler
# crashes where there are none left.
MOST = 1000


class Programs:
    """Compiled programs by function and argument shapes, and the seconds that compiling took."""

    def __init__(self, mesh: Mesh, convolution: str = "auto"):
        """Programs for a mesh; `convolution` as `config.convolution`, see `paths.find`."""
        self.mesh = mesh
        self.convolution = paths.find(convolution, mesh)
        self.seconds = 0.0
        self._compiled: dict[Any, Callable] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def __call__(self, function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Callable:
        """Returns `function` compiled for such arguments; outputs are replicated."""
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        cache_key = (function, donate, structure, shapes)
        if cache_key not in self._compiled:
            start = time.perf_counter()
            traced = self._trace(function, args, donate)
            # Compiling what can never run would take minutes.
            self._check_memory(self._largest(traced.jaxpr.jaxpr))
            if self.convolution.choose is not None:
                function = rewrite(function, traced, self.convolution.choose)
                traced = self._trace(function, args, donate)
            compiled = traced.lower().compile()
            sizes = compiled.memory_analysis()
            if sizes is not None:  # not every platform tells
                self._check_memory(
                    sizes.temp_size_in_bytes
                    + sizes.argument_size_in_bytes
                    + sizes.output_size_in_bytes
                    - sizes.alias_size_in_bytes
                )
            if len(self._compiled) >= MOST:
                del self._compiled[next(iter(self._compiled))]  # the oldest
            self._compiled[cache_key] = compiled
            self.seconds += time.perf_counter() - start
        return self._compiled[cache_key]

    def _trace(self, function: Callable, args: tuple, donate: tuple[int, ...]) -> Any:
        """The function traced, to be compiled for the mesh."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        jitted = jax.jit(function, donate_argnums=donate, out_shardings=replicated)
        with devices.full_precision(self.mesh):
            return jitted.trace(*args)

    def describe(self) -> dict[str, Any]:
        """The machine, as results and stored models name it, and how it computes."""
        precision = getattr(jax.config, "jax_default_matmul_precision", None)
        how = f"{self.convolution.name} at {precision}" if precision else self.convolution.name
        return {**devices.describe(self.mesh), "convolution": how}

    def _check_memory(self, needed: float) -> None:
        """Raises where a program needs more bytes on a device than there are."""
        there = devices.memory(self.mesh)
        if needed > there:
            share = f" (to {there / needed:.0%} of it, at most)" if there > needed / 100 else ""
            raise UserError(
                f"one step needs {needed / 2**30:.3g} GiB of memory or more on each device, which "
                f"has {there / 2**30:.3g}; lower batch_size{share}, model.width or the size of the "
                "images"
            )

    def _largest(self, jaxpr: Any) -> float:
        """Bytes on each device of the largest array that a program must keep."""
        shapes = [
            made.aval.shape
            for equation in equations(jaxpr)
            for made in equation.outvars
            if hasattr(made.aval, "shape") and not _is_fused(equation)
        ]
        # At best it is split between the devices; nearly all is float32.
        return 4 * max(map(math.prod, shapes), default=0) / self.mesh.size


def _is_fused(equation: Any) -> bool:
    """Whether compilers make it where it is read: one-hot matrices, and what they are made of."""
    made, name = equation.outvars, equation.primitive.name
    if name == "convert_element_type":  # of a mask
        made = equation.invars
    return name in ("broadcast_in_dim", "iota") or any(_is_mask(var) for var in made)


def _is_mask(var: Any) -> bool:
    return str(getattr(var.aval, "dtype", "")) == "bool"


class Stopwatch:
    """Seconds since `start`, excluding compilation, summed up over its stops."""

    def __init__(self, programs: Programs, seconds: float = 0.0):
        self._programs, self.seconds = programs, seconds
        self.start()

    def start(self) -> None:
        """Starts, or leaves out what has passed since."""
        self._clock, self._compiled = time.perf_counter(), self._programs.seconds

    def stop(self) -> float:
        """Adds the time since the start, and returns the sum."""
        compiling = self._programs.seconds - self._compiled
        self.seconds += time.perf_counter() - self._clock - compiling
        return self.seconds
