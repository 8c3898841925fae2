"""What may be called and where it would go: the lists, the dry run, and the caller's own preferences."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.simulator import Fault
from tests.http.house import MODEL, House, chat, exact
from tests.http.test_bad_input import refused

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CANDIDATE = {
    "provider", "account", "upstream_model", "expected_cost_usd", "expected_cached_tokens", "state", "excluded",
}  # fmt: skip


async def route(house: House, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await house.client.post(
        "/v1/route", json=body, headers={"authorization": f"Bearer {house.key}", **headers}
    )
    assert answer.status_code == 200, answer.text
    return exact(answer.text)


def order(plan: dict[str, Any]) -> list[str]:
    return [each["provider"] for each in plan["candidates"] if each["excluded"] is None]


async def test_the_plan(house: House):
    """The dry run has the documented shape, the cheapest first, and touches no provider and no book."""
    before = len(await house.ledger())
    plan = await route(house, chat())
    assert plan["model"] == MODEL
    assert plan["input_tokens_estimate"] > 0
    assert all(set(each) >= CANDIDATE for each in plan["candidates"])
    assert order(plan) == ["evolink", "moonshot", "cometapi"]
    costs = [each["expected_cost_usd"] for each in plan["candidates"]]
    assert all(isinstance(cost, Decimal) and cost > 0 for cost in costs)
    assert costs == sorted(costs)
    assert len(await house.ledger()) == before
    assert not any(simulator.requests for simulator in house.simulators.values())


async def test_the_plan_of_a_stream(house: House):
    """A dry run of a stream request is a plan, too, as JSON."""
    assert order(await route(house, chat(stream=True)))


async def test_what_is_excluded_comes_last_with_its_reason(house: House):
    """EvoLink sells no turbo at a known price: it is last, and says why."""
    plan = await route(house, chat(model="kimi-k2-thinking-turbo"))
    assert order(plan) == ["moonshot", "cometapi"]
    last = plan["candidates"][-1]
    assert last["provider"] == "evolink"
    assert "price" in last["excluded"]
    assert last["expected_cost_usd"] is None


PREFERENCES: list[tuple[dict[str, Any], list[str]]] = [
    ({"only": ["cometapi"]}, ["cometapi"]),
    ({"only": ["MoonShot", "cometapi"]}, ["moonshot", "cometapi"]),
    ({"ignore": ["evolink"]}, ["moonshot", "cometapi"]),
    ({"order": ["cometapi"]}, ["cometapi", "evolink", "moonshot"]),
    ({"order": ["cometapi", "moonshot"], "allow_fallbacks": False}, ["cometapi", "moonshot"]),
    ({"max_price": {"prompt": 0.6}}, ["evolink", "moonshot"]),
    ({"max_price": {"prompt": "0.556", "completion": "2.222"}}, ["evolink"]),
    ({"max_price": {"completion": 2.5}}, ["evolink", "moonshot"]),
    ({"sort": "price"}, ["evolink", "moonshot", "cometapi"]),
]


@pytest.mark.parametrize(("preferences", "expected"), PREFERENCES)
async def test_preferences(house: House, preferences: dict[str, Any], expected: list[str]):
    """The dry run and the real call follow the caller's preferences."""
    assert order(await route(house, chat(provider=preferences))) == expected
    answer = await house.ask(chat(provider=preferences))
    assert answer.headers["x-gateway-provider"] == expected[0]


async def test_nobody_is_left(house: House):
    """Preferences that leave nobody are a 503 that says of each candidate why."""
    error = refused(await house.ask(chat(provider={"max_price": {"prompt": 0.1}})), 503, "no_provider_available")
    assert all(name in error["message"] for name in house.simulators)


async def test_fallbacks_in_the_callers_order(house: House):
    """When the first choice fails the next of the order answers."""
    house.simulators["cometapi"].faults.add(Fault(kind="unavailable"), now=0.0)
    answer = await house.ask(chat(provider={"order": ["cometapi", "moonshot"]}))
    assert (answer.headers["x-gateway-provider"], answer.headers["x-gateway-attempts"]) == ("moonshot", "2")
    refusal = await house.ask(chat(provider={"only": ["cometapi"]}))
    refused(refusal, 502, "upstream_error")


async def test_a_conversation_goes_on_where_it_is_cheapest(house: House):
    """A long conversation goes on where it is expected to be cheapest, wherever its prefix is believed to be."""
    messages = [
        {"role": "system", "content": "Once upon a time. " * 1_500},
        {"role": "user", "content": "Go [[out=20]]"},
    ]
    body = chat(messages=messages, prompt_cache_key="tale")
    first = await house.ask({**body, "provider": {"order": ["moonshot"]}})
    assert first.headers["x-gateway-provider"] == "moonshot"
    messages += [{"role": "assistant", "content": "Then"}, {"role": "user", "content": "More [[out=20]]"}]
    plan = await route(house, body)
    assert order(plan)[0] in ("moonshot", "evolink")
    assert plan["candidates"][0]["expected_cost_usd"] == min(
        each["expected_cost_usd"] for each in plan["candidates"] if each["excluded"] is None
    )


async def test_the_list_of_models(house: House):
    """The list has what a caller needs: context, prices from and to, lifecycle."""
    answer = await house.client.get("/v1/models", headers={"authorization": f"Bearer {house.key}"})
    listed = {model["id"]: model for model in answer.json()["data"]}
    model = listed[MODEL]
    assert (model["object"], model["context_length"]) == ("model", 262_144)
    assert model["pricing"]["prompt_from"] == "0.556"
    assert model["pricing"]["prompt_to"] == "1.1"
    assert model["lifecycle"]["successor"] == "kimi-k2.6"
    assert model["lifecycle"]["retirement_reported"] == {"moonshot": "2026-05-25"}
    assert isinstance(model["created"], int)
    assert answer.headers["x-request-id"]


async def test_the_list_of_a_limited_key(house: House):
    """A key sees what it may call and nothing else."""
    made = await house.make_key(models=["kimi-k2.6"])
    headers = {"authorization": f"Bearer {made['key']}"}
    listed = (await house.client.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in listed] == ["kimi-k2.6"]
    refused(await house.client.get(f"/v1/models/{MODEL}", headers=headers), 404, "model_not_found", "model")


async def test_a_retired_model(house: House):
    """A model that every provider has retired is 404 and names its successor; it is asked for once."""
    house.simulators["moonshot"].faults.add(Fault(kind="model_gone", model="kimi-k2-0905-preview"), now=0.0)
    for _ in range(2):
        error = refused(await house.ask(chat(model="kimi-k2-0905-preview")), 404, "model_not_found", "model")
        assert "kimi-k2.6" in error["message"]
    asked = [call for call in house.simulators["moonshot"].requests if call.model == "kimi-k2-0905-preview"]
    assert len(asked) == 1


async def test_a_model_that_one_provider_has_retired(house: House):
    """A 404 of one provider takes that one out without any client noticing."""
    house.simulators["evolink"].faults.add(Fault(kind="model_gone"), now=0.0)
    attempts = [(await house.ask(chat())).headers["x-gateway-attempts"] for _ in range(3)]
    assert attempts == ["2", "1", "1"]
    excluded = {each["provider"]: each["excluded"] for each in (await route(house, chat()))["candidates"]}
    assert excluded["evolink"]
    states = (await house.admin("GET", "/providers")).json()["data"]
    (evolink,) = [state for state in states if state["provider"] == "evolink"]
    assert evolink["out"][0]["model"] == MODEL
