"""An answer is what the request asked for: its length, its reasoning, its tools, the same streamed and unstreamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import Settings, Simulator, count_text
from gateway.simulator.model import answer, instance
from gateway.simulator.tokens import serialize

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 12},
                "days": {"type": "integer", "minimum": 3, "maximum": 5},
                "unit": {"enum": ["C", "F"], "type": "string"},
            },
            "required": ["city", "days", "unit"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def made(body: dict[str, Any], *, limit: int = 30_000, thinks: bool = True, seed: int = 0) -> Any:
    return answer(body, serialize(body), seed=seed, limit=limit, thinks=thinks, struck=None)


@settings(deadline=None)
@given(out=st.integers(0, 6_000), share=st.floats(0, 1), limit=st.integers(1, 6_000))
def test_a_marker_gives_the_exact_length(out: int, share: float, limit: int):
    """The tokens told are the tokens asked for, cut by the limit, and the text has exactly as many."""
    body = {"messages": [{"role": "user", "content": f"go [[out={out}]] [[reasoning={share:.3f}]]"}]}
    (choice,) = made(body, limit=limit)
    assert choice.completion_tokens == min(out, limit)
    assert choice.finish_reason == ("length" if out > limit else "stop")
    assert (
        count_text(choice.reasoning.string()) == choice.reasoning.tokens == int(min(out, limit) * float(f"{share:.3f}"))
    )
    assert choice.reasoning.tokens + count_text(choice.content.string()) == choice.completion_tokens


@settings(deadline=None)
@given(tokens=st.integers(0, 9_000), size=st.integers(1, 50))
def test_pieces_join_to_the_text(tokens: int, size: int):
    """However a text is cut, its pieces carry all of it and all of its tokens."""
    body = {"messages": [{"role": "user", "content": f"[[out={tokens}]] [[reasoning=0]]"}]}
    (choice,) = made(body)
    pieces = list(choice.content.pieces(size))
    assert json.loads(b'"' + b"".join(piece for piece, _ in pieces) + b'"') == choice.content.string()
    assert sum(count for _, count in pieces) == tokens


def test_answers_are_the_same_for_the_same_seed_and_request():
    """Chance is the seed's: equal requests are answered alike, another seed or prompt otherwise."""
    body = {"messages": [{"role": "user", "content": "hello"}]}
    other = {"messages": [{"role": "user", "content": "hullo"}]}
    assert made(body) == made(body)
    assert made(body) != made(body, seed=1)
    assert made(body) != made(other)


@pytest.mark.parametrize("provider", ["moonshot", "cometapi", "evolink"])
@pytest.mark.parametrize("size", [1, 7])
def test_a_stream_says_what_the_body_says(direct, ask, provider, size):
    """Content, reasoning, calls and finish reasons do not depend on the form of the answer."""
    for extra in ({"n": 2}, {"tools": [WEATHER, CLOCK]}, {"response_format": {"type": "json_object"}}):
        simulator = direct.simulator(provider, Settings(tokens_per_chunk=size))
        body = ask("x [[out=300]] [[tools=2]]", max_tokens=1000, **extra)
        whole = direct.ask(simulator, body).json["choices"]
        reply = direct.ask(simulator, body | {"stream": True, "stream_options": {"include_usage": True}})
        for index, choice in enumerate(whole):
            message = choice["message"]
            assert reply.text("content", index) == message["content"]
            assert reply.text("reasoning_content", index) == message["reasoning_content"]
            assert calls_of(reply.choices, index) == message.get("tool_calls", [])
        finishes = [c["finish_reason"] for c in reply.choices if c["finish_reason"]]
        assert finishes == [choice["finish_reason"] for choice in whole]
        assert reply.events[-1] == "[DONE]"


def calls_of(choices: list[Any], index: int) -> list[Any]:
    """The tool calls of a stream, put together by index."""
    calls: dict[int, Any] = {}
    for choice in choices:
        for piece in choice["delta"].get("tool_calls", []) if choice["index"] == index else []:
            if "id" in piece:
                calls[piece["index"]] = {key: piece[key] for key in ("id", "type")} | {"function": piece["function"]}
            else:
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return list(calls.values())


def test_reasoning_comes_before_content(direct, ask):
    """All reasoning pieces come first, and the role only once."""
    reply = direct.ask(direct.simulator(), ask("[[out=20]]", stream=True))
    kinds = [next(iter(choice["delta"]), "finish") for choice in reply.choices]
    assert kinds == ["role"] + ["reasoning_content"] * 8 + ["content"] * 12 + ["finish"]


def test_a_user_turn_with_tools_calls_one(direct, ask):
    """The first tool is called with arguments that fit its schema; ids go on counting over the conversation."""
    simulator = direct.simulator()
    first = direct.ask(simulator, ask("weather?", tools=[WEATHER])).json["choices"][0]
    (call,) = first["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert first["finish_reason"] == "tool_calls"
    assert call["id"] == "functions.get_weather:0"
    assert len(arguments["city"]) >= 12
    assert 3 <= arguments["days"] <= 5
    assert arguments["unit"] in ("C", "F")
    tool = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    history = [*ask("weather?")["messages"], first["message"], tool]
    second = direct.ask(simulator, ask(tools=[WEATHER]) | {"messages": history}).json["choices"][0]
    assert second["finish_reason"] == "stop"
    assert second["message"]["content"]
    third = direct.ask(simulator, ask(tools=[WEATHER]) | {"messages": [*history, *ask("and now?")["messages"]]})
    assert third.json["choices"][0]["message"]["tool_calls"][0]["id"] == "functions.get_weather:1"


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tool_choice": "none"}, []),
        ({"content": "[[tool=none]]"}, []),
        ({"content": "[[tool=get_time]]"}, ["get_time"]),
        ({"content": "[[tools=3]]"}, ["get_weather", "get_time", "get_weather"]),
    ],
)
def test_markers_choose_the_tools(direct, ask, fields, names):
    """Which tool is called, and how many at once, is the driver's to say."""
    body = ask(tools=[WEATHER, CLOCK], **{"content": "x", **fields})
    message = direct.ask(direct.simulator(), body).json["choices"][0]["message"]
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == names


def test_a_call_that_does_not_fit_is_lost_to_the_limit(direct, ask):
    """With too small an output limit the reasoning uses it up, and that is billed."""
    simulator = direct.simulator()
    choice = direct.ask(simulator, ask(tools=[WEATHER], max_tokens=9)).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert simulator.bill.lines[0].output_tokens == 9


@settings(deadline=None)
@given(out=st.integers(0, 200))
def test_an_exact_length_holds_for_calls_and_json(out: int):
    """What must be whole sets the least length; above it the marker is exact."""
    for extra in ({"tools": [WEATHER]}, {"response_format": {"type": "json_object"}}):
        body = {"messages": [{"role": "user", "content": f"[[out={out}]]"}], **extra}
        (least,) = made({"messages": [{"role": "user", "content": "[[out=0]]"}], **extra})
        (choice,) = made(body)
        assert choice.completion_tokens >= out
        assert choice.completion_tokens == out or choice.completion_tokens <= least.completion_tokens + 2
        if "tools" not in extra:
            assert json.loads(choice.content.string())


def test_structured_content_fits_its_schema(direct, ask):
    """A JSON schema as response format is answered with an instance of it."""
    schema = {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"$ref": "#/$defs/name"}, "minItems": 2}},
        "required": ["names"],
        "$defs": {"name": {"type": "string", "maxLength": 5}},
    }
    body = ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    content = json.loads(direct.ask(direct.simulator(), body).json["choices"][0]["message"]["content"])
    assert len(content["names"]) == 2
    assert all(len(name) <= 5 for name in content["names"])


def test_a_schema_that_refers_to_itself_ends():
    """Depth is bounded."""
    schema: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert instance(schema, root=schema, digest=1) is not None


def test_thinking_can_be_switched_off_where_the_model_allows_it(direct, ask):
    """kimi-k2.6 answers without a reasoning field when its thinking is disabled."""
    body = ask(thinking={"type": "disabled"}) | {"model": "kimi-k2.6"}
    message = direct.ask(direct.simulator(), body).json["choices"][0]["message"]
    assert "reasoning_content" not in message


def test_without_a_limit_the_models_default_cuts(direct, ask):
    """kimi-k2-thinking stops at 1024 tokens when the request names no limit."""
    choice = direct.ask(direct.simulator(), ask("[[out=5000]]")).json
    assert choice["usage"]["completion_tokens"] == 1024
    assert choice["choices"][0]["finish_reason"] == "length"


def test_an_unknown_provider_is_refused():
    """A simulator is one of three providers."""
    with pytest.raises(ValueError, match="Known: moonshot, cometapi, evolink"):
        Simulator("openai")
