"""What a request may use is held before anything is bought: limits, every budget it falls under, and an account's room.

All of it is taken in one step or nothing is. A limit or a budget without room is a refusal that explains itself; a
provider account without room is waited for, in turn and for a bounded while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final, assert_never

import msgspec

from gateway.core.allowance import (
    AccountsFull,
    BudgetClaim,
    Demand,
    Exceeded,
    Granted,
    Limited,
    Unknowable,
)
from gateway.core.budget import Budget, day_of, window_of_day
from gateway.core.estimate import input_tokens_max, largest_cost, output_limit_affordable
from gateway.core.exchange import NOTHING_RESERVED, Admitted, Candidate, Principal, Reservation
from gateway.core.limits import LimitKind, RateLimits
from gateway.core.money import ZERO, Money
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.pipeline.ports import Allowances
from gateway.pipeline.turns import WAIT_SECONDS_MAX, QueueFullError, Ticket, Turns

CLAMPED_TOKENS_MIN: Final = 256
"""A budget that cannot bear an answer of so many tokens is exceeded, and does not shorten it further."""
AGAIN_SECONDS_MAX: Final = 1.0
"""Somebody asks again at least this often: other workers' requests end unseen."""
_NO_ROOM: Final = RateLimits(scope="account:", name="", rpm=0)
"""An account that never has room: who asks for it learns what else stands in the way, and takes nothing."""
FULL_WORDS: Final = {
    LimitKind.REQUESTS: "its requests per minute are used up",
    LimitKind.TOKENS: "its tokens per minute are used up",
    LimitKind.CONCURRENCY: "as many requests are under way as it takes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A demand as it is at this moment, and the candidates that its accounts stand for, in the same order. ``wants``
    are the accounts that will do: one that could never have room for it is not kept from others. ``is_choice``: it
    waits though others have room; how long, whoever asks sees to."""

    demand: Demand
    candidates: tuple[Candidate, ...]
    wants: frozenset[str]
    is_choice: bool = False


def demand_for(
    request_id: str, principal: Principal, admitted: Admitted, candidates: Sequence[Candidate], now: datetime
) -> Demand:
    """What is asked for on behalf of a request that one of these candidates will serve: the dearest one's largest
    cost, the estimated input and the longest output in tokens, and room at an account."""
    output_limit = max([candidate.output_limit for candidate in candidates])
    amount = amount_min = ZERO
    claims: tuple[BudgetClaim, ...] = ()
    if principal.budgets:
        amount, amount_min = dearest(admitted, candidates)
        claims = _claims(principal.budgets, day_of(now, principal.time_zone))
    accounts = tuple([candidate.limits for candidate in candidates])
    return Demand(
        hold_id=request_id,
        tokens=admitted.input_tokens + output_limit * admitted.request.n,
        amount=amount,
        amount_min=amount_min,
        limits=principal.limits,
        budgets=claims,
        accounts=() if all(limits.are_none for limits in accounts) else accounts,
    )


def dearest(admitted: Admitted, candidates: Sequence[Candidate]) -> tuple[Money, Money]:
    """What the request may cost at the most, whichever of the candidates answers; and what it may cost with an answer
    that is as short as a budget may make it."""
    request = admitted.request
    input_tokens, longest, least = input_tokens_max(request.input_bytes), 0, 0
    for candidate in candidates:
        price, limit = candidate.price, candidate.output_limit
        if price is not None:
            fixed = largest_cost(price, input_tokens=input_tokens, output_limit=0, cache_ttl=request.cache_ttl).pico
            each = price.output.pico_per_token * request.n
            longest = max(longest, fixed + each * limit)
            least = max(least, fixed + each * min(limit, CLAMPED_TOKENS_MIN))
    return Money(longest), Money(least)


def _claims(budgets: tuple[Budget, ...], day: date) -> tuple[BudgetClaim, ...]:
    """The budgets in their windows of that day. A key's budgets are the same object as long as they are known, and
    so are the claims: each request would make them anew."""
    known = _CLAIMS.get(id(budgets))
    if known is not None and known[0] is budgets and known[1] == day:
        return known[2]
    windows = [window_of_day(each.scope, each.period, day, each.time_zone) for each in budgets]
    claims = tuple(map(BudgetClaim, budgets, windows))
    if len(_CLAIMS) >= _CLAIMS_MAX:
        _CLAIMS.clear()
    _CLAIMS[id(budgets)] = (budgets, day, claims)
    return claims


_CLAIMS_MAX: Final = 10_000
_CLAIMS: Final[dict[int, tuple[tuple[Budget, ...], date, tuple[BudgetClaim, ...]]]] = {}
"""By identity, which nobody else can have while the budgets are kept here."""


def is_needed(demand: Demand) -> bool:
    """Whether anything limits this request at all."""
    return bool(demand.limits or demand.budgets or demand.accounts)


async def reserve(
    asking: Callable[[], Asking],
    admitted: Admitted,
    principal: Principal,
    allowances: Allowances,
    turns: Turns,
) -> tuple[Reservation, Candidate]:
    """The hold, and the candidate whose account has room; waits for one if it must. ``asking`` is asked anew before
    each try and raises RefusedError where nobody could serve the request any more. Raises RefusedError."""
    now = asking()
    if not is_needed(now.demand):
        return NOTHING_RESERVED, now.candidates[0]
    waiting = _Waiting(turns, principal.key_id)
    now = _behind_others(now, turns)
    try:
        while True:
            verdict = await allowances.take(now.demand)
            match verdict:
                case Granted():
                    waiting.is_served = True
                    return _reservation(verdict, now, admitted), now.candidates[verdict.account or 0]
                case AccountsFull() if not now.wants:
                    raise RefusedError(_too_large(now))
                case AccountsFull():
                    await waiting.turn(now, verdict)
                    now = asking()
                case Limited():
                    raise RefusedError(_limited(verdict))
                case Exceeded():
                    raise RefusedError(_exceeded(verdict))
                case Unknowable():
                    raise RefusedError(_unknowable(verdict.budget))
                case _:
                    assert_never(verdict)
    finally:
        waiting.end()


def _behind_others(now: Asking, turns: Turns) -> Asking:
    """The same without the accounts that others wait for already: nobody overtakes, and nobody waits for an account
    while another one has room. Limits and budgets refuse at once all the same."""
    demand = now.demand
    free = [place for place, limits in enumerate(demand.accounts) if not turns.is_wanted(limits.scope)]
    if len(free) == len(demand.accounts):
        return now
    accounts = tuple(demand.accounts[place] for place in free) or (_NO_ROOM,)
    candidates = tuple(now.candidates[place] for place in free)
    return replace(now, demand=msgspec.structs.replace(demand, accounts=accounts), candidates=candidates)


class _Waiting:
    """One request's waiting, from its first turn to its deadline."""

    def __init__(self, turns: Turns, key_id: str) -> None:
        self._turns = turns
        self._key_id = key_id
        self._ticket: Ticket | None = None
        self._deadline = asyncio.get_running_loop().time() + WAIT_SECONDS_MAX
        self.is_served = False

    async def turn(self, now: Asking, full: AccountsFull) -> None:
        """Waits for the next turn. Raises RefusedError when the queue is full or the deadline has passed."""
        if self._ticket is None:
            self._ticket = Ticket(self._key_id, now.wants)
        if now.is_choice:
            self._deadline = asyncio.get_running_loop().time() + WAIT_SECONDS_MAX
        again_after = min(max(full.retry_after_ms / 1000, 0.001), AGAIN_SECONDS_MAX)
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._turns.wait(self._ticket, again_after=again_after)
        except QueueFullError:
            what = "Too many requests wait for a provider account already."
            raise RefusedError(_overloaded(what, now, full)) from None
        except TimeoutError:
            raise RefusedError(_overloaded("No provider account has had room in time.", now, full)) from None

    def end(self) -> None:
        """Gives the place up."""
        if self._ticket is not None:
            self._turns.leave(self._ticket, is_served=self.is_served)


def _reservation(granted: Granted, now: Asking, admitted: Admitted) -> Reservation:
    demand, request = now.demand, admitted.request
    shortened = None
    if granted.clamped_by is not None:
        shortened = min(
            output_limit_affordable(
                candidate.price,
                granted.amount,
                input_tokens=input_tokens_max(request.input_bytes),
                n=request.n,
                cache_ttl=request.cache_ttl,
            )
            for candidate in now.candidates
            if candidate.price is not None
        )
    return Reservation(
        is_held=True,
        amount=granted.amount if demand.budgets else None,
        output_limit_max=shortened,
        clamped_by=granted.clamped_by,
        rates=granted.rates,
    )


# --- refusals --------------------------------------------------------------------------------------------------------


def _limited(verdict: Limited) -> Refusal:
    name, wait = verdict.limits.name, -(-verdict.retry_after_ms // 1000)
    match verdict.kind:
        case LimitKind.REQUESTS:
            message = f"The {name} may make {verdict.limit:,} requests per minute and has made them. Wait {wait} s."
        case LimitKind.TOKENS if verdict.needed > verdict.limit:
            message = (
                f"The {name} may use {verdict.limit:,} tokens per minute; this request may use {verdict.needed:,}, "
                "input and output limit together, and will never fit. Lower max_tokens."
            )
        case LimitKind.TOKENS:
            message = (
                f"The {name} may use {verdict.limit:,} tokens per minute; this request may use {verdict.needed:,}, "
                f"input and output limit together. Wait {wait} s or lower max_tokens."
            )
        case LimitKind.CONCURRENCY:
            message = f"The {name} has {verdict.limit:,} requests under way, as many as it may. Wait for one to end."
        case _:
            assert_never(verdict.kind)
    return Refusal(
        code=RefusalCode.RATE_LIMIT_EXCEEDED,
        message=message,
        retry_after=verdict.retry_after_ms / 1000,
        rates=verdict.rates,
    )


def _exceeded(verdict: Exceeded) -> Refusal:
    budget, window = verdict.claim
    until = "" if window.ends_at is None else f" It is reset at {window.ends_at:%Y-%m-%dT%H:%M:%SZ}."
    return Refusal(
        code=RefusalCode.BUDGET_EXCEEDED,
        message=(
            f"The budget of the {budget.name}, ${budget.limit} {PERIOD_WORDS[budget.period.value]}, has "
            f"${verdict.available} available; this request needs ${verdict.needed}.{until} "
            "Lower max_tokens, or have the budget raised."
        ),
    )


PERIOD_WORDS: Final = {"day": "a day", "week": "a week", "month": "a month", "total": "in total"}


def _unknowable(budget: Budget) -> Refusal:
    return Refusal(
        code=RefusalCode.METERING_UNAVAILABLE,
        message=f"What the {budget.name} has spent of its budget is not known just now, so nothing is bought. "
        "Try again shortly.",
        retry_after=2,
    )


def _too_large(now: Asking) -> Refusal:
    """No waiting would help."""
    return Refusal(
        code=RefusalCode.NO_PROVIDER_AVAILABLE,
        message=f"This request may use {now.demand.tokens:,} tokens, input and output limit together, and no provider "
        "account takes so many in a minute. Lower max_tokens or shorten the messages.",
        retry_after=60,
    )


def _overloaded(what: str, now: Asking, full: AccountsFull) -> Refusal:
    told = zip(now.candidates, full.kinds, strict=False)  # nobody to tell of where it only waited behind others
    reasons = "; ".join(f"{each.provider} ({each.account}): {FULL_WORDS[kind]}" for each, kind in told)
    return Refusal(
        code=RefusalCode.OVERLOADED,
        message=f"{what}{f' {reasons}.' if reasons else ''} Send the request again.",
        retry_after=full.retry_after_ms / 1000 if reasons else AGAIN_SECONDS_MAX,
    )
