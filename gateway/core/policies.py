"""A policy is an order of candidates; all of them read the same plan, so that they can be compared on one past.

Only the first knows what a cache is worth. The others are what is done elsewhere, and what savings are told against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Policy
from gateway.core.continuation import Turn
from gateway.core.exchange import Candidate

Order = Callable[[Candidate], tuple[float | int | str, ...]]


def order_of(policy: Policy, beliefs: Beliefs, turn: Turn) -> Order:
    """What candidates are sorted by: the least goes first; where all is equal, names decide."""
    match policy:
        case Policy.EXPECTED_COST:
            return _expected_cost
        case Policy.LIST_PRICE:
            return _list_price
        case Policy.ROUND_ROBIN:
            return lambda each: (beliefs.last_sent_at((each.provider, each.account)), each.provider, each.account)
        case Policy.STICKY:
            holder = beliefs.served_by(turn)
            return lambda each: ((each.provider, each.account) != holder, *_list_price(each))
    assert_never(policy)


def _expected_cost(candidate: Candidate) -> tuple[float | int | str, ...]:
    """Among equals the less utilised account first: it has the most room for what follows."""
    score = candidate.score
    assert score is not None
    return (score.total_usd, score.utilisation, candidate.provider, candidate.account)


def _list_price(candidate: Candidate) -> tuple[float | int | str, ...]:
    """A token of input and one of output, and no cache."""
    assert candidate.price is not None
    tokens = candidate.price.input.pico_per_token + candidate.price.output.pico_per_token
    return (tokens, candidate.provider, candidate.account)
