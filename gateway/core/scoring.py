"""What a candidate is expected to cost: this request, its failures, the conversation's further turns, and its quota.

    E = C + f (b C + k + what the next best costs more)      C = uncached (I - H) + cached H + output O
    W = r min over whom the next turn may go to of (its cost there + W one turn later)
    L = uncached ((u - 0.6) / 0.4)^4 (I + O)                 u = the account's utilisation, from 0.6 on

H, the cached tokens to expect, adds up the prompt between the boundaries found, each with the chance that it is still
there. A score orders candidates; it is float USD and never charged. The choice is the least E + W + L.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import mul
from typing import Final, NamedTuple

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import RoutingTerms
from gateway.core.continuation import Outlook
from gateway.core.exchange import Score
from gateway.core.limits import RateLimits
from gateway.core.money import PICO_PER_USD
from gateway.core.prefix import Prompt, Turn
from gateway.core.pricing import Price
from gateway.core.survival import AGES
from gateway.core.usage import Meter
from gateway.core.warmth import CacheKey

TURNS_AHEAD: Final = 10
"""Turns that are looked ahead: by then a lead of one cache over another has paid, or the conversation has ended."""
QUOTA_FROM: Final = 0.6
"""Below this utilisation an account's quota is worth nothing: a burst still finds room."""
QUOTA_STEEPNESS: Final = 4


class Units(NamedTuple):
    """What a token costs here, in pico-dollars: read by the model (and written to its cache); cached; answered."""

    uncached: int
    cached: int
    output: int

    def cost_pico(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        return (
            self.uncached * (input_tokens - cached_tokens) + self.cached * cached_tokens + self.output * output_tokens
        )


def units_of(price: Price, cache_ttl: str) -> Units:
    """Where a provider charges for writing its cache, what it does not find there is written."""
    uncached = price.unit(Meter.CACHE_WRITE, cache_ttl=cache_ttl)
    cached = price.unit(Meter.CACHE_READ)
    return Units(uncached.pico_per_token, cached.pico_per_token, price.output.pico_per_token)


class Offer(NamedTuple):
    """What scoring reads of a candidate. ``is_open``: it, or its provider, may take this conversation's turns."""

    cache: CacheKey
    units: Units
    limits: RateLimits
    output_tokens: int
    is_open: bool


class Scored(NamedTuple):
    """An offer's score, and its expected cost in whole pico-dollars."""

    score: Score
    cost_pico: int


def scored(
    offers: Sequence[Offer],
    prompt: Prompt,
    turn: Turn,
    beliefs: Beliefs,
    *,
    tenant: str,
    terms: RoutingTerms,
    now: float,
) -> list[Scored]:
    """The scores of all offers for one prompt, in their order."""
    input_tokens = prompt.tokens[-1]
    warm = [_expected_hit(offer, prompt, beliefs, now) for offer in offers]
    costs = [
        offer.units.cost_pico(input_tokens, hit.cached_tokens, offer.output_tokens)
        for offer, hit in zip(offers, warm, strict=True)
    ]
    least, second, first = _two_least(offers, costs)
    outlook = beliefs.outlook(turn, input_tokens, tenant=tenant, family=prompt.family)
    futures = _futures(offers, outlook, input_tokens, beliefs, now)
    chance = outlook.chances[0]
    found = []
    for index, (offer, hit, cost_pico) in enumerate(zip(offers, warm, costs, strict=True)):
        provider, account, _ = offer.cache
        cost = cost_pico / PICO_PER_USD
        probability = failure_usd = 0.0
        failures = beliefs.failures(offer.cache)
        if failures is not None and (probability := failures.probability(now)):
            elsewhere = second if index == first else least
            dearer = 0.0 if elsewhere is None else max(0, elsewhere - cost_pico) / PICO_PER_USD
            failure_usd = probability * (failures.billed_share * cost + terms.failure_usd + dearer)
        utilisation = beliefs.utilisation((provider, account), offer.limits, now)
        quota_usd = _quota_usd(offer, utilisation, input_tokens)
        future_usd = futures[provider, offer.units]
        score = Score(
            matched_tokens=hit.matched_tokens,
            matched_age_seconds=hit.matched_age,
            hit_probability=hit.probability,
            expected_cached_tokens=hit.cached_tokens,
            request_usd=cost,
            failure_probability=probability,
            failure_usd=failure_usd,
            next_turn_probability=chance,
            future_usd=future_usd,
            utilisation=utilisation,
            quota_usd=quota_usd,
            total_usd=cost + failure_usd + future_usd + quota_usd,
        )
        found.append(Scored(score, cost_pico))
    return found


class _Hit(NamedTuple):
    matched_tokens: int
    matched_age: float
    probability: float
    cached_tokens: int


_MISS: Final = _Hit(0, 0.0, 0.0, 0)


def _expected_hit(offer: Offer, prompt: Prompt, beliefs: Beliefs, now: float) -> _Hit:
    """Between two boundaries, the tokens are cached as surely as the deeper one is."""
    matches = beliefs.matches(offer.cache, prompt, now)
    if not matches:
        return _MISS
    provider, _, model = offer.cache
    curve = beliefs.survival(provider, model, now)
    expected, before, chance = 0.0, 0, 0.0
    for tokens, age in matches:
        chance = curve[bisect_left(AGES, age)]
        expected += (tokens - before) * chance
        before = tokens
    return _Hit(before, age, chance, int(expected))


def _two_least(offers: Sequence[Offer], costs: Sequence[int]) -> tuple[int | None, int | None, int]:
    """The least cost among open offers, the second least, and the index of the first."""
    least = second = None
    first = -1
    for index, (offer, cost) in enumerate(zip(offers, costs, strict=True)):
        if not offer.is_open:
            continue
        if least is None or cost < least:
            least, second, first = cost, least, index
        elif second is None or cost < second:
            second = cost
    return least, second, first


def _quota_usd(offer: Offer, utilisation: float, input_tokens: int) -> float:
    """The last slice of a quota is kept for prompts that are cached there; equal accounts are balanced by it."""
    if utilisation <= QUOTA_FROM:
        return 0.0
    pressure = (min(1.0, utilisation) - QUOTA_FROM) / (1 - QUOTA_FROM)
    tokens = input_tokens + offer.output_tokens
    return float(offer.units.uncached * tokens * pressure**QUOTA_STEEPNESS / PICO_PER_USD)


def _futures(
    offers: Sequence[Offer], outlook: Outlook, input_tokens: int, beliefs: Beliefs, now: float
) -> dict[tuple[str, Units], float]:
    """By provider and prices: what the further turns cost if one of its accounts holds the cache after this one.

    When the next turn comes it is known whether the cache lived: if it did, the turn stays or goes to whoever is
    cheapest cold; if it did not, it goes there anyhow. Backwards from the last turn that is looked at.
    """
    growth, output = outlook.growth_tokens, float(max((offer.output_tokens for offer in offers), default=0))
    keys: list[tuple[str, Units]] = []
    columns: list[tuple[float, float, float, float, bool]] = []
    for offer in offers:
        key = (offer.cache[0], offer.units)
        if key in keys:
            if offer.is_open and not columns[keys.index(key)][4]:
                columns[keys.index(key)] = (*columns[keys.index(key)][:4], True)
            continue
        keys.append(key)
        uncached, cached, answer = (unit / PICO_PER_USD for unit in offer.units)
        lives = sum(map(mul, outlook.gaps, beliefs.survival(offer.cache[0], offer.cache[2], now)))
        columns.append((uncached, uncached - cached, answer * output, lives, offer.is_open))
    if not any(column[4] for column in columns):
        return dict.fromkeys(keys, 0.0)
    futures = [0.0] * len(columns)
    last = len(outlook.chances) - 1
    for ahead in range(TURNS_AHEAD, 0, -1):
        chance = outlook.chances[min(ahead - 1, last)]
        held = input_tokens + (ahead - 1) * growth
        cold = [
            uncached * (held + growth) + answer + later
            for (uncached, _, answer, _, _), later in zip(columns, futures, strict=True)
        ]
        anywhere = min(each for each, column in zip(cold, columns, strict=True) if column[4])
        futures = [
            chance * (anywhere - lives * max(0.0, anywhere - (each - saving * held)))
            for each, (_, saving, _, lives, _) in zip(cold, columns, strict=True)
        ]
    return dict(zip(keys, futures, strict=True))
