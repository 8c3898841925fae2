"""The gateway's own words in a request are read exactly and never reach an upstream."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import NO_PREFERENCES, InferenceRequest, ProviderPreferences, Sort
from gateway.core.money import UnitPrice
from gateway.core.refusal import RefusedError
from gateway.surfaces.chat_completions import parse


def raw(members: str) -> bytes:
    return b'{"model":"k","messages":[{"role":"user","content":"x"}]' + (f",{members}}}" if members else "}").encode()


def parsed(headers: dict[str, str] | None = None, **members: object) -> InferenceRequest:
    return parse(raw(json.dumps(members)[1:-1]), headers=headers or {})


def param_of(headers: dict[str, str] | None = None, **members: object) -> str | None:
    with pytest.raises(RefusedError) as caught:
        parsed(headers, **members)
    return caught.value.refusal.param


def test_preferences_as_on_openrouter() -> None:
    """Provider names compare without case, prices are exact, and the member does not travel on."""
    request = parsed(
        provider={
            "order": ["EvoLink", "Moonshot", "evolink"],
            "only": ["evolink", "moonshot"],
            "ignore": ["CometAPI"],
            "allow_fallbacks": False,
            "sort": "latency",
            "max_price": {"prompt": 0.6, "completion": "2.5"},
        }
    )
    assert request.preferences == ProviderPreferences(
        order=("evolink", "moonshot"),
        only=frozenset({"evolink", "moonshot"}),
        ignore=frozenset({"cometapi"}),
        allow_fallbacks=False,
        sort=Sort.LATENCY,
        max_prompt=UnitPrice.from_usd_per_million("0.6"),
        max_completion=UnitPrice.from_usd_per_million("2.5"),
    )
    assert "provider" not in request.fields
    assert request.warnings == ()


def test_no_preferences() -> None:
    """Absent, null and empty mean the same."""
    assert parsed().preferences is NO_PREFERENCES
    assert parsed(provider=None).preferences is NO_PREFERENCES
    assert parsed(provider={}).preferences == NO_PREFERENCES
    assert parsed(provider=dict.fromkeys(("order", "only", "sort", "max_price"))).preferences == NO_PREFERENCES


def test_preferences_that_only_others_know_are_ignored_aloud() -> None:
    """A client of OpenRouter moves here without an edit."""
    request = parsed(provider={"data_collection": "deny", "max_price": {"image": 1}}, transforms=[], models=["a"])
    assert request.warnings == (
        "`provider.data_collection` was ignored",
        "`provider.max_price.image` was ignored",
        "`models` was ignored: only `model` is tried",
        "`transforms` was ignored: messages are never changed",
    )
    assert set(request.fields) == {"model", "messages"}


def test_a_warning_is_one_line_of_ascii() -> None:
    """It travels in a header, and its words are the client's."""
    (warning,) = parsed(provider={"a\r\nset-cookie: é": 1}).warnings
    assert warning == "`provider.a\\r\\nset-cookie: \\u00e9` was ignored"


@pytest.mark.parametrize(
    ("written", "price"),
    [
        ("0.6", "0.6"),
        ("1e-1", "0.1"),
        ("0.30000000000000004", "0.3"),
        ("0.0000001", "0"),
        ('" 0.55 "', "0.55"),
        ("1e999999999", "1000000000"),
        ('"1e999"', "1000000000"),
    ],
)
def test_a_largest_price_is_read_from_its_text(written: str, price: str) -> None:
    """Never through a float; finer than any price rounds down, which admits the same prices."""
    request = parse(raw(f'"provider":{{"max_price":{{"prompt":{written}}}}}'), headers={})
    assert request.preferences.max_prompt == UnitPrice.from_usd_per_million(price)


@pytest.mark.parametrize("price", ["", "free", "-1", -1, "nan", "Infinity", [], True, "9" * 41])
def test_a_largest_price_that_is_none(price: object) -> None:
    """Refused by its path."""
    assert param_of(provider={"max_price": {"completion": price}}) == "provider.max_price.completion"


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ("evolink", "provider"),
        ({"order": "evolink"}, "provider.order"),
        ({"only": [5]}, "provider.only"),
        ({"ignore": ["a"] * 65}, "provider.ignore"),
        ({"allow_fallbacks": "no"}, "provider.allow_fallbacks"),
        ({"sort": "beauty"}, "provider.sort"),
        ({"max_price": 1}, "provider.max_price"),
    ],
)
def test_preferences_of_a_wrong_shape(provider: object, param: str) -> None:
    """A preference that cannot be followed is not silently dropped."""
    assert param_of(provider=provider) == param


def test_the_conversation_by_body_or_header() -> None:
    """The body's word goes before the header's, and stays: Moonshot knows it too."""
    header = {"x-session-id": " s1 "}
    assert parsed().conversation is None
    assert parsed(header).conversation == "s1"
    request = parsed(header, prompt_cache_key="k1")
    assert request.conversation == "k1"
    assert bytes(request.fields["prompt_cache_key"]) == b'"k1"'
    assert parsed(header, prompt_cache_key="").conversation == "s1"
    assert param_of(prompt_cache_key=5) == "prompt_cache_key"
    assert param_of({"x-session-id": "s" * 513}) == "x-session-id"


def test_the_cache_lifetime_of_the_request_is_what_writes_cost() -> None:
    """The answer does not repeat it, so the request's is kept (providers §1.9)."""
    assert parsed().cache_ttl == "5m"
    request = parsed(prompt_cache_options={"mode": "implicit", "ttl": "1h"})
    assert request.cache_ttl == "1h"
    assert "prompt_cache_options" in request.fields
    assert param_of(prompt_cache_options={"ttl": "1d"}) == "prompt_cache_options.ttl"
    assert param_of(prompt_cache_options={"mode": "explicit"}) == "prompt_cache_options.mode"


def test_tags() -> None:
    """Spaces around a tag do not count; a value may hold an equals sign and, as UTF-8, any letter."""
    header = "team=core, run.id = a=b ,note=größe,empty=,".encode().decode("latin-1")
    assert parsed({"x-gateway-tags": header}).tags == {"team": "core", "run.id": "a=b", "note": "größe", "empty": ""}
    assert parsed({"x-gateway-tags": " "}).tags == {}
    assert parsed({"x-gateway-tags": "note=\xe9"}).tags == {"note": "é"}


@pytest.mark.parametrize(
    "header",
    [
        "team",
        "=core",
        "te am=core",
        "té=core",
        f"{'k' * 65}=v",
        f"k={'v' * 129}",
        "k=\x00",
        "k=a\tb",
        "k=1,k=2",
        ",".join(f"k{i}=v" for i in range(17)),
    ],
)
def test_tags_that_are_none(header: str) -> None:
    """The header is named as the field."""
    assert param_of({"x-gateway-tags": header}) == "x-gateway-tags"
