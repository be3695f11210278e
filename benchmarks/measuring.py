"""What benchmarks share: a clock by part, the fit of a line, markdown tables, the machine."""

import contextlib
import functools
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


class Clock:
    """Seconds by part, each without those of the parts that it calls."""

    def __init__(self, parts: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._inner = [0.0]

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Times what is done within."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self.seconds[part] += whole - self._inner.pop()
            self._inner[-1] += whole

    def wrap(self, part: str, owner: Any, *names: str) -> None:
        """Times functions and cached properties of a module or a class."""
        for name in names:
            found = owner.__dict__[name]
            if isinstance(found, functools.cached_property):
                found.func = self._timed(part, found.func)
            else:
                setattr(owner, name, self._timed(part, found))

    def _timed(self, part: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return function(*args, **kwargs)

        return timed


def fit(n: Sequence[float], y: Sequence[float]) -> Row:
    """The line a + b·n, its root mean square residual by the mean, and exponents of n.

    An exponent is the slope in logarithms: over all, where what stays lowers it; and over the last
    step, where what grows faster than n shows first.
    """
    x, values = np.asarray(n, float), np.asarray(y, float)
    several = len(x) > 1
    slope, intercept = np.polyfit(x, values, 1) if several else (np.nan, np.nan)
    residual = values - intercept - slope * x
    logs = np.log(np.maximum([x, values], 1e-9))
    steps = np.diff(logs)
    return {
        "a": float(intercept),
        "b": float(slope),
        "off": float(np.sqrt(np.mean(residual**2)) / np.mean(values)),
        "exponent": float(np.polyfit(logs[0], logs[1], 1)[0]) if several else np.nan,
        "last": float(steps[1, -1] / steps[0, -1]) if several else np.nan,
    }


def seconds(function: Callable[[], Any]) -> float:
    """The fastest of some calls."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
        if best > 2:
            break
    return best


def word(value: Any) -> str:
    """A number with three digits or all before the point, anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def spread(values: Sequence[float]) -> str:
    """The median, the lowest and the highest."""
    return f"{word(statistics.median(values))} ({word(min(values))} to {word(max(values))})"


def ratios(a: Sequence[float], b: Sequence[float]) -> str:
    """The spread of a / b, round by round."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


# Of a processor's instructions those that convolutions gain by, as Linux names them.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """The processor, its cores, and what of `INSTRUCTIONS` it has."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))
    flags = found.get("flags", "").split()
    has = (f"{'' if name in flags else 'no '}{name}" for name in INSTRUCTIONS)
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {', '.join(has)}"


def load() -> str:
    """How many processes have wanted a core in the last 1, 5 and 15 minutes."""
    return "load average " + ", ".join(f"{average:.2f}" for average in os.getloadavg())


def show(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers as `word` writes them."""
    cells = [list(header), *([word(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        line = " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        print(f"| {line} |", flush=True)
    print()
