"""Limits over a sliding minute, in whole seconds: at most the limit in any sixty seconds, all of it at once if wanted.

What was taken in one second is given back when that whole second is more than a minute old, so that a minute never
holds more than its limit; the price is that the last allowance comes back up to a second late. Source: INTERFACE §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from gateway.core.catalogue import Account

MINUTE_SLOTS: Final = 61
"""Seconds after which what was taken in one whole second is more than a minute old, whenever in it that was."""


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

    @property
    def are_none(self) -> bool:
        return self.rpm is None and self.tpm is None and self.concurrency is None


NO_LIMITS: Final = RateLimits(scope="", name="")
"""Of whoever has none."""


@lru_cache(maxsize=1024)
def limits_of_account(account: Account) -> RateLimits:
    """What is configured for a provider account."""
    where = f"{account.provider}/{account.name}"
    return RateLimits(
        scope=f"account:{where}", name=where, rpm=account.rpm, tpm=account.tpm, concurrency=account.concurrency
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateState:
    """One limit as a caller is told it: ``remaining`` of ``limit``, all of it again in ``reset_ms``."""

    limit: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateStates:
    """The tightest limits of requests and of tokens per minute; None where there is none."""

    requests: RateState | None = None
    tokens: RateState | None = None


NO_RATES: Final = RateStates()


class SlidingMinute:
    """How much was taken in the last minute, second by second. The caller's clock never runs backwards in here: an
    earlier moment counts as the latest one seen."""

    __slots__ = ("_slots", "latest", "taken")

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # second → taken in it, oldest first
        self.latest = 0
        self.taken = 0

    def advance(self, now_ms: int) -> int:
        """Gives back what is more than a minute old; returns the second it is."""
        second = now_ms // 1000
        if second <= self.latest:
            return self.latest
        self.latest = second
        slots = self._slots
        while slots:
            oldest = next(iter(slots))
            if oldest + MINUTE_SLOTS > second:
                break
            self.taken -= slots.pop(oldest)
        return second

    def take(self, amount: int, second: int) -> None:
        """Counts ``amount`` in the second that ``advance`` returned."""
        self._slots[second] = self._slots.get(second, 0) + amount
        self.taken += amount

    def correct(self, second: int, difference: int) -> None:
        """What was taken in that second was really so much more, or less; too late after a minute."""
        before = self._slots.get(second)
        if before is None:
            return
        difference = max(difference, -before)
        self._slots[second] = before + difference
        self.taken += difference

    def wait_ms(self, needed: int, limit: int, now_ms: int) -> int:
        """How long until ``needed`` fits under ``limit`` if nobody takes more; the whole minute for what never fits."""
        excess = self.taken + needed - limit
        for second, amount in self._slots.items():
            excess -= amount
            if excess <= 0:
                return max(1, (second + MINUTE_SLOTS) * 1000 - now_ms)
        return MINUTE_SLOTS * 1000

    def reset_ms(self, now_ms: int) -> int:
        """How long until all of it has been given back."""
        newest = next((second for second in reversed(self._slots) if self._slots[second]), None)
        return 0 if newest is None else max(0, (newest + MINUTE_SLOTS) * 1000 - now_ms)

    @property
    def is_empty(self) -> bool:
        return not self._slots
