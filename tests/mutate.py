"""Damage to a file, of the kinds that disks, networks, editors and people do."""

import numpy as np

KINDS = ("flip", "truncate", "zero", "insert", "remove", "repeat", "splice")


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to four damages; their kinds and places come from `rng`."""
    for _ in range(rng.integers(1, 5)):
        content = _damage(content, str(rng.choice(KINDS)), rng)
    return content


def _damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    start, end = sorted(int(at) for at in rng.integers(0, len(data) + 1, 2))
    few = min(len(data), start + int(rng.integers(1, 9)))  # headers are short
    if kind == "flip":
        for at in range(start, few):
            data[at] ^= int(rng.integers(1, 256))
    elif kind == "truncate":
        del data[start:]
    elif kind == "zero":
        data[start:few] = bytes(few - start)
    elif kind == "insert":
        data[start:start] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "remove":
        del data[start:few]
    elif kind == "repeat":
        data[start:start] = data[start:end]
    else:
        at = int(rng.integers(0, len(data) + 1))
        data[at : at + end - start] = data[start:end]
    return bytes(data)
