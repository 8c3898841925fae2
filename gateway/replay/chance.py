"""Chance is a function of a seed and of what it is drawn for: the same draw for every policy, in any order of drawing.

Policies are compared on the same luck: whether a provider ignores its cache for a request depends on the request and
the account, never on what was routed before.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

_MASK: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def seed_of(*names: str) -> int:
    """The seed that a name stands for: 64 bits, the same everywhere."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "big")


def draw(*keys: int) -> float:
    """A number in [0, 1) for these keys; splitmix64, folded over them."""
    state = 0
    for key in keys:
        state = (state + key + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) / float(1 << 53)


def wait(mean: float, *keys: int) -> float:
    """An exponential time with this mean."""
    return -mean * math.log1p(-draw(*keys))
