"""What is listed is what a key may call, with prices and dates as they are; money is exact decimal text.

``GET /v1/models`` and the plan of ``POST /v1/route``, which is also kept for ``report explain``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from datetime import date, datetime
from typing import Final

import msgspec
from msgspec import Raw

from gateway.core.catalogue import Catalogue, Deployment, Model, last_end
from gateway.core.exchange import Candidate, Plan, Principal, Score
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price

OWNED_BY: Final = "kimi-gateway"
PLAN_HEADER_CHARACTERS_MAX: Final = 6_000
"""Clients take some kilobytes of one header; who was considered further down is in ``report explain``."""

Pairs = Set[tuple[str, str]]
"""Provider and public model."""


def render_models(catalogue: Catalogue, principal: Principal, *, at: datetime, routable: Pairs) -> bytes:
    """OpenAI's model list, by name. ``routable`` are the pairs that a plan would not exclude at this moment."""
    listed = (_model(catalogue, principal, model, at, routable) for _, model in sorted(catalogue.models.items()))
    return msgspec.json.encode({"object": "list", "data": [each for each in listed if each is not None]})


def render_model(
    catalogue: Catalogue, principal: Principal, name: str, *, at: datetime, routable: Pairs
) -> bytes | None:
    """One entry of the list, by name or alias; None where the key may not call it or nobody serves it."""
    model = catalogue.resolve(name)
    listed = None if model is None else _model(catalogue, principal, model, at, routable)
    return None if listed is None else msgspec.json.encode(listed)


def _model(
    catalogue: Catalogue, principal: Principal, model: Model, at: datetime, routable: Pairs
) -> dict[str, object] | None:
    if principal.models is not None and model.name not in principal.models:
        return None
    deployments = [
        deployment
        for card, deployment in catalogue.deployments(model.name)
        if principal.providers is None or card.name in principal.providers
    ]
    if not deployments:
        return None
    open_ones = [each for each in deployments if (each.provider, model.name) in routable]
    counted = open_ones or deployments
    prices = [catalogue.prices.in_force(each.provider, model.name, at) for each in counted]
    return {
        "id": model.name,
        "object": "model",
        "created": _created(catalogue, model.name),
        "owned_by": OWNED_BY,
        "aliases": list(model.aliases),
        "context_length": max(each.context for each in counted),
        "max_output": max(each.max_output for each in counted),
        "default_max_output": model.default_max_output,
        "capabilities": sorted(frozenset().union(*(each.capabilities for each in counted))),
        "pricing": _pricing([price for price in prices if price is not None]),
        "lifecycle": {
            "routable": bool(open_ones),
            "successor": model.successor,
            "on_retired": model.on_retired.value,
            "retires_on": _day(last_end(deployments, at.date())),
            "retirement_reported": _dates((each.provider, each.retirement_reported) for each in deployments),
            "available_from": _dates((each.provider, each.available_from) for each in deployments),
            "available_until": _dates((each.provider, each.available_until) for each in deployments),
        },
        "providers": [_provider(catalogue, each, at, is_routable=each in open_ones) for each in deployments],
    }


def _created(catalogue: Catalogue, model: str) -> int:
    """When the model was first priced here, in seconds since 1970; 0 if it never was."""
    starts = [row.effective_from for row in catalogue.prices.rows() if row.model == model]
    return int(min(starts).timestamp()) if starts else 0


def _pricing(prices: list[Price]) -> dict[str, str] | None:
    """The lowest and the highest price in USD per 1,000,000 tokens, or None where nobody has one."""
    if not prices:
        return None
    spans: dict[str, list[UnitPrice]] = {
        "prompt": [price.input for price in prices],
        "cached_prompt": [price.cached_input or price.input for price in prices],
        "completion": [price.output for price in prices],
    }
    return {
        f"{name}_{end}": str(extreme(span))
        for name, span in spans.items()
        for end, extreme in (("from", min), ("to", max))
    }


def _day(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _dates(dates: Iterable[tuple[str, date | None]]) -> dict[str, str]:
    return {provider: day.isoformat() for provider, day in dates if day is not None}


def _provider(catalogue: Catalogue, deployment: Deployment, at: datetime, *, is_routable: bool) -> dict[str, object]:
    price = catalogue.prices.in_force(deployment.provider, deployment.model, at)
    return {
        "provider": deployment.provider,
        "upstream_model": deployment.upstream,
        "routable": is_routable,
        "stage": deployment.stage(at.date()).value,
        "context_length": deployment.context,
        "max_output": deployment.max_output,
        "capabilities": sorted(deployment.capabilities),
        "price_id": None if price is None else price.price_id,
        "pricing": None
        if price is None
        else {
            "prompt": str(price.input),
            "cached_prompt": None if price.cached_input is None else str(price.cached_input),
            "completion": str(price.output),
        },
    }


def render_route(plan: Plan) -> bytes:
    """A plan as JSON: candidates as they would be tried, excluded ones last; costs are exact numbers of USD."""
    return msgspec.json.encode(
        {
            "model": plan.model,
            "input_tokens_estimate": plan.input_tokens_estimate,
            "output_tokens_estimate": plan.output_tokens_estimate,
            "made_at": plan.made_at,
            "policy": plan.policy.value,
            "turn": plan.turn.number,
            "candidates": [_candidate(each) for each in plan.candidates],
        }
    )


def render_plan_header(plan: Plan) -> str:
    """The same on one line of ASCII, as a header takes it: the candidates that fit, best first."""
    parts: list[str] = []
    left = PLAN_HEADER_CHARACTERS_MAX
    for each in plan.candidates:
        about: dict[str, object] = {"provider": each.provider, "account": each.account, "excluded": each.excluded}
        about |= {} if each.score is None else _score(each.score)
        part = json.dumps({name: value for name, value in about.items() if value is not None}, separators=(",", ":"))
        left -= len(part) + 1
        if left < 0:
            break
        parts.append(part)
    return f'{{"policy":"{plan.policy.value}","turn":{plan.turn.number},"candidates":[{",".join(parts)}]}}'


def _candidate(candidate: Candidate) -> dict[str, object]:
    cost = candidate.expected_cost
    return {
        "provider": candidate.provider,
        "account": candidate.account,
        "upstream_model": candidate.deployment.upstream,
        "expected_cost_usd": None if cost is None else Raw(str(cost).encode()),
        "expected_cached_tokens": candidate.expected_cached_tokens,
        "score": None if candidate.score is None else _score(candidate.score),
        "state": candidate.state.value,
        "excluded": candidate.excluded,
        "price_id": None if candidate.price is None else candidate.price.price_id,
        "output_limit": candidate.output_limit,
        "retry_at": candidate.retry_at,
    }


def _score(score: Score) -> dict[str, float]:
    """Every number that went into the choice; what is smaller than a nano-dollar is noise."""
    return {name: round(value, 9) for name, value in msgspec.structs.asdict(score).items()}
