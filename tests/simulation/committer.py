"""The journal's commits on virtual time: a sync may take hours, and the loop goes on meanwhile.

Most commits happen whole, at the end of their time. The others run on a thread that only moves while the loop stands
still, so that records are appended while a sync is under way; one of the two always waits for the other.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from random import Random
from typing import Final

from gateway.adapters.journal.writer import IDLE_SYNC_SECONDS

INTERLEAVED_SHARE: Final = 0.25


class _Killed(BaseException):
    """The process died while its thread was in a system call."""


class DrivenCommitter:
    """Implements ``Committer`` for one writer on the running loop. ``sync_time`` says how long the next sync takes."""

    def __init__(self, sync_time: Callable[[], float], chance: Random) -> None:
        self._sync_time = sync_time
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._commit: Callable[[], None] = lambda: None
        self._baton: _Baton | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._sync: asyncio.TimerHandle | None = None
        self._is_asked = self._is_busy = self._is_ending = False

    def start(self, commit: Callable[[], None]) -> None:
        self._commit = commit
        self._rest()

    def ask(self) -> None:
        self._is_asked = True
        if not self._is_busy:
            self._loop.call_soon(self._begin)

    def stop(self, seconds_max: float) -> bool:
        if not self._is_ending:
            if self._baton is not None and self._is_busy:
                self._baton.hurry()
            self._commit()
            self.kill()
        return True

    def kill(self) -> None:
        """It ends where it is."""
        self._is_ending = True
        for timer in (self._idle, self._sync):
            if timer is not None:
                timer.cancel()
        if self._baton is not None:
            self._baton.drop()
            self._baton = None

    def wait(self) -> None:
        """In a system call: lets the time of a sync pass, where that is not over already."""
        if self._baton is not None:
            self._baton.wait(self._sync_time())

    def _begin(self) -> None:
        if self._is_busy or self._is_ending:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._is_busy = True
        if self._chance.random() < INTERLEAVED_SHARE:
            self._is_asked = False
            self._baton = _Baton(self._commit)
            self._go_on()
        else:
            self._sync = self._loop.call_later(self._sync_time(), self._whole)

    def _whole(self) -> None:
        self._is_asked = False
        self._commit()
        self._done()

    def _go_on(self) -> None:
        """Lets the thread run until it waits or is done."""
        assert self._baton is not None
        seconds = self._baton.pass_on()
        if seconds is not None:
            self._sync = self._loop.call_later(seconds, self._go_on)
            return
        self._baton = None
        self._done()

    def _done(self) -> None:
        self._is_busy = False
        if self._is_asked:
            self._loop.call_soon(self._begin)
        self._rest()

    def _rest(self) -> None:
        if not self._is_ending:
            self._idle = self._loop.call_later(IDLE_SYNC_SECONDS, self._look)

    def _look(self) -> None:
        """What nobody waits for."""
        if not self._is_busy:
            self._whole()


class _Baton:
    """One commit on a thread of its own, which runs only between ``pass_on`` and its next ``wait``."""

    def __init__(self, commit: Callable[[], None]) -> None:
        self._to_thread, self._to_loop = threading.Lock(), threading.Lock()
        self._to_thread.acquire()
        self._to_loop.acquire()
        self._seconds: float | None = None
        self._is_hurried = self._is_killed = False
        self._trouble: BaseException | None = None
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, commit), name="simulated-sync", daemon=True)
        self._thread.start()

    def pass_on(self) -> float | None:
        """Lets it run; how long it wants to wait, None when it is done."""
        self._seconds = None
        self._to_thread.release()
        self._to_loop.acquire()
        if self._trouble is not None:
            raise self._trouble
        return self._seconds

    def hurry(self) -> None:
        """Lets it run to its end, without waiting."""
        self._is_hurried = True
        self.pass_on()
        self._thread.join()

    def drop(self) -> None:
        if self._thread.is_alive():
            self._is_killed = True
            self._to_thread.release()
            self._thread.join()

    def wait(self, seconds: float) -> None:
        if self._is_hurried or threading.current_thread() is not self._thread:
            return
        self._seconds = seconds
        self._to_loop.release()
        self._to_thread.acquire()
        if self._is_killed:
            raise _Killed

    def _run(self, commit: Callable[[], None]) -> None:
        self._to_thread.acquire()
        try:
            commit()
        except _Killed:
            return
        except BaseException as trouble:  # noqa: BLE001 - raised again where the simulation sees it
            self._trouble = trouble
        self._to_loop.release()
