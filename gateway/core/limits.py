"""Limits over a sliding minute: at most the limit in any sixty seconds, all of it at once if wanted.

What was taken within one second of the clock is given back together, when the last of it is a minute old: a minute
never holds more than its limit, whoever takes once waits a minute and no longer, and the books stay short. Source:
INTERFACE §3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

MINUTE_MS: Final = 60_000
FULL_RETRY_MS: Final = 1_000
"""When to ask again for one of several requests at once: nobody knows when the others end."""


class LimitKind(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits of one key, team or provider account. ``name`` is what a caller is told. None = no limit.

    ``scope`` as a budget's, or ``account:PROVIDER/NAME``.
    """

    scope: str
    name: str
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    are_none: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "are_none", (self.rpm, self.tpm, self.concurrency) == (None, None, None))


NO_LIMITS: Final = RateLimits(scope="", name="")
"""Of whoever has none."""


class RateState(msgspec.Struct, frozen=True, kw_only=True):
    """One limit as a caller is told it: ``remaining`` of ``limit``, all of it again in ``reset_ms``."""

    limit: int
    remaining: int
    reset_ms: int


class RateStates(msgspec.Struct, frozen=True, kw_only=True):
    """The tightest limits of requests and of tokens per minute; None where there is none."""

    requests: RateState | None = None
    tokens: RateState | None = None


NO_RATES: Final = RateStates()


class SlidingMinute:
    """How much was taken in the last minute, second by second. Its user's clock does not run backwards."""

    __slots__ = ("_due", "_slots", "taken")

    def __init__(self) -> None:
        self._slots: dict[int, list[int]] = {}  # second → taken in it, and its last moment; oldest first
        self._due = 0  # before this moment nothing is given back
        self.taken = 0

    def advance(self, now_ms: int) -> None:
        """Gives back what is a minute old."""
        if now_ms < self._due:
            return
        slots = self._slots
        while slots:
            oldest = next(iter(slots))
            amount, last_ms = slots[oldest]
            if last_ms + MINUTE_MS > now_ms:
                self._due = last_ms + MINUTE_MS
                return
            del slots[oldest]
            self.taken -= amount

    def take(self, amount: int, now_ms: int) -> None:
        """Counts ``amount`` at this moment."""
        slot = self._slots.get(now_ms // 1000)
        if slot is None:
            self._slots[now_ms // 1000] = [amount, now_ms]
        else:
            slot[0] += amount
            slot[1] = now_ms
        self.taken += amount

    def correct(self, second: int, difference: int) -> None:
        """What was taken in that second was really so much more, or less; too late after a minute."""
        slot = self._slots.get(second)
        if slot is None:
            return
        difference = max(difference, -slot[0])
        slot[0] += difference
        self.taken += difference

    def wait_ms(self, needed: int, limit: int, now_ms: int) -> int:
        """How long until ``needed`` fits under ``limit`` if nobody takes more; the whole minute for what never fits."""
        excess = self.taken + needed - limit
        for amount, last_ms in self._slots.values():
            excess -= amount
            if excess <= 0:
                return max(1, last_ms + MINUTE_MS - now_ms)
        return MINUTE_MS

    def reset_ms(self, now_ms: int) -> int:
        """How long until all of it has been given back."""
        for amount, last_ms in reversed(self._slots.values()):
            if amount:
                return max(0, last_ms + MINUTE_MS - now_ms)
        return 0

    @property
    def is_empty(self) -> bool:
        return not self._slots


class ScopeState:
    """What one scope has taken in the last minute, and how many of its requests are under way."""

    __slots__ = ("requests", "running", "tokens")

    def __init__(self) -> None:
        self.requests = SlidingMinute()
        self.tokens = SlidingMinute()
        self.running = 0

    def lacks(self, limits: RateLimits, tokens: int, now_ms: int) -> LimitKind | None:
        """What these limits have no room for; None = they have."""
        if limits.rpm is not None:
            self.requests.advance(now_ms)
            if self.requests.taken + 1 > limits.rpm:
                return LimitKind.REQUESTS
        if limits.tpm is not None:
            self.tokens.advance(now_ms)
            if self.tokens.taken + tokens > limits.tpm:
                return LimitKind.TOKENS
        if limits.concurrency is not None and self.running >= limits.concurrency:
            return LimitKind.CONCURRENCY
        return None

    def wait_ms(self, limits: RateLimits, kind: LimitKind, tokens: int, now_ms: int) -> int:
        """For how long they have none, if nobody takes more."""
        if kind is LimitKind.REQUESTS:
            assert limits.rpm is not None
            return self.requests.wait_ms(1, limits.rpm, now_ms)
        if kind is LimitKind.TOKENS:
            assert limits.tpm is not None
            return self.tokens.wait_ms(tokens, limits.tpm, now_ms)
        return FULL_RETRY_MS

    def take(self, limits: RateLimits, tokens: int, now_ms: int) -> None:
        """One request more, of which ``lacks`` has just said that there is room; counted for as much as is limited."""
        if limits.rpm is not None:
            self.requests.take(1, now_ms)
        if limits.tpm is not None:
            self.tokens.take(tokens, now_ms)
        if limits.concurrency is not None:
            self.running += 1

    def end(self, limits: RateLimits) -> None:
        """A request that was taken under these limits is over."""
        if limits.concurrency is not None:
            self.running -= 1
            assert self.running >= 0, "what runs is what was taken and has not ended"

    def is_idle(self, now_ms: int) -> bool:
        """Whether nothing would be lost with it."""
        self.requests.advance(now_ms)
        self.tokens.advance(now_ms)
        return not self.running and self.requests.is_empty and self.tokens.is_empty
