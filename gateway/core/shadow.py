"""What the same requests would have cost elsewhere, from their prefixes alone; a fold over the past in order of time.

A baseline is a rule that answers for every request which provider would have served it: one provider for all of them,
or the one with the lowest list price. It has a cache index of its own, which is fed with every request as if that
provider had served it, and is valued at the share that this provider really billed as cached at each age
(:mod:`gateway.core.retention`), learned from those requests that it did serve. A baseline never fails, is never
limited, and has one cache for all: it is the best that the rule could have done, so what was saved is not flattered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.estimate import expected_cost
from gateway.core.money import Money
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price
from gateway.core.retention import BUCKETS, NEVER, Evidence, Segment, bucket_of
from gateway.core.usage import Meter
from gateway.core.warmth import Warmth

LIST_PRICE: Final = "list price"
"""The baseline that always takes the lowest sum of input and output list price, as if there were no caches."""
GROUPS: Final = 32
"""Conversations are dealt into so many groups; leaving out one at a time says how much a figure owes to chance."""
BOUNDARIES_MAX: Final = 250_000
"""Boundaries remembered per cache, least recently used out: a hundred thousand requests that go on as long."""
_MIX: Final = 0x9E3779B97F4A7C15


class PastRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request of the past with all its attempts; figures are those of the one that ended it.

    ``cost`` is of all attempts, ``failed_cost`` of those that failed or were not the last. ``is_read`` says whether the
    provider read the prompt, ``is_told`` whether it told the tokens itself. ``prompt`` is None where none was kept.
    """

    request_id: str
    at: datetime
    model: str
    tenant: str
    turn: int
    prompt: Prompt | None
    provider: str
    account: str
    price_id: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_read: bool
    is_told: bool
    cost: Money
    failed_cost: Money
    final_cost: Money


class Index:
    """A cache's warmth, in moments: what is used in one moment is not there before the next, so the order of requests
    within a moment does not matter."""

    __slots__ = ("_moment", "_pending", "_warmth")

    def __init__(self, boundaries_max: int = BOUNDARIES_MAX) -> None:
        self._warmth = Warmth(boundaries_max=boundaries_max)
        self._pending: list[tuple[int, ...]] = []
        self._moment = 0.0

    def __len__(self) -> int:
        return len(self._warmth)

    def segments(self, digests: Sequence[int], tokens: Sequence[int], at: float) -> list[Segment]:
        """What of a prompt was used before, shallow to deep, and what follows up to the next boundary."""
        self._until(at)
        segments: list[Segment] = []
        depth = 0
        for match in self._warmth.matches(digests, tokens, at):
            if match.tokens > depth:
                segments.append(Segment(match.tokens - depth, match.age))
                depth = match.tokens
        beyond = next((count for count in tokens if count > depth), depth)
        if beyond > depth:
            segments.append(Segment(beyond - depth, NEVER))
        return segments

    def use(self, digests: tuple[int, ...], at: float) -> None:
        self._until(at)
        self._pending.append(digests)

    def _until(self, at: float) -> None:
        assert at >= self._moment, "the past is told in order of time"
        if at == self._moment:
            return
        for digests in self._pending:
            self._warmth.touch(digests, self._moment)
        self._pending.clear()
        self._moment = at


class Tally:
    """What one baseline comes to, beside what the same requests really cost. ``discounts`` are picodollars that each
    provider's cache would save if it kept everything, by age of the match."""

    __slots__ = ("actual", "discounts", "is_rule", "requests", "without_cache")

    def __init__(self, *, is_rule: bool) -> None:
        self.is_rule = is_rule
        self.requests = 0
        self.actual = 0
        self.without_cache = 0
        self.discounts: dict[str, list[int]] = {}

    def add(self, request: PastRequest, price: Price, segments: Iterable[Segment]) -> None:
        self.requests += 1
        self.actual += request.cost.pico
        self.without_cache += without_cache(request, price).pico
        discounts = self.discounts.get(price.provider)
        if discounts is None:
            discounts = self.discounts[price.provider] = [0] * BUCKETS
        add_discounts(discounts, segments, price)


class Check:
    """What a provider billed for the requests that it did serve, by group of conversations, beside what is needed to
    predict each group from the others."""

    __slots__ = ("billed", "cached", "discounts", "evidence", "requests", "total", "without_cache")

    def __init__(self) -> None:
        self.requests = 0
        self.total = Evidence()
        self.evidence = [Evidence() for _ in range(GROUPS)]
        self.discounts = [[0] * BUCKETS for _ in range(GROUPS)]
        self.without_cache = [0] * GROUPS
        self.billed = [0] * GROUPS
        self.cached = [0] * GROUPS

    def add(self, request: PastRequest, price: Price, segments: Sequence[Segment], group: int) -> None:
        self.requests += 1
        self.total.learn(segments, request.cached_tokens)
        self.evidence[group].learn(segments, request.cached_tokens)
        add_discounts(self.discounts[group], segments, price)
        self.without_cache[group] += without_cache(request, price).pico
        self.billed[group] += request.final_cost.pico
        self.cached[group] += request.cached_tokens


class ModelShadow:
    """One model's traffic: what it cost, and what every baseline would have. Feed it in order of time."""

    def __init__(self, model: str, catalogue: Catalogue) -> None:
        self.model = model
        self.requests = 0
        self.actual = 0
        self.failed = 0
        self.saved_by_caches = 0
        self.tallies: dict[str, Tally] = {}
        self.checks: dict[str, Check] = {}
        self._catalogue = catalogue
        self._deployments = catalogue.deployments(model)
        self._everything = Index()
        self._by_list_price: dict[str, Index] = {}
        self._accounts: dict[tuple[str, str], Index] = {}

    def add(self, request: PastRequest, prompt: Prompt, paid: Price | None) -> None:
        """``paid`` is the price row that the request was charged at, None where nobody knows it any more."""
        at = request.at.timestamp()
        tokens = brought_to(prompt, request.input_tokens)
        self.requests += 1
        self.actual += request.cost.pico
        self.failed += request.failed_cost.pico
        everything = self._everything.segments(prompt.digests, tokens, at)
        self._everything.use(prompt.digests, at)
        priced = list(self._priced(request.at))
        for price in priced:
            self._tally(price.provider).add(request, price, everything)
        if priced:
            chosen = min(priced, key=lambda price: price.input.pico_per_token + price.output.pico_per_token)
            index = self._by_list_price.setdefault(chosen.provider, Index())
            self._tally(LIST_PRICE).add(request, chosen, index.segments(prompt.digests, tokens, at))
            index.use(prompt.digests, at)
        self._learn(request, prompt, tokens, at, paid)

    def _learn(
        self, request: PastRequest, prompt: Prompt, tokens: Sequence[int], at: float, paid: Price | None
    ) -> None:
        """From what was really billed, at the cache that really was asked."""
        index = self._accounts.setdefault((request.provider, request.account), Index())
        segments = index.segments(prompt.digests, tokens, at)
        if request.is_read:
            index.use(prompt.digests, at)
        if paid is None or not request.is_told:
            return
        self.saved_by_caches += without_cache(request, paid).pico - request.final_cost.pico
        self.checks.setdefault(request.provider, Check()).add(request, paid, segments, group_of(prompt))

    def _priced(self, at: datetime) -> Iterator[Price]:
        """The prices in force of whoever serves the model on that day, by provider name."""
        for card, deployment in self._deployments:
            price = self._catalogue.prices.in_force(card.name, self.model, at)
            if price is not None and deployment.is_available(at.date()):
                yield price

    def _tally(self, name: str) -> Tally:
        tally = self.tallies.get(name)
        if tally is None:
            tally = self.tallies[name] = Tally(is_rule=name == LIST_PRICE)
        return tally


class Shadow:
    """All models together, and what cannot be compared: requests whose prefixes nobody kept, or nobody answered."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.models: dict[str, ModelShadow] = {}
        self.requests = 0
        self.requests_left_out = 0
        self.cost_left_out = 0
        self._catalogue = catalogue
        self._prices = {price.price_id: price for price in catalogue.prices.rows()}

    def add(self, request: PastRequest) -> None:
        """One more request; they come in order of time. Sums are the same however they come in pieces."""
        self.requests += 1
        if request.prompt is None or not request.is_read or request.input_tokens <= 0:
            self.requests_left_out += 1
            self.cost_left_out += request.cost.pico
            return
        model = self.models.get(request.model)
        if model is None:
            model = self.models[request.model] = ModelShadow(request.model, self._catalogue)
        model.add(request, request.prompt, self._prices.get(request.price_id))


def without_cache(request: PastRequest, price: Price) -> Money:
    """What the request costs at a price where nothing of it is cached."""
    return expected_cost(price, input_tokens=request.input_tokens, cached_tokens=0, output_tokens=request.output_tokens)


def add_discounts(discounts: list[int], segments: Iterable[Segment], price: Price) -> None:
    """What a cache that keeps everything would take off, in picodollars by age of the match."""
    each = price.unit(Meter.INPUT).pico_per_token - price.unit(Meter.CACHE_READ).pico_per_token
    if each:
        for segment in segments:
            discounts[bucket_of(segment.age)] += segment.tokens * each


def brought_to(prompt: Prompt, input_tokens: int) -> tuple[int, ...]:
    """The counts of a prompt when the whole of it has turned out to be so many tokens; what a provider had told with
    an earlier answer stays as it was told."""
    estimated = prompt.input_tokens
    kept = prompt.anchored_tokens if prompt.anchored_tokens < min(estimated, input_tokens) else 0
    if estimated in (input_tokens, kept):
        return tuple(min(count, input_tokens) for count in prompt.tokens)
    span, target = estimated - kept, input_tokens - kept
    return tuple(count if count <= kept else kept + (count - kept) * target // span for count in prompt.tokens)


def group_of(prompt: Prompt) -> int:
    """The group of a prompt's conversation: the first boundary that is not the application's own, mixed and dealt."""
    first = next((digest for digest in prompt.digests if digest != prompt.family), prompt.family)
    return ((first * _MIX) & 0xFFFFFFFFFFFFFFFF) >> 59
