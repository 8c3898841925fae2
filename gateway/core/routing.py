"""``plan`` is a function: same inputs, same plan. Every rejected candidate has a reason; ties break by name (law L10).

A candidate is one account of one provider that serves the model. The cheapest by expected cost goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from gateway.core.catalogue import Account, Catalogue, Deployment, Model, ProviderCard
from gateway.core.estimate import AnswerLength, expected_cost
from gateway.core.exchange import Candidate, CandidateState, Exclusion, InferenceRequest, Plan, Principal, Sort
from gateway.core.health import WELL, WHY, Health, Subject
from gateway.core.limits import limits_of_account
from gateway.core.pricing import Price

HealthOf = Callable[[Subject], Health]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast an account has been answering: seconds to the first chunk, output tokens per second."""

    first_chunk_seconds: float
    tokens_per_second: float


NO_FALLBACKS: Final = "provider.allow_fallbacks is false"
UNKNOWN_PACE: Final = Pace(first_chunk_seconds=0.0, tokens_per_second=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a plan depends on besides the request: configuration, health, pace and expectations at one moment."""

    catalogue: Catalogue
    health_of: HealthOf
    usable_accounts: frozenset[tuple[str, str]]
    answer_length: AnswerLength
    pace: Mapping[tuple[str, str], Pace]
    now: datetime


def plan(
    request: InferenceRequest,
    principal: Principal,
    circumstances: Circumstances,
    *,
    model: Model,
    input_tokens: int,
    output_limit_of: Callable[[Deployment], int],
) -> Plan:
    """All candidates: the routable ones in the order they would be tried, then the excluded, by name."""
    seen = [
        _consider(request, principal, circumstances, card, deployment, account, input_tokens, output_limit_of)
        for card, deployment in circumstances.catalogue.deployments(model.name)
        for account in card.accounts
    ]
    routable = [candidate for candidate in seen if candidate.excluded is None]
    if not routable:
        seen = [_last_resort(candidate) for candidate in seen]
        routable = [candidate for candidate in seen if candidate.excluded is None]
    routable.sort(key=_order_key(request, circumstances))
    routable, too_far = _without_fallbacks(request, routable)
    excluded = [candidate for candidate in seen if candidate.excluded is not None] + too_far
    excluded.sort(key=_name)
    return Plan(
        model=model.name,
        input_tokens_estimate=input_tokens,
        output_tokens_estimate=circumstances.answer_length.expected(model.default_max_output),
        candidates=(*routable, *excluded),
        made_at=circumstances.now,
    )


def _name(candidate: Candidate) -> tuple[str, str]:
    return (candidate.provider, candidate.account)


def _consider(
    request: InferenceRequest,
    principal: Principal,
    circumstances: Circumstances,
    card: ProviderCard,
    deployment: Deployment,
    account: Account,
    input_tokens: int,
    output_limit_of: Callable[[Deployment], int],
) -> Candidate:
    """One candidate with its price, expected cost and, where something speaks against it, the first reason."""
    price = circumstances.catalogue.prices.in_force(card.name, deployment.model, circumstances.now)
    output_limit = output_limit_of(deployment)
    candidate = Candidate(
        provider=card.name,
        account=account.name,
        deployment=deployment,
        price=price,
        expected_cost=None
        if price is None
        else expected_cost(
            price,
            input_tokens=input_tokens,
            cached_tokens=0,
            output_tokens=circumstances.answer_length.expected(output_limit) * request.n,
            cache_ttl=request.cache_ttl,
        ),
        output_limit=output_limit,
        limits=limits_of_account(account),
    )
    for reason in (
        _barred_by_rights(principal, card),
        _barred_by_preference(request, card, price),
        _barred_by_card(circumstances, deployment, account, price),
        _barred_by_request(request, deployment, input_tokens),
    ):
        if reason is not None:
            kind, text = reason
            return replace(candidate, excluded=text, exclusion=kind, state=CandidateState.UNROUTABLE)
    return _with_health(candidate, circumstances)


Barred = tuple[Exclusion, str] | None


def _barred_by_rights(principal: Principal, card: ProviderCard) -> Barred:
    if principal.providers is not None and card.name not in principal.providers:
        return (Exclusion.RIGHTS, f"this key may not use {card.name}")
    return None


def _barred_by_preference(request: InferenceRequest, card: ProviderCard, price: Price | None) -> Barred:
    wanted = request.preferences
    name = card.name.casefold()
    if wanted.only is not None and name not in wanted.only:
        return (Exclusion.PREFERENCE, "not in provider.only")
    if name in wanted.ignore:
        return (Exclusion.PREFERENCE, "in provider.ignore")
    if wanted.order and not wanted.allow_fallbacks and name not in {each.casefold() for each in wanted.order}:
        return (Exclusion.PREFERENCE, NO_FALLBACKS)
    if price is not None and wanted.max_prompt is not None and price.input > wanted.max_prompt:
        return (Exclusion.PREFERENCE, f"input costs ${price.input} per 1M tokens, above provider.max_price.prompt")
    if price is not None and wanted.max_completion is not None and price.output > wanted.max_completion:
        return (
            Exclusion.PREFERENCE,
            f"output costs ${price.output} per 1M tokens, above provider.max_price.completion",
        )
    return None


def _barred_by_card(
    circumstances: Circumstances, deployment: Deployment, account: Account, price: Price | None
) -> Barred:
    today = circumstances.now.date()
    if not deployment.is_available(today):
        if deployment.available_until is not None and today >= deployment.available_until:
            return (Exclusion.RETIRED, f"retired here on {deployment.available_until.isoformat()}")
        return (Exclusion.RETIRED, f"not available here before {deployment.available_from}")
    if price is None:
        return (Exclusion.UNPRICED, "no price is configured; add a row to prices.toml")
    if (account.provider, account.name) not in circumstances.usable_accounts:
        return (Exclusion.NO_CREDENTIAL, "the account has no credential; set the variable or file its api_key names")
    return None


def _barred_by_request(request: InferenceRequest, deployment: Deployment, input_tokens: int) -> Barred:
    lacking = sorted(request.needs - deployment.capabilities)
    if lacking:
        return (Exclusion.CAPABILITY, f"does not support {', '.join(lacking)} for this model")
    if request.output_limit is not None and request.output_limit > deployment.max_output:
        return (Exclusion.CAPABILITY, f"answers at most {deployment.max_output} tokens")
    if input_tokens * 95 // 100 + (request.output_limit or 1) > deployment.context:
        return (Exclusion.CONTEXT, f"its context is {deployment.context} tokens")
    return None


def _with_health(candidate: Candidate, circumstances: Circumstances) -> Candidate:
    """Out if its account, its model here or its circuit is out; probing if one of them waits for proof."""
    now = circumstances.now
    probing = False
    for subject in subjects(candidate):
        health = circumstances.health_of(subject)
        if health is WELL:
            continue
        if health.is_out(now):
            return _out(candidate, subject, health)
        if health.awaits_probe(now):
            if health.probe_in_flight(now):
                return _out(candidate, subject, health, probe_in_flight=True)
            probing = True
    return replace(candidate, state=CandidateState.PROBING) if probing else candidate


def subjects(candidate: Candidate) -> tuple[Subject, Subject, Subject]:
    """The three that must be well for a candidate to be routed to."""
    provider, account, model = candidate.provider, candidate.account, candidate.deployment.model
    return (Subject(provider, account, None), Subject(provider, None, model), Subject(provider, account, model))


def _out(candidate: Candidate, subject: Subject, health: Health, *, probe_in_flight: bool = False) -> Candidate:
    assert health.kind is not None
    assert health.out_until is not None
    is_circuit = subject.account is not None and subject.model is not None
    is_gone = subject.account is None
    until = health.probe_until if probe_in_flight and health.probe_until is not None else health.out_until
    how = "a probe is under way" if probe_in_flight else health.until_words
    return replace(
        candidate,
        state=CandidateState.EJECTED if is_circuit or is_gone else CandidateState.COOLING,
        exclusion=Exclusion.GONE if is_gone else Exclusion.EJECTED if is_circuit else Exclusion.COOLING,
        excluded=f"{WHY[health.kind]}; {how}",
        retry_at=until,
    )


def _last_resort(candidate: Candidate) -> Candidate:
    """When nothing else is left, an open circuit is tried all the same: never eject the last one."""
    if candidate.exclusion is not Exclusion.EJECTED:
        return candidate
    return replace(candidate, excluded=None, exclusion=None)


def _order_key(
    request: InferenceRequest, circumstances: Circumstances
) -> Callable[[Candidate], tuple[float | int | str, ...]]:
    wanted = request.preferences
    rank = {name.casefold(): place for place, name in enumerate(wanted.order)}

    def key(candidate: Candidate) -> tuple[float | int | str, ...]:
        assert candidate.expected_cost is not None
        pace = circumstances.pace.get((candidate.provider, candidate.account), UNKNOWN_PACE)
        speed = 0.0
        if wanted.sort is Sort.LATENCY:
            speed = pace.first_chunk_seconds
        elif wanted.sort is Sort.THROUGHPUT:
            speed = -pace.tokens_per_second
        place = rank.get(candidate.provider.casefold(), len(rank))
        return (place, speed, candidate.expected_cost.pico, candidate.provider, candidate.account)

    return key


def _without_fallbacks(request: InferenceRequest, routable: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """With ``allow_fallbacks: false`` and no ``order`` only the first choice's provider may be tried."""
    if request.preferences.allow_fallbacks or request.preferences.order or not routable:
        return routable, []
    first = routable[0].provider
    kept = [candidate for candidate in routable if candidate.provider == first]
    left = [candidate for candidate in routable if candidate.provider != first]
    return kept, [
        replace(candidate, excluded=NO_FALLBACKS, exclusion=Exclusion.PREFERENCE, state=CandidateState.UNROUTABLE)
        for candidate in left
    ]


def retry_after_seconds(plan_made: Plan) -> float:
    """When the first candidate that is out for a while comes back, in seconds from the plan; at least one second."""
    waits = [
        (candidate.retry_at - plan_made.made_at) / timedelta(seconds=1)
        for candidate in plan_made.candidates
        if candidate.retry_at is not None
    ]
    return max(1.0, min(waits, default=30.0))
