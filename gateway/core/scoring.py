"""What a candidate is expected to cost: this request, its failures, the conversation's further turns, and its quota.

    E = C + f (b C + k + what the next best costs more)      C = uncached (I - H) + cached H + output O
    W = r min over whom the next turn may go to of (its cost there + W one turn later)
    L = uncached ((u - 0.6) / 0.4)^2 (I + O)                 u = the account's utilisation, from 0.6 on

H, the cached tokens to expect, adds up the prompt between the boundaries found, each with the chance that it is still
there. A score orders candidates; it is float USD and never charged. The choice is the least E + W + L.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from operator import mul
from typing import Final, NamedTuple

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import RoutingTerms
from gateway.core.continuation import Outlook
from gateway.core.exchange import Score
from gateway.core.limits import RateLimits
from gateway.core.money import PICO_PER_USD
from gateway.core.prefix import Prompt, Turn
from gateway.core.pricing import Units
from gateway.core.warmth import CacheKey

TURNS_AHEAD: Final = 10
"""Turns that are looked ahead: by then a lead of one cache over another has paid, or the conversation has ended."""
QUOTA_FROM: Final = 0.6
"""Below this utilisation an account's quota is worth nothing: a burst still finds room."""
QUOTA_STEEPNESS: Final = 2


class Offer(NamedTuple):
    """What scoring reads of a candidate. ``is_open``: it, or its provider, may take this conversation's turns."""

    cache: CacheKey
    units: Units
    limits: RateLimits
    output_tokens: int
    is_open: bool
    failure_probability: float = 0.0
    billed_share: float = 0.0


Column = tuple[float, float, float, float]
"""Of one provider, in USD: what a token costs uncached and what it saves cached, what an answer costs; and the chance
that a cache lives until the next turn."""


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
    warm = [beliefs.expected(offer.cache, prompt, now) for offer in offers]
    costs = [
        offer.units.cost_pico(input_tokens, hit.cached_tokens, offer.output_tokens)
        for offer, hit in zip(offers, warm, strict=True)
    ]
    outlook = beliefs.outlook(turn, input_tokens, tenant=tenant, family=prompt.family)
    futures = _futures(offers, outlook, input_tokens, beliefs, now)
    chance = outlook.chances[0]
    found = []
    for index, offer in enumerate(offers):
        hit, cost_pico = warm[index], costs[index]
        cost = cost_pico / PICO_PER_USD
        failure_usd = 0.0
        if offer.failure_probability:
            dearer = _dearer_pico(offers, costs, index) / PICO_PER_USD
            failure_usd = offer.failure_probability * (offer.billed_share * cost + terms.failure_usd + dearer)
        utilisation = quota_usd = 0.0
        if not offer.limits.are_none:
            utilisation = beliefs.utilisation(offer.cache[:2], offer.limits, now)
            quota_usd = _quota_usd(offer, utilisation, input_tokens)
        future_usd = futures[index]
        score = Score(
            matched_tokens=hit.matched_tokens,
            matched_age_seconds=hit.matched_age,
            hit_probability=hit.hit_probability,
            expected_cached_tokens=hit.cached_tokens,
            request_usd=cost,
            failure_probability=offer.failure_probability,
            failure_usd=failure_usd,
            next_turn_probability=chance,
            future_usd=future_usd,
            utilisation=utilisation,
            quota_usd=quota_usd,
            total_usd=cost + failure_usd + future_usd + quota_usd,
        )
        found.append(Scored(score, cost_pico))
    return found


def _dearer_pico(offers: Sequence[Offer], costs: Sequence[int], index: int) -> int:
    """What the cheapest other one that is open costs more than this one; never less: a failure saves nothing."""
    others = [cost for place, cost in enumerate(costs) if place != index and offers[place].is_open]
    return max(0, min(others) - costs[index]) if others else 0


def _quota_usd(offer: Offer, utilisation: float, input_tokens: int) -> float:
    """The last slice of a quota is kept for prompts that are cached there; equal accounts are balanced by it."""
    if utilisation <= QUOTA_FROM:
        return 0.0
    pressure = (min(1.0, utilisation) - QUOTA_FROM) / (1 - QUOTA_FROM)
    tokens = input_tokens + offer.output_tokens
    return float(offer.units.uncached * tokens * pressure**QUOTA_STEEPNESS / PICO_PER_USD)


def _futures(offers: Sequence[Offer], outlook: Outlook, input_tokens: int, beliefs: Beliefs, now: float) -> list[float]:
    """By offer: what the further turns cost if this account holds the cache after this one; the same for all accounts
    of a provider.

    When the next turn comes it is known whether the cache lived: if it did, the turn stays or goes to whoever is
    cheapest cold; if it did not, it goes there anyhow. Backwards from the last turn that is looked at.
    """
    places: dict[tuple[str, Units], int] = {}
    columns: list[Column] = []
    for offer in offers:
        provider, _, model = offer.cache
        if offer.is_open and (provider, offer.units) not in places:
            places[provider, offer.units] = len(columns)
            lives = sum(map(mul, outlook.gaps, beliefs.survival(provider, model, now)))
            uncached, cached, answer = offer.units
            saving, answer_usd = (uncached - cached) / PICO_PER_USD, answer * offer.output_tokens / PICO_PER_USD
            columns.append((uncached / PICO_PER_USD, saving, answer_usd, lives))
    futures = look_ahead(columns, outlook, input_tokens)
    return [futures[places.get((offer.cache[0], offer.units), -1)] for offer in offers]


def look_ahead(columns: Sequence[Column], outlook: Outlook, input_tokens: int) -> list[float]:
    """What the further turns cost, by who holds the cache; the last is for a cache that no turn may go to. Where there
    is nobody to go to, they cost nothing. Plain loops: this runs for every request."""
    futures = [0.0] * (len(columns) + 1)
    if not columns:
        return futures
    growth, chances = outlook.growth_tokens, outlook.chances
    last = len(chances) - 1
    held = input_tokens + TURNS_AHEAD * growth
    for ahead in range(TURNS_AHEAD - 1, -1, -1):
        chance = chances[ahead if ahead < last else last]
        prompt = held
        held -= growth
        anywhere = inf
        warm = []
        for place, (uncached, saving, answer, _) in enumerate(columns):
            cold = uncached * prompt + answer + futures[place]
            if cold < anywhere:
                anywhere = cold
            warm.append(cold - saving * held)
        for place, stays in enumerate(warm):
            gain = anywhere - stays
            futures[place] = chance * (anywhere - columns[place][3] * gain if gain > 0 else anywhere)
        futures[-1] = chance * anywhere
    return futures
