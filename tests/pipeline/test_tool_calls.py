"""Tool calls are checked in passing: the bytes stay as they are, the row says what was wrong, routing learns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.catalogue import OnModelMismatch, RoutingTerms
from gateway.core.exchange import Principal
from gateway.core.quality import Fault
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import ALICE, MODEL, USAGE, WAIT, Script, World, card, catalogue, stream, unstreamed
from tests.wire.transcripts import ANSWER, DONE, ROLE, closing, delta, finish, whole

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
GOOD = '{"city":"Paris"}'


def called(arguments: str = GOOD, *, name: str = "get_weather", reason: str = "tool_calls") -> Script:
    """A streamed answer with one call, its arguments in two pieces."""
    half = len(arguments) // 2
    begin = {"index": 0, "id": f"functions.{name}:0", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [
        delta(tool_calls=[{"index": 0, "function": {"arguments": part}}])
        for part in (arguments[:half], arguments[half:])
    ]
    return stream(ROLE, delta(tool_calls=[begin]), WAIT, *pieces, finish(reason), closing(USAGE), DONE)


def called_whole(arguments: str = GOOD) -> Script:
    body = json.loads(whole(USAGE))
    call = {"id": "functions.get_weather:0", "type": "function"}
    body["choices"][0]["message"]["tool_calls"] = [
        {**call, "function": {"name": "get_weather", "arguments": arguments}}
    ]
    body["choices"][0]["finish_reason"] = "tool_calls"
    return unstreamed(json.dumps(body).encode())


async def flags_after(script: Script, **asked: Any) -> list[str]:
    run = await World().scripted(evolink=script).ask(**{"tools": TOOLS, **asked})
    assert run.entry.status == "succeeded"
    assert run.reply.status == 200
    return run.entry.flags


@on_virtual_time
async def test_a_right_call_is_counted_and_passes_as_it_came() -> None:
    """The client has the upstream's bytes; the row says that it was checked."""
    script = called()
    run = await World().scripted(evolink=script).ask(tools=TOOLS)
    relayed = b"".join(step for step in script.body if isinstance(step, bytes)).replace(closing(USAGE), b"")
    assert run.reply.body == relayed
    assert run.entry.flags == ["tool_calls_checked"]
    standing = run.world.noting.validity.of("evolink", MODEL, run.world.clock.now().timestamp())
    assert (standing.checked, standing.valid_share) == (1.0, 1.0)


@on_virtual_time
async def test_what_is_wrong_is_in_the_row() -> None:
    """Streamed or whole, one flag for each fault."""
    assert await flags_after(called('{"city":')) == ["tool_calls_checked", "arguments_not_json"]
    assert await flags_after(called('{"town":"Paris"}')) == ["tool_calls_checked", "schema_violated"]
    assert await flags_after(called(name="get_wether")) == ["tool_calls_checked", "unknown_function"]
    assert await flags_after(called(reason="stop")) == ["tool_calls_checked", "finish_reason_false"]
    assert await flags_after(called_whole(), stream=False) == ["tool_calls_checked"]
    assert await flags_after(called_whole("{}"), stream=False) == ["tool_calls_checked", "schema_violated"]


@on_virtual_time
async def test_a_call_that_leaked_into_the_text() -> None:
    """It is wrong once, whoever noticed; a request that quotes the token is answered with it, and nothing is wrong."""
    token = "<|tool_call_begin|>"
    leaked = stream(ROLE, delta(content=f"{token}functions.get_weather:0"), finish(), closing(USAGE), DONE)
    assert await flags_after(leaked) == ["special_tokens_leaked", "tool_calls_checked"]
    assert await flags_after(leaked, messages=[{"role": "user", "content": f"Explain {token}"}]) == []


@on_virtual_time
async def test_what_calls_nothing_is_not_checked() -> None:
    """Neither a text answer nor a request without tools."""
    text = stream(ANSWER, finish(), closing(USAGE), DONE)
    assert await flags_after(text) == []
    assert await flags_after(called("{"), tools=None) == []


@on_virtual_time
async def test_a_schema_that_is_too_heavy_is_left_out() -> None:
    """Said so in the row, and no fault."""
    heavy = [{"type": "function", "function": {"name": "get_weather", "parameters": {"$ref": "#"}}}]
    assert await flags_after(called(), tools=heavy) == ["tool_calls_checked", "tool_call_schema_unchecked"]


@on_virtual_time
async def test_an_answer_that_broke_off_says_nothing_of_its_calls() -> None:
    """Half a call of a cut stream is the connection's fault."""
    half = stream(ROLE, delta(tool_calls=[{"index": 0, "function": {"name": "get_weather", "arguments": "{"}}]))
    run = await World().scripted(evolink=half).ask(tools=TOOLS)
    assert run.entry.status == "failed"
    assert run.entry.flags == []
    assert list(run.world.noting.validity) == []


@on_virtual_time
async def test_a_provider_whose_calls_are_wrong_is_passed_by() -> None:
    """After some twenty wrong answers the next one up answers requests with tools; requests without tools stay."""
    gated = replace(catalogue(card("evolink"), card("moonshot")), routing=RoutingTerms(min_tool_call_validity=0.9))
    world = World(in_force=gated).scripted(evolink=called("{"), moonshot=called())
    for _ in range(20):
        assert (await world.ask(tools=TOOLS)).entry.provider == "evolink"
    await world.ask(tools=TOOLS)
    run = await world.ask(tools=TOOLS)
    assert run.entry.provider == "moonshot"
    passed_by = run.exchange.plan.candidates[-1]
    assert passed_by.provider == "evolink"
    assert passed_by.excluded is not None
    assert "min_tool_call_validity 0.9" in passed_by.excluded
    world.scripted(evolink=stream(ANSWER, finish(), closing(USAGE), DONE))
    assert (await world.ask()).entry.provider == "evolink"


@on_virtual_time
async def test_whose_calls_they_were() -> None:
    """The lesson is its team's, or its key's where it has none: one tenant does not speak for all."""
    gated = replace(catalogue(card("evolink"), card("moonshot")), routing=RoutingTerms(min_tool_call_validity=0.9))
    world = World(in_force=gated).scripted(evolink=[called()] * 20 + [called("{")], moonshot=called())
    bob = Principal(key_id="key_bob", key_name="bob")
    for _ in range(20):
        await world.ask(tools=TOOLS, principal=bob)
    colleague = Principal(key_id="key_carol", key_name="carol", team=ALICE.team)
    for _ in range(30):
        for principal in (ALICE, colleague):
            assert (await world.ask(tools=TOOLS, principal=principal)).entry.provider == "evolink"
    now = world.clock.now().timestamp()
    assert set(world.noting.validity.of("evolink", MODEL, now).faults) == {Fault.ARGUMENTS_NOT_JSON}


@pytest.mark.parametrize("served", ["kimi-k2.6", "other/kimi-k2"])
@on_virtual_time
async def test_an_answer_of_another_model_is_flagged(served: str) -> None:
    """By whatever policy; its row says which one answered."""
    odd = stream(
        ANSWER.replace(b'"model":"kimi-k2-thinking"', f'"model":"{served}"'.encode()), finish(), closing(USAGE), DONE
    )
    run = await World().scripted(evolink=odd).ask()
    assert run.entry.flags == ["model_mismatch"]
    assert run.entry.served_model == served
    assert run.reply.status == 200
    strict = catalogue(card("evolink", on_model_mismatch=OnModelMismatch.REJECT), card("moonshot"))
    run = await World(in_force=strict).scripted(evolink=odd, moonshot=stream(ANSWER, finish(), DONE)).ask()
    rejected, answered = run.entries
    assert (rejected.provider, rejected.error_type, rejected.flags) == ("evolink", "model_mismatch", ["model_mismatch"])
    assert (answered.provider, answered.flags) == ("moonshot", [])


@on_virtual_time
async def test_a_vendor_before_the_name_is_no_other_model() -> None:
    """Aggregators put one there."""
    same = ANSWER.replace(b'"model":"kimi-k2-thinking"', b'"model":"moonshotai/Kimi-K2-Thinking"')
    run = await World().scripted(evolink=stream(same, finish(), closing(USAGE), DONE)).ask()
    assert run.entry.flags == []
    assert run.entry.served_model == "moonshotai/Kimi-K2-Thinking"
