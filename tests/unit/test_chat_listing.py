"""The model list and the dry run show prices, dates and reasons as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

from gateway.core.catalogue import Account, Catalogue, Deployment, Model, ProviderCard
from gateway.core.exchange import Candidate, CandidateState, Plan, Principal, Score
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price, PriceTable
from gateway.surfaces.chat_completions import render_model, render_models, render_route

START = datetime(2025, 11, 6, tzinfo=UTC)
NOW = datetime(2026, 11, 22, tzinfo=UTC)
K2 = "kimi-k2-thinking"


def deployment(provider: str, model: str = K2, **more: object) -> Deployment:
    common: dict[str, object] = {"context": 262_144, "max_output": 65_536, "capabilities": frozenset({"tools"})}
    return Deployment(provider=provider, model=model, upstream=f"{provider}-{model}", **{**common, **more})  # type: ignore[arg-type]


def price(provider: str, prompt: str, completion: str, cached: str | None = None) -> Price:
    return Price(
        provider=provider,
        model=K2,
        effective_from=START,
        input=UnitPrice.from_usd_per_million(prompt),
        output=UnitPrice.from_usd_per_million(completion),
        cached_input=None if cached is None else UnitPrice.from_usd_per_million(cached),
    )


def card(name: str, *deployments: Deployment) -> ProviderCard:
    return ProviderCard(
        name=name,
        dialect=name,
        base_url=f"https://{name}.test/v1",
        accounts=(Account(provider=name, name="main"),),
        deployments={each.model: each for each in deployments},
    )


CATALOGUE = Catalogue(
    providers={
        "moonshot": card("moonshot", deployment("moonshot", retirement_reported=date(2026, 5, 25))),
        "evolink": card("evolink", deployment("evolink", max_output=131_072)),
        "free": card("free", deployment("free"), deployment("free", "unpriced")),
    },
    models={
        K2: Model(name=K2, aliases=("moonshotai/Kimi-K2-Thinking",), successor="kimi-k2.6"),
        "unpriced": Model(name="unpriced"),
        "unserved": Model(name="unserved"),
    },
    prices=PriceTable([price("moonshot", "0.6", "2.5", "0.15"), price("evolink", "0.556", "2.222", "0.139")]),
    digest="d",
    loaded_at=NOW,
    aliases={"moonshotai/Kimi-K2-Thinking": K2},
)
ANYONE = Principal(key_id="k", key_name="k")
ROUTABLE = {("moonshot", K2), ("evolink", K2)}


def listed(principal: Principal = ANYONE, routable: set[tuple[str, str]] = ROUTABLE) -> dict[str, dict[str, object]]:
    body = json.loads(render_models(CATALOGUE, principal, at=NOW, routable=routable))
    assert body["object"] == "list"
    return {each["id"]: each for each in body["data"]}


def test_an_entry() -> None:
    """OpenAI's members, then what a caller chooses by."""
    entry = listed()[K2]
    assert (entry["object"], entry["created"], entry["owned_by"]) == ("model", 1_762_387_200, "kimi-gateway")
    assert entry["aliases"] == ["moonshotai/Kimi-K2-Thinking"]
    assert (entry["context_length"], entry["max_output"]) == (262_144, 131_072)
    assert entry["pricing"] == {
        "prompt_from": "0.556",
        "prompt_to": "0.6",
        "cached_prompt_from": "0.139",
        "cached_prompt_to": "0.15",
        "completion_from": "2.222",
        "completion_to": "2.5",
    }
    assert entry["lifecycle"] == {
        "routable": True,
        "successor": "kimi-k2.6",
        "on_retired": "error",
        "retires_on": None,
        "retirement_reported": {"moonshot": "2026-05-25"},
        "available_from": {},
        "available_until": {},
    }


def test_a_provider_that_is_out_is_shown_as_such() -> None:
    """Its prices do not count into from and to."""
    entry = listed(routable={("moonshot", K2)})[K2]
    providers = entry["providers"]
    assert isinstance(providers, list)
    assert {each["provider"]: each["routable"] for each in providers} == {
        "evolink": False,
        "free": False,
        "moonshot": True,
    }
    pricing = entry["pricing"]
    assert isinstance(pricing, dict)
    assert (pricing["prompt_from"], pricing["prompt_to"]) == ("0.6", "0.6")


def test_a_model_that_is_going_says_when() -> None:
    """The day on which the last provider ends it, and where it is in its life at each."""
    going = {
        "moonshot": card("moonshot", deployment("moonshot", available_until=date(2026, 11, 22))),
        "evolink": card("evolink", deployment("evolink", available_until=date(2027, 1, 31))),
    }
    body = render_models(replace(CATALOGUE, providers=going), ANYONE, at=NOW, routable=ROUTABLE)
    (entry,) = json.loads(body)["data"]
    assert entry["lifecycle"]["retires_on"] == "2027-01-31"
    assert {each["provider"]: each["stage"] for each in entry["providers"]} == {
        "moonshot": "retired",
        "evolink": "retiring",
    }
    stages = {each["provider"]: each["stage"] for each in listed()[K2]["providers"]}  # type: ignore[attr-defined]
    assert stages == {"moonshot": "reported_retired", "evolink": "available", "free": "available"}


def test_what_nobody_can_be_asked_for_is_listed_honestly() -> None:
    """Unpriced is not free, and not routable."""
    entry = listed()["unpriced"]
    assert entry["pricing"] is None
    assert entry["created"] == 0
    assert entry["lifecycle"] == {
        "routable": False,
        "successor": None,
        "on_retired": "error",
        "retires_on": None,
        "retirement_reported": {},
        "available_from": {},
        "available_until": {},
    }
    assert "unserved" not in listed()


def test_a_key_sees_what_it_may_call() -> None:
    """By its models and by its providers."""
    assert set(listed(Principal(key_id="k", key_name="k", models=frozenset({K2})))) == {K2}
    entries = listed(Principal(key_id="k", key_name="k", providers=frozenset({"evolink"})))
    assert set(entries) == {K2}
    assert entries[K2]["pricing"] == {
        "prompt_from": "0.556",
        "prompt_to": "0.556",
        "cached_prompt_from": "0.139",
        "cached_prompt_to": "0.139",
        "completion_from": "2.222",
        "completion_to": "2.222",
    }


def test_one_model_by_name_or_alias() -> None:
    """None where it does not exist, or not for this key."""
    one = render_model(CATALOGUE, ANYONE, "moonshotai/Kimi-K2-Thinking", at=NOW, routable=ROUTABLE)
    assert one is not None
    assert json.loads(one) == listed()[K2]
    assert render_model(CATALOGUE, ANYONE, "other", at=NOW, routable=ROUTABLE) is None
    nobody = Principal(key_id="k", key_name="k", models=frozenset())
    assert render_model(CATALOGUE, nobody, K2, at=NOW, routable=ROUTABLE) is None


def test_a_plan_as_json() -> None:
    """Costs are exact numbers, an unpriced candidate has none, and every exclusion says why."""
    evolink = price("evolink", "0.556", "2.222")
    plan = Plan(
        model=K2,
        input_tokens_estimate=1000,
        output_tokens_estimate=500,
        candidates=(
            Candidate(
                provider="evolink",
                account="main",
                deployment=deployment("evolink"),
                price=evolink,
                expected_cost=Money.from_usd("0.000000556001"),
                expected_cached_tokens=256,
                output_limit=32_768,
                score=Score(matched_tokens=512, total_usd=0.0000001234),
            ),
            Candidate(
                provider="free",
                account="main",
                deployment=deployment("free"),
                price=None,
                expected_cost=None,
                state=CandidateState.UNROUTABLE,
                excluded="no price is configured",
            ),
        ),
        made_at=NOW,
    )
    body = render_route(plan)
    assert b'"expected_cost_usd":0.000000556001,' in body
    route = json.loads(body, parse_float=Decimal)
    assert (route["model"], route["input_tokens_estimate"]) == (K2, 1000)
    first, second = route["candidates"]
    assert first == {
        "provider": "evolink",
        "account": "main",
        "upstream_model": f"evolink-{K2}",
        "expected_cost_usd": Decimal("0.000000556001"),
        "expected_cached_tokens": 256,
        "score": {
            **dict.fromkeys(Score.__struct_fields__, 0),
            "matched_tokens": 512,
            "total_usd": Decimal("0.000000123"),
        },
        "state": "healthy",
        "excluded": None,
        "price_id": evolink.price_id,
        "output_limit": 32_768,
        "retry_at": None,
    }
    assert (second["expected_cost_usd"], second["price_id"], second["state"]) == (None, None, "unroutable")
    assert second["excluded"] == "no price is configured"
