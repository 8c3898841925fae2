"""Each provider tells usage, models and balance in its own places and spellings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import Settings, filler

INCLUDE = {"stream": True, "stream_options": {"include_usage": True}}


def usages(reply: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Usage inside choices, on closing chunks, and at top level of a finish chunk."""
    events = [event for event in reply.events if isinstance(event, dict)]
    choice = [c["usage"] for event in events for c in event["choices"] if c.get("usage")]
    chunk = [event["usage"] for event in events if not event["choices"]]
    finish = [event["usage"] for event in events if event["choices"] and event.get("usage")]
    return choice, chunk, finish


@pytest.mark.parametrize(
    ("provider", "include", "places"),
    [
        ("moonshot", False, (1, 0, 0)),
        ("moonshot", True, (1, 1, 0)),
        ("cometapi", False, (0, 0, 0)),
        ("cometapi", True, (0, 1, 0)),
        ("evolink", False, (0, 0, 0)),
        ("evolink", True, (0, 1, 0)),
    ],
)
def test_usage_stands_where_the_provider_puts_it(direct, ask, provider, include, places):
    """Moonshot always inside the finishing choice; all of them in a closing chunk when asked."""
    reply = direct.ask(direct.simulator(provider), ask(stream=True) | (INCLUDE if include else {}))
    found = usages(reply)
    assert tuple(len(found[n]) for n in range(3)) == places
    nulls = [event for event in reply.events if isinstance(event, dict) and event.get("usage", 0) is None]
    assert bool(nulls) == (provider == "moonshot" and include)


@pytest.mark.parametrize(
    ("provider", "top", "nested"),
    [("moonshot", 604, 604), ("cometapi", None, 604), ("evolink", None, 604)],
)
def test_cached_tokens_are_spelled_as_the_provider_spells_them(direct, ask, provider, top, nested):
    """Moonshot in both places with the same number, the aggregators nested alone."""
    simulator = direct.simulator(provider)
    direct.ask(simulator, ask(filler(600, seed=1)))
    usage = direct.ask(simulator, ask(filler(600, seed=1))).json["usage"]
    assert usage.get("cached_tokens") == top
    assert usage["prompt_tokens_details"]["cached_tokens"] == nested
    assert usage["prompt_tokens"] == 604
    assert usage["total_tokens"] == 604 + usage["completion_tokens"]


def test_two_choices_have_their_own_completion_tokens(direct, ask):
    """The prompt is told with each choice, the completion of the choice alone, and the closing chunk sums them."""
    reply = direct.ask(direct.simulator(), ask(n=2) | INCLUDE)
    choice, (total,), _ = usages(reply)
    assert len(choice) == 2
    assert {usage["prompt_tokens"] for usage in choice} == {total["prompt_tokens"]}
    assert sum(usage["completion_tokens"] for usage in choice) == total["completion_tokens"]


def test_models_with_write_prices_report_and_bill_cache_writes(direct, ask):
    """kimi-k3 writes whole blocks at the price of the ttl that the request asked for."""
    simulator = direct.simulator()
    body = ask(filler(600, seed=1)) | {"model": "kimi-k3"}
    for ttl, write_price in (("5m", 3_000_000), ("1h", 6_000_000)):
        simulator.reset()
        options = {"prompt_cache_options": {"mode": "implicit", "ttl": ttl}}
        usage = direct.ask(simulator, body | options).json["usage"]
        (line,) = simulator.bill.lines
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 512}
        assert (line.input_tokens, line.cache_write_tokens) == (92, 512)
        assert line.cache_write_pico == 512 * write_price
        assert line.cost_pico == 92 * 3_000_000 + 512 * write_price + line.output_tokens * 15_000_000
        again = direct.ask(simulator, body | options).json["usage"]
        assert again["prompt_tokens_details"] == {"cached_tokens": 604, "cache_write_tokens": 0}


@pytest.mark.parametrize(
    ("provider", "header"),
    [("moonshot", "msh-request-id"), ("cometapi", "x-oneapi-request-id"), ("evolink", "x-request-id")],
)
def test_the_request_id_of_the_header_is_on_the_bill(direct, ask, provider, header):
    """Header and body name the request, and the bill line names both."""
    simulator = direct.simulator(provider)
    reply = direct.ask(simulator, ask())
    (line,) = simulator.bill.lines
    assert reply.headers[header] == line.request_id
    assert reply.json["id"] == line.completion_id


@pytest.mark.parametrize("provider", ["moonshot", "cometapi", "evolink"])
def test_models_balance_and_health_of_each_provider(over_http, ask, provider):
    """The list names what is served, and the balance falls by what was billed."""
    from gateway.simulator import Simulator

    simulator = Simulator(provider, Settings(retired=frozenset({"kimi-k2-thinking-turbo"}), balance_pico=5 * 10**12))
    path = {"moonshot": "/v1/users/me/balance", "cometapi": "/user/quota?key=sk-test", "evolink": "/v1/credits"}

    async def scenario(http: Any) -> None:
        listed = [row["id"] for row in (await http.get("/v1/models")).json["data"]]
        assert "kimi-k2-thinking" in listed
        assert "kimi-k2-thinking-turbo" not in listed
        await http.ask(ask(filler(100_000, seed=1)))
        spent = simulator.bill.lines[0].cost_pico / 1e12
        balance = (await http.get(path[provider])).json
        match provider:
            case "moonshot":
                left = balance["data"]["available_balance"]
            case "cometapi":
                left = balance["keys"][0]["remain_quota"]
            case _:
                left = balance["data"]["token"]["remaining_credits"]
        assert left == pytest.approx(5 - spent, abs=1e-5)

    over_http(simulator, scenario)


def test_cometapi_publishes_its_catalog(over_http):
    """Without a key; list price times ratio is what the bill says."""
    from gateway.simulator import PRICES, Simulator

    async def scenario(http: Any) -> None:
        rows = {row["code"]: row["pricing"] for row in (await http.get("/api/models", key="nobody")).json["data"]}
        for model, price in PRICES["cometapi"].items():
            assert rows[model]["input"] * rows[model]["ratio"] * 1e6 == pytest.approx(price.input)

    over_http(Simulator("cometapi"), scenario)


def test_the_token_estimate_leaves_tools_out(over_http, ask):
    """Moonshot's free count looks at the messages alone."""
    from gateway.simulator import Simulator

    async def scenario(http: Any) -> None:
        reply = await http.post("/v1/tokenizers/estimate-token-count", ask(filler(50, seed=1), tools=[{"x": 1}]))
        assert reply.json == {"data": {"total_tokens": 54}}

    over_http(Simulator("moonshot"), scenario)


def test_wrong_paths_and_keys_are_answered_in_character(over_http):
    """CometAPI shows a page for a wrong path; a key without its prefix is nobody's."""
    from gateway.simulator import Simulator

    async def comet(http: Any) -> None:
        reply = await http.get("/v1/chat/completions/chat/completions")
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
        assert (await http.get("/v1/models", key="nobody")).status == 401

    async def evolink(http: Any) -> None:
        reply = await http.get("/v1/nothing")
        assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error")

    over_http(Simulator("cometapi"), comet)
    over_http(Simulator("evolink"), evolink)


def test_every_chunk_is_one_json_event(direct, ask):
    """Events are `data: …` and a blank line, [DONE] is the last."""
    reply = direct.ask(direct.simulator(), ask("[[out=500]]", stream=True))
    events = reply.body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(json.loads(event.removeprefix(b"data: "))["choices"] for event in events[:-2])
