"""A proof tries to break a law at some size, and answers with a figure and every violation that it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VIOLATIONS_MAX: Final = 20
"""So many are told; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a proof stands on: a folder of its own that a database's account can pass through, a migrated, empty
    database for those that need one without a gateway, and whom to tell of each finished piece of work."""

    folder: Path
    database: Callable[[], AbstractContextManager[str]]
    tick: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """How it went. ``missed`` names a figure short of its target, which is a pity; a violation is a broken law."""

    figure: str
    violations: tuple[str, ...] = ()
    missed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One proof at its three sizes, in ``unit``: in ``make test``, in ``make prove``, and in ``make prove N=full``.

    ``ticks`` are told for each unit; without ``needs_gateway`` it stands on the ground's folder and database alone;
    one with ``several_workers`` starts them, and a Redis.
    """

    name: str
    claim: str
    prove: Callable[[int, Ground], Proven]
    unit: str
    small: int
    usual: int
    full: int
    ticks: int = 1
    needs_gateway: bool = True
    several_workers: bool = False


def told(violations: list[str]) -> tuple[str, ...]:
    """The first violations, and how many more there are."""
    more = len(violations) - VIOLATIONS_MAX
    return tuple(violations[:VIOLATIONS_MAX]) + ((f"… and {more} more",) if more > 0 else ())
