"""An answer leaves as it came, but for a usage that says what was consumed and what it cost."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from msgspec import Raw

from gateway.core.money import Money
from gateway.core.usage import Usage
from gateway.surfaces.chat_completions import render_answer, render_closing_chunk, render_usage

COST = Money.from_usd("0.000001234")
USAGE = Usage.from_wire(prompt=1336, cached=1280, completion=31, reasoning=12)


def rendered(usage: Usage, original: object = None) -> dict[str, object]:
    decoded = json.loads(bytes(render_usage(usage, COST, original)), parse_float=Decimal)
    assert isinstance(decoded, dict)
    return decoded


def test_usage_in_openais_members() -> None:
    """Inclusive totals, the parts in details, and the exact cost."""
    assert rendered(USAGE) == {
        "prompt_tokens": 1336,
        "completion_tokens": 31,
        "total_tokens": 1367,
        "prompt_tokens_details": {"cached_tokens": 1280},
        "completion_tokens_details": {"reasoning_tokens": 12},
        "cost": Decimal("0.000001234"),
    }


def test_absent_is_not_zero() -> None:
    """What the provider did not tell is not in the answer, even where it said null (L14)."""
    original = {"prompt_tokens": 8, "cached_tokens": None, "prompt_tokens_details": None}
    usage = Usage.from_wire(prompt=8, completion=292)
    assert set(rendered(usage, original)) == {"prompt_tokens", "completion_tokens", "total_tokens", "cost"}


def test_a_reported_zero_stays() -> None:
    """Told and zero."""
    usage = Usage.from_wire(prompt=8, completion=2, cached=0, reasoning=0)
    assert rendered(usage)["prompt_tokens_details"] == {"cached_tokens": 0}
    assert rendered(usage)["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_unknown_members_of_usage_stay() -> None:
    """Also inside the details; ours replace only what they mean."""
    original = {
        "prompt_tokens": 9,
        "completion_tokens": 31,
        "total_tokens": 40,
        "latency_checkpoint": {"a": [1, None]},
        "prompt_tokens_details": {"audio_tokens": 3, "cached_tokens": 5},
        "cached_tokens": 7,
        "cost": 99,
    }
    usage = Usage.from_wire(prompt=9, cached=5, completion=31)
    assert rendered(usage, original) == {
        "prompt_tokens": 9,
        "completion_tokens": 31,
        "total_tokens": 40,
        "latency_checkpoint": {"a": [1, None]},
        "prompt_tokens_details": {"audio_tokens": 3, "cached_tokens": 5},
        "cached_tokens": 5,
        "cost": Decimal("0.000001234"),
    }


@pytest.mark.parametrize("told", [True, False])
def test_cache_writes(told: bool) -> None:
    """Shown where there were some, or where the provider speaks of them."""
    usage = Usage.from_wire(prompt=9, cached=0, cache_write=4, completion=1)
    original = {"prompt_tokens_details": {"cache_write_tokens": 4}} if told else None
    assert rendered(usage, original)["prompt_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 4}


@pytest.mark.parametrize("original", [None, [], "none", 5, {"prompt_tokens_details": 5}])
def test_an_original_of_any_shape(original: object) -> None:
    """What a provider calls usage need not be any."""
    assert rendered(USAGE, original)["total_tokens"] == 1367


@pytest.mark.parametrize("amount", ["0", "12", "0.000000000001", "123456789.000000000001", "0.1"])
def test_cost_is_a_plain_exact_number(amount: str) -> None:
    """No exponent, no float: the text is the amount."""
    text = bytes(render_usage(USAGE, Money.from_usd(amount), None)).decode()
    assert text.endswith(f'"cost":{amount}}}')


def test_an_answer_keeps_every_other_byte() -> None:
    """Numbers, escapes and the order of members as the upstream wrote them."""
    body = (
        b'{"id":"cmpl-1","usage":{"x":1},"choices":[{"message":{"content":"\\u00e9","reasoning_content":""}}],"t":1.50}'
    )
    expected = body.replace(b'{"x":1}', b'{"ours":2}')
    assert render_answer(body, Raw(b'{"ours":2}')) == expected


def test_an_answer_without_usage_gains_it() -> None:
    """At the end."""
    assert render_answer(b'{"id": "a"}', Raw(b"{}")) == b'{"id":"a","usage":{}}'


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_an_answer_that_is_no_object(body: bytes) -> None:
    """The attempt has failed; whoever renders it all the same is told so."""
    with pytest.raises(ValueError):  # noqa: PT011
        render_answer(body, Raw(b"{}"))


def closing(original: bytes | None) -> object:
    event = render_closing_chunk(original, upstream_id="cmpl-1", model="k", created=5, usage_json=Raw(b'{"u":1}'))
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event[6:])


WRITTEN = {
    "id": "cmpl-1",
    "object": "chat.completion.chunk",
    "created": 5,
    "model": "k",
    "choices": [],
    "usage": {"u": 1},
}


def test_a_closing_chunk_is_written_where_there_was_none() -> None:
    """In the form of the other chunks."""
    assert closing(None) == WRITTEN
    assert closing(b"[DONE]") == WRITTEN


def test_the_upstreams_closing_chunk_keeps_its_members() -> None:
    """But not the choices of a chunk that was relayed already."""
    original = (
        b'{"id":"x","system_fingerprint":"fpv0_1","choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1}}'
    )
    assert closing(original) == {"id": "x", "system_fingerprint": "fpv0_1", "choices": [], "usage": {"u": 1}}
