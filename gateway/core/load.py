"""What an account carries and how it does: its last minute, what is under way, its share read from caches, its pace."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from gateway.core.limits import RateLimits

MINUTE_SECONDS: Final = 60.0
PACE_WEIGHT: Final = 0.1
CACHE_SHARE_KEPT: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast an account has been answering: seconds to the first chunk, output tokens per second."""

    first_chunk_seconds: float
    tokens_per_second: float


UNKNOWN_PACE: Final = Pace(first_chunk_seconds=0.0, tokens_per_second=float("inf"))


class CacheShare:
    """Of the input tokens that an account was told to have read of late, those that were billed as cached."""

    __slots__ = ("_cached", "_read")

    def __init__(self) -> None:
        self._read = 0.0
        self._cached = 0.0

    def add(self, read: int, cached: int) -> None:
        """One more answer; older ones fade, a hundredth each."""
        self._read = self._read * CACHE_SHARE_KEPT + read
        self._cached = self._cached * CACHE_SHARE_KEPT + min(cached, read)

    @property
    def share(self) -> float:
        return self._cached / self._read if self._read else 0.0


class Load:
    """A sliding minute of one account, and what is under way there."""

    __slots__ = ("_minute", "_requests", "_tokens", "last_at", "under_way")

    def __init__(self) -> None:
        self._minute: deque[tuple[float, int]] = deque()
        self._requests = 0
        self._tokens = 0
        self.under_way = 0
        self.last_at = 0.0

    def add(self, at: float, tokens: int) -> None:
        self._minute.append((at, tokens))
        self._requests += 1
        self._tokens += tokens
        self.under_way += 1
        self.last_at = max(at, self.last_at)
        self._forget(at)

    def _forget(self, now: float) -> None:
        """What is over a minute old counts nowhere, whenever it is dropped; nor does what comes from over a minute
        ahead, by a clock that was wrong: until then, nothing that came after it could be dropped."""
        minute = self._minute
        while minute and not -MINUTE_SECONDS < minute[0][0] - now <= MINUTE_SECONDS:
            self._tokens -= minute.popleft()[1]
            self._requests -= 1

    def utilisation(self, limits: RateLimits, now: float) -> float:
        """The largest share of a limit that is used, 0 without limits."""
        if limits.are_none:
            return 0.0
        self._forget(now)
        share = 0.0
        if limits.rpm:
            share = self._requests / limits.rpm
        if limits.tpm:
            share = max(share, self._tokens / limits.tpm)
        if limits.concurrency:
            share = max(share, self.under_way / limits.concurrency)
        return share

    def room_in(self, limits: RateLimits, tokens: int, now: float) -> float:
        """Seconds until one more request of so many tokens is within the limits of a minute; 0 = it is now.

        When something under way will end is not known; a request larger than the limit goes when nothing else does.
        """
        self._forget(now)
        requests_over = self._requests + 1 - limits.rpm if limits.rpm else 0
        tokens_over = self._tokens + min(tokens, limits.tpm) - limits.tpm if limits.tpm else 0
        if requests_over <= 0 and tokens_over <= 0:
            return 0.0
        for at, each in self._minute:
            requests_over -= 1
            tokens_over -= each
            if requests_over <= 0 and tokens_over <= 0:
                return max(0.0, at + MINUTE_SECONDS - now)
        return MINUTE_SECONDS


def moved(before: Pace, *, first_chunk_seconds: float | None, tokens_per_second: float) -> Pace:
    """A moving mean with one more answer; a whole body tells nothing of first chunks."""
    first = before.first_chunk_seconds
    if first_chunk_seconds is not None:
        known = first != UNKNOWN_PACE.first_chunk_seconds
        first = first + PACE_WEIGHT * (first_chunk_seconds - first) if known else first_chunk_seconds
    speed = before.tokens_per_second
    known = speed != UNKNOWN_PACE.tokens_per_second
    speed = speed + PACE_WEIGHT * (tokens_per_second - speed) if known else tokens_per_second
    return Pace(first_chunk_seconds=first, tokens_per_second=speed)
