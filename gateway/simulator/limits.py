"""An account is admitted by four limits, whichever is hit first; what was charged at admission is never refunded.

Tokens are charged as the estimate of the prompt plus the output limit that the request names (or the model's default),
over a sliding minute or day. A refused request is charged nothing.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Final, Literal

import msgspec

MINUTE_SECONDS: Final = 60.0
DAY_SECONDS: Final = 86_400.0


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one account may do; None is without limit."""

    concurrency: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    tpd: int | None = None


class LimitHit(msgspec.Struct, frozen=True, kw_only=True):
    """The limit that refused: its name, what was used of it, and the seconds until it may admit again."""

    kind: Literal["concurrency", "rpm", "tpm", "tpd"]
    current: int
    limit: int
    retry_seconds: int


class _Window:
    """The sum of what happened in the last ``seconds``."""

    __slots__ = ("_events", "_seconds", "total")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._events: deque[tuple[float, int]] = deque()
        self.total = 0

    def advance(self, now: float) -> None:
        events, horizon = self._events, now - self._seconds
        while events and events[0][0] <= horizon:
            self.total -= events.popleft()[1]

    def add(self, amount: int, now: float) -> None:
        self._events.append((now, amount))
        self.total += amount

    def seconds_until(self, room: int, now: float) -> int:
        """Whole seconds until at most ``room`` is used."""
        left = self.total
        for at, amount in self._events:
            left -= amount
            if left <= room:
                return max(1, ceil(at + self._seconds - now))
        return max(1, ceil(self._seconds))


class Limiter:
    """The limits of one account, with what it has used of them."""

    __slots__ = ("_day", "_requests", "_tokens", "in_flight", "in_flight_max", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.in_flight = 0
        self.in_flight_max = 0
        self._requests = _Window(MINUTE_SECONDS)
        self._tokens = _Window(MINUTE_SECONDS)
        self._day = _Window(DAY_SECONDS)

    def admit(self, *, tokens: int, now: float) -> LimitHit | None:
        """Takes a place and charges every window, or charges nothing and says which limit refused."""
        limits = self.limits
        if limits.concurrency is not None and self.in_flight >= limits.concurrency:
            return LimitHit(kind="concurrency", current=self.in_flight, limit=limits.concurrency, retry_seconds=1)
        if limits.rpm is not None and (hit := _check(self._requests, 1, limits.rpm, now, "rpm")):
            return hit
        if limits.tpm is not None and (hit := _check(self._tokens, tokens, limits.tpm, now, "tpm")):
            return hit
        if limits.tpd is not None and (hit := _check(self._day, tokens, limits.tpd, now, "tpd")):
            return hit
        if limits.rpm is not None:
            self._requests.add(1, now)
        if limits.tpm is not None:
            self._tokens.add(tokens, now)
        if limits.tpd is not None:
            self._day.add(tokens, now)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        return None

    def release(self) -> None:
        """Gives the place back; what was charged stays charged."""
        assert self.in_flight > 0
        self.in_flight -= 1


def _check(window: _Window, amount: int, limit: int, now: float, kind: Literal["rpm", "tpm", "tpd"]) -> LimitHit | None:
    window.advance(now)
    if window.total + amount <= limit:
        return None
    wait = window.seconds_until(limit - amount, now)
    return LimitHit(kind=kind, current=window.total + amount, limit=limit, retry_seconds=wait)
