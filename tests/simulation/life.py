"""A life is one run of the gateway's process: it ends in order or is ended, and the dead have no effect."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

POINTS: Final = ("write", "sync", "send", "open", "read", "commit")
"""Where a process touches the world, and where it may be killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doom:
    """Killed when it reaches ``point`` for the ``count``-th time: before, after or (a write) within it."""

    point: str
    count: int
    when: str


@dataclass(eq=False, slots=True, kw_only=True)
class Life:
    """Whether a process lives, and what belongs to it."""

    number: int
    now: Callable[[], float]
    doom: Doom | None = None
    is_alive: bool = True
    died_at: float | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    disk_failed: bool = False
    disk_is_well_again: bool = False
    end: str = "term"
    stopping_at: float | None = None
    started_at: float = 0.0

    @property
    def died_early(self) -> bool:
        return self.end != "term"

    @property
    def is_certain(self) -> bool:
        """Whether it had every chance to settle what it began: it was not killed, and its disk is well again."""
        return not self.died_early and (self.disk_is_well_again or not self.disk_failed)

    def is_stopping(self, at: float) -> bool:
        return self.stopping_at is not None and at > self.stopping_at

    def passes(self, point: str) -> bool:
        """Whether what happens at this point still has an effect."""
        if not self.is_alive:
            return False
        self.passed[point] += 1
        doom = self.doom
        if doom is None or doom.point != point or self.passed[point] != doom.count:
            return True
        self.die()
        return doom.when == "after"

    def tears(self) -> bool:
        """Whether the coming write is the one within which the process dies."""
        doom = self.doom
        return (
            self.is_alive
            and doom is not None
            and (doom.point, doom.when) == ("write", "within")
            and self.passed["write"] + 1 == doom.count
        )

    def die(self) -> None:
        """No effect from now on."""
        if self.is_alive:
            self.is_alive = False
            self.died_at = self.now()
            self.ended.set()


async def never() -> NoReturn:
    """What the dead wait for."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError
