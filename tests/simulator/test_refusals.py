"""What a provider refuses it refuses in its own words, with its own status, and never bills."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.simulator import PROVIDERS, Settings, Simulator, filler

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def tool(name: str = "get_weather", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def calling(**fields: Any) -> dict[str, Any]:
    call = {"id": "f:0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    return {"role": "assistant", "tool_calls": [call], **fields}


USER = {"role": "user", "content": "x"}
RESULT = {"role": "tool", "tool_call_id": "f:0", "content": "x"}

INVALID_AT_MOONSHOT = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["x"]}, "not an object"),
    ({"messages": [{"role": "developer", "content": "x"}]}, "unknown role"),
    ({"messages": [{"role": "user", "content": ""}]}, "must not be empty"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "text content is empty"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [USER, RESULT]}, "is not found"),
    ({"messages": [USER, calling(), {**RESULT, "tool_call_id": ""}]}, "tool_call_id  is not found"),
    ({"temperature": 1.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"n": 6}, "n must be"),
    ({"n": 2, "temperature": 0.1}, "n must be 1"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"stop": ["a"] * 6}, "stop"),
    ({"stop": ["é" * 17]}, "32 bytes"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 262_144}, "exceeded model token limit : 262144 (requested: 262150)"),
    ({"tools": [tool("ab")]}, "function name is invalid"),
    ({"tools": [tool(), tool()]}, "function name get_weather is duplicated"),
    ({"tools": [{"name": "x", "input_schema": {}}]}, "tools.function is missing"),
    ({"tools": [tool(properties={"a": {"description": "x"}})]}, "moonshot flavored json schema"),
    ({"tools": [tool(properties={"a": {"$ref": "#/$defs/a", "description": "x"}})]}, "$ref"),
    ({"tools": [tool(properties={"a": {"type": "string", "anyOf": [{"type": "string"}]}})]}, "anyOf"),
    ({"tools": [TOOL] * 129}, "128"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        "incompatible with thinking",
    ),
    ({"model": "kimi-k2.6", "temperature": 0.7}, "invalid temperature: only 1 is allowed for this model"),
    ({"model": "kimi-k2.6", "thinking": True}, "bool is not acceptable"),
    ({"model": "kimi-k2.6", "messages": [USER, calling(), RESULT]}, "reasoning_content is missing"),
    ({"model": ""}, "model is required"),
]


@pytest.mark.parametrize(("fields", "words"), INVALID_AT_MOONSHOT)
def test_moonshot_refuses_what_breaks_its_rules(direct, ask, fields, words):
    """400 with the type invalid_request_error and the reason; nothing is billed or cached."""
    simulator = direct.simulator()
    reply = direct.ask(simulator, ask() | fields)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert words in reply.json["error"]["message"]
    assert not simulator.bill.lines
    assert simulator.requests[-1].refused == "invalid_request"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, calling(reasoning_content=""), RESULT]},
        {"messages": [USER, calling(content="", reasoning_content=""), RESULT], "model": "kimi-k2.6"},
        {"messages": [USER, {"role": "assistant", "content": "I say", "partial": True}]},
        {"messages": [{"role": "system", "content": "s"}, USER], "temperature": 0, "stop": "x"},
        {"model": "kimi-k3", "tools": [tool("ab")], "tool_choice": "required"},
        {"unknown_field": 1, "prompt_cache_key": "s"},
    ],
)
def test_moonshot_takes_what_keeps_them(direct, ask, fields):
    """An empty reasoning_content is one, short names are fine with newer models, unknown fields are ignored."""
    reply = direct.ask(direct.simulator(), ask() | fields)
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("provider", ["cometapi", "evolink"])
def test_aggregators_let_more_pass(direct, ask, provider):
    """Temperature to 2, short tool names, loose schemas and empty content are no error there."""
    loose = tool("ab", properties={"a": {"description": "x"}})
    body = ask(temperature=1.7, tools=[loose], tool_choice="required")
    assert direct.ask(direct.simulator(provider), body).status == 200


@pytest.mark.parametrize(
    ("provider", "status", "code"),
    [("moonshot", 400, None), ("cometapi", 500, "invalid_request"), ("evolink", 400, 400)],
)
def test_a_client_error_looks_different_at_each(direct, ask, provider, status, code):
    """CometAPI answers 500 with a telling code, EvoLink a numeric one."""
    reply = direct.ask(direct.simulator(provider), {"model": "kimi-k2-thinking"})
    assert reply.status == status
    assert reply.json["error"].get("code") == code


@pytest.mark.parametrize(
    ("provider", "status", "key", "value"),
    [
        ("moonshot", 404, "type", "resource_not_found_error"),
        ("cometapi", 503, "code", "model_not_found"),
        ("evolink", 404, "type", "not_found_error"),
    ],
)
@pytest.mark.parametrize("model", ["kimi-k2-thinking", "never-was"])
def test_a_model_that_is_gone(direct, ask, provider, status, key, value, model):
    """Retired and unknown models get the same answer, which names the model."""
    simulator = direct.simulator(provider, Settings(retired=frozenset({"kimi-k2-thinking"})))
    reply = direct.ask(simulator, ask() | {"model": model})
    assert reply.status == status
    assert reply.json["error"][key] == value
    assert model in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("provider", "status", "words"),
    [
        ("moonshot", 429, "please recharge your account"),
        ("cometapi", 403, "quota is not enough"),
        ("evolink", 402, "insufficient credits"),
    ],
)
def test_an_empty_balance_refuses(direct, ask, provider, status, words):
    """Once the balance is spent, no more is answered."""
    simulator = direct.simulator(provider, Settings(balance_pico=1))
    assert direct.ask(simulator, ask()).status == 200
    reply = direct.ask(simulator, ask())
    assert reply.status == status
    assert words in reply.json["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.sampled_from(["user", "assistant", "tool", "object", "array", "string", "auto", "required", "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "role", "content", "text", "function", "name", "parameters", "properties", "items",
                         "anyOf", "enum", "$ref", "required", "minLength", "minItems", "minimum", "maximum", "id",
                         "tool_calls", "json_schema", "schema", "arguments", "tool_call_id", "reasoning_content"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["messages", "tools", "tool_choice", "response_format", "n", "temperature", "stop", "max_tokens", "thinking",
     "stream", "stream_options", "prompt_cache_options", "model", "max_completion_tokens", "top_p"]
)  # fmt: skip


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    provider=st.sampled_from(PROVIDERS),
    fields=st.dictionaries(FIELDS, JSON, max_size=3),
    message=st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "tools", "name"]), JSON, max_size=3),
    schema=st.dictionaries(
        st.sampled_from(["type", "properties", "anyOf", "enum", "$ref", "items", "required", "minItems"]),
        JSON,
        max_size=3,
    ),
)
def test_any_json_gets_an_answer(provider, fields, message, schema):
    """Whatever a client sends, it is answered or refused, and the two agree with the bill."""
    from tests.simulator.conftest import Direct

    direct = Direct()
    tool = {"type": "function", "function": {"name": "abc", "parameters": {"type": "object", **schema}}}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    base = {"model": "kimi-k2-thinking", "messages": [USER | message]}
    for extra in ({}, {"tools": [tool]}, {"response_format": shape}):
        simulator = direct.simulator(provider)
        reply = direct.ask(simulator, base | extra | fields)
        assert reply.status in (200, 400, 404, 500, 503)
        assert len(simulator.bill.lines) == (reply.status == 200)


@pytest.mark.parametrize("provider", ["moonshot", "cometapi", "evolink"])
def test_broken_bodies_and_keys_over_the_wire(over_http, ask, provider):
    """What is not JSON, too large, or without a known key is refused and recorded."""
    simulator = Simulator(provider, Settings(body_bytes_max=200_000))

    async def scenario(http: Any) -> None:
        wrong = 500 if provider == "cometapi" else 400
        assert (await http.ask(None, raw=b'{"model":')).status == wrong
        assert (await http.ask(None, raw=b"[]")).status == wrong
        assert (await http.ask(None, raw=b"")).status == wrong
        assert (await http.ask(ask(), key=None)).status == 401
        assert (await http.ask(ask(), key="nobody")).status == 401
        assert (await http.ask(ask(filler(100_000, seed=1)))).status == 413
        assert (await http.ask(ask())).status == 200
        requests = (await http.get("/__sim/requests")).json["requests"]
        assert [row["status"] for row in requests] == [wrong] * 3 + [401, 401, 413, 200]
        assert requests[-1]["attempt_id"] == "attempt-1"
        assert requests[-1]["fields"] == ["model", "messages"]
        assert len((await http.get("/__sim/bill")).json["lines"]) == 1

    over_http(simulator, scenario)
