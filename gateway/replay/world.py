"""The providers as they would behave: what each account's cache holds, when it is out, how fast it answers.

Nobody who routes sees any of this but through answers, failures and bills. Times are seconds since the first request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.prefix import Prompt
from gateway.replay.chance import draw, seed_of, wait

AccountKey = tuple[str, str]
PARTS_PER_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerms:
    """A provider's prompt cache: an entry lives ``ttl_seconds`` after its last use, the least recently used leaves
    first where there is more than ``capacity_tokens``; ``ignored_ppm`` of a million requests are billed as if there
    were none. Only multiples of ``block_tokens`` are ever billed as cached."""

    ttl_seconds: float = 600.0
    capacity_tokens: int | None = None
    ignored_ppm: int = 50_000
    block_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How fast a provider answers: a fixed time, and the prompt's uncached part, until the first token; then so many
    tokens a second."""

    first_token_seconds: float = 0.5
    prefill_tokens_per_second: float = 12_000.0
    output_tokens_per_second: float = 45.0

    def first(self, uncached_tokens: int) -> float:
        return self.first_token_seconds + uncached_tokens / self.prefill_tokens_per_second

    def rest(self, output_tokens: int) -> float:
        return output_tokens / self.output_tokens_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Outages that come and go by chance: down for ``share`` of the time, ``mean_seconds`` long."""

    share: float
    mean_seconds: float
    seed: int = 0

    def until(self, horizon: float, name: int) -> tuple[tuple[float, float], ...]:
        """Every outage that begins before the horizon."""
        up_seconds = self.mean_seconds * (1 - self.share) / self.share
        outages: list[tuple[float, float]] = []
        at = 0.0
        while True:
            number = len(outages)
            at += wait(up_seconds, self.seed, name, number, 0)
            if at >= horizon:
                return tuple(outages)
            end = at + wait(self.mean_seconds, self.seed, name, number, 1)
            outages.append((at, end))
            at = end


class Outages:
    """When one account cannot be reached: intervals from their beginning to before their end."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: Sequence[tuple[float, float]]) -> None:
        ordered = sorted(intervals)
        self._starts = [start for start, _ in ordered]
        self._ends: list[float] = []
        for _, end in ordered:
            self._ends.append(max(end, self._ends[-1]) if self._ends else end)

    def is_out(self, at: float) -> bool:
        place = bisect_right(self._starts, at) - 1
        return place >= 0 and at < self._ends[place]


class PrefixCache:
    """What one account's cache holds, by the digest of each prefix. Using a prefix uses all that it begins with, so
    whoever holds a prefix holds every shorter one."""

    __slots__ = ("_block", "_capacity", "_held", "_last_used", "_ttl")

    def __init__(self, terms: CacheTerms) -> None:
        self._ttl = terms.ttl_seconds
        self._block = terms.block_tokens
        self._capacity = terms.capacity_tokens
        self._last_used: OrderedDict[int, tuple[float, int]] = OrderedDict()  # with its tokens beyond the prefix before
        self._held = 0

    def cached_tokens(self, prompt: Prompt, at: float) -> int:
        """Tokens of the longest prefix that is still there, in whole blocks."""
        since, used = at - self._ttl, self._last_used
        for place in range(len(prompt.digests) - 1, -1, -1):
            entry = used.get(prompt.digests[place])
            if entry is not None and entry[0] >= since:
                return prompt.tokens[place] - prompt.tokens[place] % self._block
        return 0

    def use(self, prompt: Prompt, at: float) -> None:
        """The whole prompt was read by a request that was sent at this moment."""
        used, before = self._last_used, prompt.tokens
        if self._capacity is None:
            for digest in prompt.digests:
                entry = used.get(digest)
                if entry is None or entry[0] < at:
                    used[digest] = (at, 0)
            return
        for place in range(len(prompt.digests) - 1, -1, -1):  # the longest first, so that it also leaves first
            digest = prompt.digests[place]
            entry = used.pop(digest, None)
            size = before[place] - (before[place - 1] if place else 0)
            self._held += size - (entry[1] if entry else 0)
            used[digest] = (at if entry is None else max(at, entry[0]), size)
        while self._held > self._capacity:
            _, (_, size) = used.popitem(last=False)
            self._held -= size


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTerms:
    """How one provider behaves; ``outages`` by account, the provider's own under the name None."""

    cache: CacheTerms = CacheTerms()
    latency: Latency = Latency()
    outages: Mapping[str | None, Bursts | tuple[tuple[float, float], ...]]


class AccountWorld:
    """One account as it really is."""

    __slots__ = ("_outages", "cache", "ignored_ppm", "latency", "name")

    def __init__(self, provider: str, account: str, terms: ProviderTerms, horizon: float) -> None:
        self.name: int = seed_of(provider, account)
        self.cache = PrefixCache(terms.cache)
        self.ignored_ppm = terms.cache.ignored_ppm
        self.latency = terms.latency
        intervals: list[tuple[float, float]] = []
        for whose in (None, account):
            outages = terms.outages.get(whose, ())
            name = seed_of(provider) if whose is None else self.name
            intervals.extend(outages.until(horizon, name) if isinstance(outages, Bursts) else outages)
        self._outages = Outages(intervals)

    def is_out(self, at: float) -> bool:
        return self._outages.is_out(at)

    def ignores_cache(self, request: int, seed: int) -> bool:
        """Whether it would bill this request as if nothing were cached."""
        return draw(seed, self.name, request) * PARTS_PER_MILLION < self.ignored_ppm
