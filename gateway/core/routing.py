"""``plan`` is a function: same inputs, same plan. Every rejected candidate has a reason; ties break by name (law L10).

A candidate is one account of one provider that serves the model. The least score goes first (``core.scoring``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Account, Catalogue, Deployment, Model, Policy, ProviderCard
from gateway.core.estimate import OUTPUT_LIMIT_MAX, AnswerLength
from gateway.core.exchange import (
    NO_PREFERENCES,
    Candidate,
    CandidateState,
    Exclusion,
    InferenceRequest,
    Plan,
    Principal,
    Sort,
)
from gateway.core.health import WHY, Health, Subject, failure_probability
from gateway.core.load import UNKNOWN_PACE
from gateway.core.money import Money
from gateway.core.policies import order_of
from gateway.core.prefix import Prompt, Turn
from gateway.core.pricing import Price, Units
from gateway.core.scoring import Offer, scored
from gateway.core.validity import Validity

HealthOf = Callable[[Subject], Health]

NO_CREDENTIAL: Final = "the account has no credential; set the variable or file its api_key names"
NO_FALLBACKS: Final = "provider.allow_fallbacks is false"
SOON: Final = timedelta(minutes=5)
"""Who is back by then may take a conversation's next turn."""


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan depends on besides the request: configuration, health, beliefs and expectations at one moment."""

    catalogue: Catalogue
    health_of: HealthOf
    usable_accounts: frozenset[tuple[str, str]]
    answer_length: AnswerLength
    now: datetime
    beliefs: Beliefs = msgspec.field(default_factory=Beliefs)
    validity: Validity = msgspec.field(default_factory=Validity)
    policy: Policy = Policy.EXPECTED_COST


class _Seat(NamedTuple):
    """One account of a provider that serves the model, as this request finds it."""

    card: ProviderCard
    deployment: Deployment
    account: Account
    price: Price | None
    output_limit: int
    bar: _Bar | None
    state: CandidateState
    circuit: Health
    units: Units | None


class _Bar(NamedTuple):
    """What speaks against a candidate first, in kind and in words, and until when if that is known."""

    kind: Exclusion
    text: str
    until: datetime | None = None


def plan(
    request: InferenceRequest,
    principal: Principal,
    circumstances: Circumstances,
    *,
    model: Model,
    prompt: Prompt,
    turn: Turn,
    output_limit_of: Callable[[Deployment], int],
) -> Plan:
    """All candidates: the routable ones in the order they would be tried, then the excluded, by name."""
    seats: list[_Seat] = []
    for card, deployment in circumstances.catalogue.deployments(model.name):
        seats += _seats(request, principal, circumstances, card, deployment, prompt, output_limit_of(deployment))
    for last_resort in (Exclusion.INVALID_TOOL_CALLS, Exclusion.EJECTED):
        if not any(seat.bar is None for seat in seats):
            seats = [_readmitted(seat, last_resort) for seat in seats]
    seen = _candidates(request, principal, circumstances, seats, prompt, turn)
    routable = [candidate for candidate in seen if candidate.excluded is None]
    routable.sort(key=_order_key(request, circumstances, turn))
    routable, too_far = _without_fallbacks(request, routable)
    excluded = [candidate for candidate in seen if candidate.excluded is not None] + too_far
    excluded.sort(key=_name)
    return Plan(
        model=model.name,
        input_tokens_estimate=prompt.input_tokens,
        output_tokens_estimate=circumstances.answer_length.expected(model.default_max_output),
        candidates=(*routable, *excluded),
        made_at=circumstances.now,
        turn=turn,
        policy=circumstances.policy,
    )


def _name(candidate: Candidate) -> tuple[str, str]:
    return (candidate.provider, candidate.account)


def _seats(
    request: InferenceRequest,
    principal: Principal,
    circumstances: Circumstances,
    card: ProviderCard,
    deployment: Deployment,
    prompt: Prompt,
    output_limit: int,
) -> Iterator[_Seat]:
    """The accounts of one provider, each with what speaks against it: first what is true of all of them."""
    price = circumstances.catalogue.prices.in_force(card.name, deployment.model, circumstances.now)
    units = None if price is None else price.units(cache_ttl=request.cache_ttl)
    bar = (
        _barred_by_rights(principal, card)
        or _barred_by_preference(request, card, price)
        or _barred_by_card(circumstances, deployment, price)
    )
    unfit = None if bar is not None else _barred_by_request(request, deployment, prompt.input_tokens)
    invalid = _barred_by_validity(request, circumstances, deployment)
    for account in card.accounts:
        own, state = bar, CandidateState.UNROUTABLE
        involved = _subjects(card.name, account.name, deployment.model)
        states = tuple(map(circumstances.health_of, involved))
        if own is None and (card.name, account.name) not in circumstances.usable_accounts:
            own = _Bar(Exclusion.NO_CREDENTIAL, NO_CREDENTIAL)
        own = own or unfit
        if own is None:
            own, state = _with_health(involved, states, circumstances.now)
            if own is None and invalid is not None:
                own, state = invalid, CandidateState.EJECTED
        yield _Seat(card, deployment, account, price, output_limit, own, state, states[2], units)


def _candidates(
    request: InferenceRequest,
    principal: Principal,
    circumstances: Circumstances,
    seats: Sequence[_Seat],
    prompt: Prompt,
    turn: Turn,
) -> list[Candidate]:
    """Every seat with its limits and, where it has a price, its score and expected cost."""
    beliefs, now = circumstances.beliefs, circumstances.now.timestamp()
    soon = circumstances.now + SOON
    answer_tokens = circumstances.answer_length.expected(OUTPUT_LIMIT_MAX)
    offers = []
    for seat in seats:
        if seat.units is None:
            continue
        key = (seat.card.name, seat.account.name, seat.deployment.model)
        is_open = seat.bar is None or (seat.bar.until is not None and seat.bar.until <= soon)
        output_tokens = min(seat.output_limit, answer_tokens) * request.n
        circuit = seat.circuit
        failing = failure_probability(circuit, circumstances.now) if circuit.failures else 0.0
        limits = seat.account.limits
        offers.append(Offer(key, seat.units, limits, output_tokens, is_open, failing, circuit.billed_share))
    terms, tenant = circumstances.catalogue.routing, principal.tenant
    scores = iter(scored(offers, prompt, turn, beliefs, tenant=tenant, terms=terms, now=now))
    found = []
    for seat in seats:
        score, cost_pico = (None, None) if seat.price is None else next(scores)
        bar = seat.bar
        found.append(
            Candidate(
                provider=seat.card.name,
                account=seat.account.name,
                deployment=seat.deployment,
                price=seat.price,
                expected_cost=None if cost_pico is None else Money(cost_pico),
                expected_cached_tokens=0 if score is None else score.expected_cached_tokens,
                state=seat.state,
                excluded=None if bar is None else bar.text,
                exclusion=None if bar is None else bar.kind,
                retry_at=None if bar is None else bar.until,
                output_limit=seat.output_limit,
                limits=seat.account.limits,
                score=score,
            )
        )
    return found


def _barred_by_rights(principal: Principal, card: ProviderCard) -> _Bar | None:
    if principal.providers is not None and card.name not in principal.providers:
        return _Bar(Exclusion.RIGHTS, f"this key may not use {card.name}")
    return None


def _barred_by_preference(request: InferenceRequest, card: ProviderCard, price: Price | None) -> _Bar | None:
    wanted = request.preferences
    if wanted is NO_PREFERENCES:
        return None
    name = card.name.casefold()
    if wanted.only is not None and name not in wanted.only:
        return _Bar(Exclusion.PREFERENCE, "not in provider.only")
    if name in wanted.ignore:
        return _Bar(Exclusion.PREFERENCE, "in provider.ignore")
    if wanted.order and not wanted.allow_fallbacks and name not in {each.casefold() for each in wanted.order}:
        return _Bar(Exclusion.PREFERENCE, NO_FALLBACKS)
    if price is not None and wanted.max_prompt is not None and price.input > wanted.max_prompt:
        return _Bar(Exclusion.PREFERENCE, f"input costs ${price.input} per 1M tokens, above provider.max_price.prompt")
    if price is not None and wanted.max_completion is not None and price.output > wanted.max_completion:
        return _Bar(
            Exclusion.PREFERENCE,
            f"output costs ${price.output} per 1M tokens, above provider.max_price.completion",
        )
    return None


def _barred_by_card(circumstances: Circumstances, deployment: Deployment, price: Price | None) -> _Bar | None:
    today = circumstances.now.date()
    if not deployment.is_available(today):
        if deployment.available_until is not None and today >= deployment.available_until:
            return _Bar(Exclusion.RETIRED, f"retired here on {deployment.available_until.isoformat()}")
        return _Bar(Exclusion.RETIRED, f"not available here before {deployment.available_from}")
    if price is None:
        return _Bar(Exclusion.UNPRICED, "no price is configured; add a row to prices.toml")
    return None


def _barred_by_request(request: InferenceRequest, deployment: Deployment, input_tokens: int) -> _Bar | None:
    if not request.needs <= deployment.capabilities:
        lacking = sorted(request.needs - deployment.capabilities)
        return _Bar(Exclusion.CAPABILITY, f"does not support {', '.join(lacking)} for this model")
    if request.output_limit is not None and request.output_limit > deployment.max_output:
        return _Bar(Exclusion.CAPABILITY, f"answers at most {deployment.max_output} tokens")
    if input_tokens * 95 // 100 + (request.output_limit or 1) > deployment.context:
        return _Bar(Exclusion.CONTEXT, f"its context is {deployment.context} tokens")
    return None


def _barred_by_validity(request: InferenceRequest, circumstances: Circumstances, deployment: Deployment) -> _Bar | None:
    """Where too few tool-call answers are right, requests with tools go elsewhere."""
    share_min = circumstances.catalogue.routing.min_tool_call_validity
    if not share_min or "tools" not in request.needs:
        return None
    provider, model, now = deployment.provider, deployment.model, circumstances.now.timestamp()
    if not circumstances.validity.is_below(provider, model, share_min, now):
        return None
    share = circumstances.validity.of(provider, model, now).valid_share or 0.0
    return _Bar(
        Exclusion.INVALID_TOOL_CALLS,
        f"{share:.1%} of its tool-call answers were right of late, below min_tool_call_validity {share_min:g}",
    )


def _with_health(
    involved: Sequence[Subject], states: Sequence[Health], now: datetime
) -> tuple[_Bar | None, CandidateState]:
    """Out if its account, its model here or its circuit is out; probing if one of them waits for proof."""
    state = CandidateState.HEALTHY
    for subject, health in zip(involved, states, strict=True):
        if health.out_until is None:
            continue
        if health.is_out(now):
            return _out(subject, health)
        if health.awaits_probe(now):
            if health.probe_in_flight(now):
                return _out(subject, health, probe_in_flight=True)
            state = CandidateState.PROBING
    return None, state


@lru_cache(maxsize=4_096)
def _subjects(provider: str, account: str, model: str) -> tuple[Subject, Subject, Subject]:
    return (Subject(provider, account, None), Subject(provider, None, model), Subject(provider, account, model))


def subjects(candidate: Candidate) -> tuple[Subject, Subject, Subject]:
    """The three that must be well for a candidate to be routed to."""
    return _subjects(candidate.provider, candidate.account, candidate.deployment.model)


def _out(subject: Subject, health: Health, *, probe_in_flight: bool = False) -> tuple[_Bar, CandidateState]:
    assert health.kind is not None
    assert health.out_until is not None
    is_circuit = subject.account is not None and subject.model is not None
    is_gone = subject.account is None
    until = health.probe_until if probe_in_flight and health.probe_until is not None else health.out_until
    how = "a probe is under way" if probe_in_flight else health.until_words
    kind = Exclusion.GONE if is_gone else Exclusion.EJECTED if is_circuit else Exclusion.COOLING
    state = CandidateState.EJECTED if is_circuit or is_gone else CandidateState.COOLING
    return _Bar(kind, f"{WHY[health.kind]}; {how}", until), state


def _readmitted(seat: _Seat, last_resort: Exclusion) -> _Seat:
    """When nothing else is left, what is out for this is tried all the same: never eject the last one."""
    if seat.bar is None or seat.bar.kind is not last_resort:
        return seat
    return seat._replace(bar=None)


def _order_key(
    request: InferenceRequest, circumstances: Circumstances, turn: Turn
) -> Callable[[Candidate], tuple[float | int | str, ...]]:
    """Preferred providers first, then what ``provider.sort`` names, then the policy's own order."""
    wanted = request.preferences
    policy = order_of(circumstances.policy, circumstances.beliefs, turn)
    if not wanted.order and wanted.sort is None:
        return policy
    rank = {name.casefold(): place for place, name in enumerate(wanted.order)}
    paces = circumstances.beliefs.pace

    def key(candidate: Candidate) -> tuple[float | int | str, ...]:
        assert candidate.expected_cost is not None
        pace = paces.get((candidate.provider, candidate.account), UNKNOWN_PACE)
        sorted_by: float = 0.0
        match wanted.sort:
            case Sort.LATENCY:
                sorted_by = pace.first_chunk_seconds
            case Sort.THROUGHPUT:
                sorted_by = -pace.tokens_per_second
            case Sort.PRICE:
                sorted_by = candidate.expected_cost.pico
            case None:
                pass
        return (rank.get(candidate.provider.casefold(), len(rank)), sorted_by, *policy(candidate))

    return key


def _without_fallbacks(request: InferenceRequest, routable: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """With ``allow_fallbacks: false`` and no ``order`` only the first choice's provider may be tried."""
    if request.preferences.allow_fallbacks or request.preferences.order or not routable:
        return routable, []
    first = routable[0].provider
    kept = [candidate for candidate in routable if candidate.provider == first]
    left = [candidate for candidate in routable if candidate.provider != first]
    return kept, [
        msgspec.structs.replace(
            candidate, excluded=NO_FALLBACKS, exclusion=Exclusion.PREFERENCE, state=CandidateState.UNROUTABLE
        )
        for candidate in left
    ]


def in_reserve(made: Plan, request: InferenceRequest) -> tuple[Candidate, ...]:
    """Those that only an open circuit keeps out: once all others have failed, they are better than nobody."""
    wanted = request.preferences
    firsts = {candidate.provider for candidate in made.routable}
    return tuple(
        candidate
        for candidate in made.candidates
        if candidate.exclusion is Exclusion.EJECTED
        and (wanted.allow_fallbacks or wanted.order or candidate.provider in firsts)
    )


def retry_after_seconds(plan_made: Plan) -> float:
    """When the first candidate that is out for a while comes back, in seconds from the plan; at least one second."""
    waits = [
        (candidate.retry_at - plan_made.made_at) / timedelta(seconds=1)
        for candidate in plan_made.candidates
        if candidate.retry_at is not None
    ]
    return max(1.0, min(waits, default=30.0))
