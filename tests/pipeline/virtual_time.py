"""An event loop whose clock moves only when every task waits: hours pass in microseconds, the same way every time."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar

START: Final = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
START_SECONDS: Final = 1_000.0

T = TypeVar("T")
P = ParamSpec("P")


class NothingWillHappenError(AssertionError):
    """Every task waits for something, and no timer is set that could bring it about."""


class _IdleSelector(selectors.DefaultSelector):
    """Never blocks: when no descriptor is ready, it is later at once."""

    def __init__(self) -> None:
        super().__init__()
        self.idle_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise NothingWillHappenError("every task waits for something that no timer will bring about")
        self.idle_seconds += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual seconds."""

    def __init__(self) -> None:
        self._idle = _IdleSelector()
        super().__init__(self._idle)
        self.troubles: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.troubles.append(context))

    def time(self) -> float:
        return START_SECONDS + self._idle.idle_seconds

    def leftovers(self) -> list[object]:
        """Tasks and timers that outlived their owner."""
        timers = [handle for handle in self._scheduled if not handle.cancelled()]
        return [*asyncio.all_tasks(self), *timers]


class VirtualClock:
    """The port ``Clock`` on a virtual loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() - START_SECONDS)

    def monotonic(self) -> float:
        return self._loop.time()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a test's coroutine to its end, after which nothing may be left: no task, no timer, no unseen exception."""
    loop = VirtualTimeLoop()
    try:
        result = loop.run_until_complete(main)
        loop.run_until_complete(_settled())
        assert loop.leftovers() == []
        assert loop.troubles == []
        return result
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(_settled())
        loop.close()


async def _settled() -> None:
    """A few turns of the loop, for callbacks that are already on their way."""
    for _ in range(5):
        await asyncio.sleep(0)


def on_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A coroutine as a test, run by ``run``."""

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return wrapped
