"""A cache is believed to hold what was sent to it: boundary by boundary, by the time each was last used there.

One book per cache, that is per provider, account and model: no provider shares its cache between two of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.core.survival import AGES

AccountKey = tuple[str, str]
"""Provider and account."""

CacheKey = tuple[str, str, str]
"""Provider, account and model."""

REMEMBERED_SECONDS: Final = 7_200.0
"""Twice the longest cache lifetime that a provider of these models sells; older memories are worth nothing."""
BOUNDARIES_MAX: Final = 200_000
"""Boundaries remembered of one cache: an hour of a very busy account, some 30 MB."""
LADDER: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048)
"""Depths at which a long chain of equal blocks is remembered: whatever another request shares with it, at least two
thirds of that is found again."""


class Match(NamedTuple):
    """A boundary of this prompt, so many tokens deep, that this cache last used ``age`` seconds ago."""

    tokens: int
    age: float


class Expected(NamedTuple):
    """The deepest boundary found, its age, the chance that it is still cached; and the tokens of the whole prompt that
    will be billed as cached, each with its chance."""

    matched_tokens: int
    matched_age: float
    hit_probability: float
    cached_tokens: int


NOTHING_EXPECTED: Final = Expected(0, 0.0, 0.0, 0)


def worth_remembering(count: int) -> tuple[int, ...]:
    """Which of so many boundaries to remember, as indexes, shallow to deep: of few all, else a ladder and the last."""
    if count <= 16:
        return tuple(range(count))
    return (*(depth - 1 for depth in LADDER if depth < count), count - 1)


class Warmth:
    """Boundaries by the time they were last used in one cache; bounded, least recently used out."""

    __slots__ = ("_boundaries_max", "_used_at")

    def __init__(self, *, boundaries_max: int = BOUNDARIES_MAX) -> None:
        self._used_at: OrderedDict[int, float] = OrderedDict()
        self._boundaries_max = boundaries_max

    def __len__(self) -> int:
        return len(self._used_at)

    def touch(self, digests: Sequence[int], at: float) -> tuple[float | None, ...]:
        """The cache was sent a prompt with these boundaries; returns when it had last used each. Deep ones go first
        when room is short."""
        used_at = self._used_at
        before = tuple(map(used_at.get, digests))
        for digest, last in zip(reversed(digests), reversed(before), strict=True):
            if last is None or at > last:
                used_at[digest] = at
            used_at.move_to_end(digest)
        while len(used_at) > self._boundaries_max:
            used_at.popitem(last=False)
        return before

    def forget(self, until: float) -> None:
        """What was last used then or before, as far as nothing younger lies before it."""
        used_at = self._used_at
        while used_at and next(iter(used_at.values())) <= until:
            used_at.popitem(last=False)

    def restore(self, digests: Sequence[int], at: float, before: Sequence[float | None]) -> None:
        """What was sent at that time was not read after all, and nothing was sent since: as it was before."""
        for digest, last in zip(digests, before, strict=True):
            if self._used_at.get(digest) == at:
                if last is None:
                    del self._used_at[digest]
                else:
                    self._used_at[digest] = last

    def expected(
        self, digests: Sequence[int], tokens: Sequence[int], now: float, curve: Sequence[float]
    ) -> Expected | None:
        """What to expect of this cache for a prompt, None = nothing of it is remembered. ``curve`` is the chance by
        age that a boundary is still there; between two boundaries the tokens are as sure as the deeper one is, and
        what is deeper was read together with all that is before it: a prefix is never older than what extends it."""
        get = self._used_at.get
        latest = now - REMEMBERED_SECONDS
        matched = top = 0
        matched_age = matched_chance = chance = cached = 0.0
        index = len(digests)
        for digest in reversed(digests):
            index -= 1
            at = get(digest)
            if at is None or at <= latest:
                continue
            latest = at
            age = now - at if at < now else 0.0
            if matched:
                cached += (top - tokens[index]) * chance
                chance = curve[bisect_left(AGES, age)]
            else:
                matched, matched_age = tokens[index], age
                chance = matched_chance = curve[bisect_left(AGES, age)]
            top = tokens[index]
        if not matched:
            return None
        return Expected(matched, matched_age, matched_chance, int(cached + top * chance))

    def matches(self, digests: Sequence[int], tokens: Sequence[int], now: float) -> tuple[Match, ...]:
        """The boundaries of a prompt that are remembered here, shallow to deep, each as young as what extends it."""
        get = self._used_at.get
        found = [(depth, at) for depth, at in zip(tokens, map(get, digests), strict=True) if at is not None]
        if not found:
            return ()
        matches: list[Match] = []
        latest = now - REMEMBERED_SECONDS
        for depth, at in reversed(found):
            if at > latest:
                latest = at
            elif not matches:
                continue
            matches.append(Match(depth, max(0.0, now - latest)))
        matches.reverse()
        return tuple(matches)
