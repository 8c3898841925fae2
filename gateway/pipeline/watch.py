"""A watch over one exchange: every wait has a deadline, and one reason at a time may end what it watches.

``with watch:`` marks the region that may be interrupted. A deadline, the client's hang-up or a shutdown then ends the
await inside it with ``Interrupted``; outside of the region (settling) nothing is ever cut short. A deadline ends one
attempt; a client that is gone and a shutdown end them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Final

from gateway.core.catalogue import Timeouts
from gateway.core.failure import Failure, FailureClass

HEARTBEAT_SECONDS: Final = 10.0
"""A silent stream gets a comment line this often; INTERFACE §3 promises 15 s."""
DRAIN_SECONDS_MAX: Final = 600.0


class ClientGone(Enum):
    """The client hung up. (An enum with one member: a value that type checkers can tell apart.)"""

    CLIENT_GONE = auto()


Reason = Failure | ClientGone


class Interrupted(Exception):  # noqa: N818 - an expected end, not an error
    """What was awaited will not be waited for any longer."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Watch:
    """Deadlines of one exchange, on one timer. Times are the event loop's."""

    __slots__ = (
        "_armed",
        "_attempt_started",
        "_cancelled",
        "_cancelling",
        "_drain",
        "_drain_until",
        "_ended",
        "_heartbeat",
        "_heartbeat_seconds",
        "_last_word",
        "_loop",
        "_progressed",
        "_reason",
        "_task",
        "_timeouts",
        "_timer",
        "client_gone",
        "last_read",
        "last_write",
        "writing_since",
    )

    def __init__(self, *, heartbeat: Callable[[], None] | None, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._heartbeat = heartbeat
        self._heartbeat_seconds = heartbeat_seconds
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._armed = False
        self._reason: Reason | None = None
        self._last_word: Reason | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timeouts = Timeouts()
        self._attempt_started = 0.0
        self._progressed = False
        self._drain = False
        self._drain_until = float("inf")
        self._ended = False
        self.client_gone = False
        self.last_read = 0.0
        self.last_write = self._loop.time()
        self.writing_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether no further attempt may be made: the client is gone, or the gateway is stopping."""
        return self.client_gone or self._last_word is not None

    def begin_attempt(self, timeouts: Timeouts, *, drain: bool) -> None:
        """A new upstream call is about to be made under these deadlines; ``drain``: a hang-up does not end it."""
        now = self._loop.time()
        self._timeouts = timeouts
        self._attempt_started = self.last_read = now
        self._progressed = False
        self._drain = drain
        self._reason = self._last_word
        self.writing_since = None
        self._schedule(now)

    def end(self) -> None:
        """Nothing is watched any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def progressed(self) -> None:
        """The answer itself has begun: from now on silence counts as idle time."""
        self._progressed = True
        self._schedule(self._loop.time())

    def hang_up(self) -> None:
        """The client is gone. In drain mode the upstream is read on to its usage, for a bounded while."""
        if self.client_gone or self._ended:
            return
        self.client_gone = True
        if self._drain and self._armed:
            now = self._loop.time()
            self._drain_until = now + DRAIN_SECONDS_MAX
            self._schedule(now)
        else:
            self.interrupt(ClientGone.CLIENT_GONE)

    def interrupt(self, reason: Reason) -> None:
        """Ends the watched region for this reason; the first reason stands."""
        if self._last_word is None and not _ends_one_attempt(reason):
            self._last_word = reason
        if self._reason is None:
            self._reason = reason
            # Not at once: the caller may be the task itself, where it is not waiting for anything.
            self._loop.call_soon(self._cut_short)

    def _cut_short(self) -> None:
        if self._armed and self._reason is not None and not self._cancelled:
            assert self._task is not None
            self._cancelled = self._task.cancel()

    def __enter__(self) -> None:
        if self._reason is not None:
            raise Interrupted(self._reason)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._armed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._armed = False
        if not self._cancelled:
            return
        assert self._task is not None
        assert self._reason is not None
        self._cancelled = False
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise Interrupted(self._reason) from None

    def _due(self) -> tuple[float, Reason | None]:
        """The next deadline and what passing it means; None = a heartbeat."""
        limits = self._timeouts
        if self.writing_since is not None:  # it is the client who keeps us waiting, and not the upstream
            return (self.writing_since + limits.idle, ClientGone.CLIENT_GONE)
        silence = limits.idle if self._progressed else limits.first_byte
        since = self.last_read if self._progressed else self._attempt_started
        what = "went silent" if self._progressed else "sent no answer"
        due = (since + silence, _timed_out(f"the upstream {what} for {silence:g} s"))
        total = self._attempt_started + limits.total
        if total < due[0]:
            due = (total, _timed_out(f"the answer took longer than {limits.total:g} s"))
        if self._drain_until < due[0]:
            due = (self._drain_until, _timed_out("the client is gone and the upstream would not end"))
        if self._heartbeat is not None and self.last_write + self._heartbeat_seconds < due[0]:
            return (self.last_write + self._heartbeat_seconds, None)
        return due

    def _schedule(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(max(now, self._due()[0]), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        due, reason = self._due()
        if due <= now:
            if reason is not None:
                self.client_gone = self.client_gone or isinstance(reason, ClientGone)
                self.interrupt(reason)
                return
            self.last_write = now
            if self._heartbeat is not None and not self.client_gone:
                self._heartbeat()
        self._schedule(now)


def _ends_one_attempt(reason: Reason) -> bool:
    return isinstance(reason, Failure) and reason.kind is FailureClass.TIMED_OUT


def _timed_out(message: str) -> Failure:
    return Failure(kind=FailureClass.TIMED_OUT, message=message)
