"""For any bytes, parse answers with a request or a refusal, and for any answer only its usage changes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.core.money import Money
from gateway.core.refusal import Refusal, RefusedError
from gateway.core.usage import Usage
from gateway.surfaces.bodies import text_bytes
from gateway.surfaces.chat_completions import parse, render_answer, render_error, render_usage

MEMBER_NAMES = """
    model messages role content type text image_url url tool_calls id function name arguments tool_call_id partial
    reasoning tools parameters input_schema description tool_choice stream stream_options include_usage n max_tokens
    max_completion_tokens temperature top_p stop response_format json_schema schema logprobs top_logprobs provider
    order only ignore allow_fallbacks sort max_price prompt completion prompt_cache_key prompt_cache_options mode ttl
    usage include functions models
"""
KNOWN_WORDS = """
    user assistant system tool developer function text image_url auto none required any $web_search builtin_function
    custom json_object json_schema price latency 5m 1h implicit look 0.5
"""
NAMES = st.sampled_from(MEMBER_NAMES.split())
WORDS = st.sampled_from(KNOWN_WORDS.split())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXT, inner, max_size=5),
    max_leaves=20,
)
MESSAGES = st.lists(
    st.dictionaries(NAMES, VALUES, max_size=3) | st.fixed_dictionaries({"role": WORDS, "content": VALUES | TEXT}),
    min_size=1,
    max_size=4,
)
HEADERS = st.dictionaries(
    st.sampled_from(["x-gateway-tags", "x-session-id", "other"]),
    st.text(st.characters(max_codepoint=255), max_size=40) | st.sampled_from(["a=b,c=d", "team=core"]),
    max_size=2,
)


def check_refusal(refusal: Refusal) -> None:
    """A client error that says something."""
    assert refusal.http_status == 400
    assert json.loads(render_error(refusal, request_id="r"))["error"]["message"]


def parse_or_refuse(body: bytes, headers: dict[str, str]) -> None:
    """Anything but these two ends fails the test, and a refusal can be rendered."""
    try:
        request = parse(body, headers=headers)
    except RefusedError as refused:
        check_refusal(refused.refusal)
        return
    assert request.model
    assert request.input_bytes >= 0
    assert 1 <= request.n <= 5
    assert not {"provider", "max_tokens", "max_completion_tokens", "usage"} & set(request.fields)
    assert all(warning.isascii() and warning.isprintable() for warning in request.warnings)
    json.loads(msgspec.json.encode(dict(request.fields)))


@given(st.binary(max_size=200), HEADERS)
def test_any_bytes(body: bytes, headers: dict[str, str]) -> None:
    """Noise is refused."""
    parse_or_refuse(body, headers)


@given(st.dictionaries(NAMES, VALUES, max_size=8), HEADERS)
def test_any_json(members: dict[str, Any], headers: dict[str, str]) -> None:
    """Known names with senseless values are refused or harmless."""
    parse_or_refuse(json.dumps(members).encode(), headers)


@given(MESSAGES, st.dictionaries(NAMES, VALUES, max_size=3), HEADERS, st.booleans())
def test_nearly_valid_requests(
    messages: list[object], members: dict[str, Any], headers: dict[str, str], escaped: bool
) -> None:
    """A model and messages, and anything beside them, in either spelling of JSON."""
    whole = {**members, "model": "k", "messages": messages}
    parse_or_refuse(json.dumps(whole, ensure_ascii=escaped).encode(), headers)


@given(st.integers(1, 3000), st.integers(0, 3000), st.sampled_from([b"[", b'{"a":', b'[{"b":']))
def test_any_nesting(opened: int, closed: int, opener: bytes) -> None:
    """Deep, unbalanced or both: never a RecursionError."""
    closer = {b"[": b"]", b'{"a":': b"}", b'[{"b":': b"}]"}[opener]
    for place in (b'{"model":"k","x":%s}', b'{"model":"k","messages":[{"role":"user","content":%s}]}'):
        parse_or_refuse(place % (opener * opened + b"1" + closer * closed), {})


@given(st.binary(max_size=30), st.integers(0, 90))
def test_any_damage_to_a_valid_body(noise: bytes, at: int) -> None:
    """Bytes lost and put in their place."""
    body = json.dumps(
        {"model": "k", "messages": [{"role": "user", "content": "größe"}], "n": 2, "stop": ["a"]}
    ).encode()
    parse_or_refuse(body[:at] + noise + body[at + len(noise) :], {})


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\\"\b\f\n\r\t\x7f', min_codepoint=32)))
def test_text_is_measured_as_utf8(text: str) -> None:
    r"""Escaped or not, the size is that of the text: ``\uXXXX`` is no six bytes."""
    size = len(text.encode()) + 2
    assert text_bytes(Raw(json.dumps(text).encode())) == size
    assert text_bytes(Raw(json.dumps(text, ensure_ascii=False).encode())) == size


@given(st.dictionaries(TEXT, VALUES, max_size=6), st.booleans())
def test_only_usage_changes(members: dict[str, Any], escaped: bool) -> None:
    """Every other member of an answer keeps its bytes and its place."""
    body = json.dumps(members, ensure_ascii=escaped).encode()
    before = msgspec.json.decode(body, type=dict[str, Raw])
    after = msgspec.json.decode(render_answer(body, Raw(b'{"ours":1}')), type=dict[str, Raw])
    assert bytes(after["usage"]) == b'{"ours":1}'
    assert [name for name in after if name in before] == list(before)
    for name, value in before.items():
        if name != "usage":
            assert bytes(after[name]) == bytes(value)


@given(
    st.integers(0, 10**24),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.none() | st.integers(0, 10**6),
    VALUES,
)
def test_cost_and_totals_read_back_exactly(
    pico: int, prompt: int, completion: int, cached: int | None, original: object
) -> None:
    """Whatever the provider's own usage was: the cost is the amount, and unknown members are still there."""
    usage = Usage.from_wire(prompt=prompt, completion=completion, cached=cached)
    text = bytes(render_usage(usage, Money(pico), original)).decode()
    read = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    assert Money.from_usd(read["cost"]) == Money(pico)
    assert read["total_tokens"] == prompt + completion
    assert ("cached_tokens" in read.get("prompt_tokens_details", {})) == (cached is not None)
    if isinstance(original, dict):
        assert set(original) - {"cached_tokens", "prompt_tokens_details", "completion_tokens_details"} <= set(read)
