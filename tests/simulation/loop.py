"""A virtual loop for whole processes: nothing on it touches the machine, and every task knows whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, Final

from tests.pipeline.virtual_time import VirtualTimeLoop
from tests.simulation.life import Life

OWNER: Final[ContextVar[Life | None]] = ContextVar("OWNER", default=None)
"""The process on whose behalf something runs; None for the world around it."""
_TURNS_MAX: Final = 200


class SimulationLoop(VirtualTimeLoop):
    """Other threads' work is done at once and in its place; signals are for the simulation to send."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(_owned)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's to handle
            future.set_exception(error)
        return future

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        pass

    def leftovers_of(self, life: Life) -> list[object]:
        """Tasks and timers that outlived their process."""
        tasks = [task for task in life.tasks if not task.done()]
        timers = [
            handle
            for handle in self._scheduled
            if not handle.cancelled() and handle._context is not None and handle._context.get(OWNER) is life
        ]
        return [*tasks, *timers]

    def abandon(self) -> None:
        """Ends every task there is, so that a broken simulation leaves nothing that complains later."""
        for _ in range(_TURNS_MAX):
            tasks = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.call_soon(self.stop)
            self.run_forever()

    def close_quietly(self) -> None:
        self.troubles = []
        self.close()

    async def bury(self, life: Life) -> None:
        """Takes a dead process off the loop; whatever it still tries, its ports no longer do."""
        assert not life.is_alive
        for _ in range(_TURNS_MAX):
            left = self.leftovers_of(life)
            if not left:
                return
            for each in left:
                each.cancel()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        raise AssertionError(f"a dead process does not end: {self.leftovers_of(life)}")


def _owned(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, **more)
    context = more.get("context")
    owner = OWNER.get() if context is None else context.get(OWNER)
    if owner is not None:
        owner.tasks.append(task)
    return task
