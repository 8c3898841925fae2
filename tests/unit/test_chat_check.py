"""What the strictest candidate would refuse is refused before anything is sent, and what fits is let through."""

from __future__ import annotations

import json

import pytest

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.surfaces.chat_completions import check, output_limit_for, parse

K2 = Deployment(
    provider="evolink",
    model="kimi-k2-thinking",
    upstream="kimi-k2-thinking",
    context=262_144,
    max_output=262_144,
    capabilities=frozenset({"tools", "json_object"}),
)
SMALL = Deployment(
    provider="moonshot",
    model="kimi-k2-thinking",
    upstream="kimi-k2-thinking",
    context=131_072,
    max_output=65_536,
    capabilities=frozenset({"tools", "json_schema", "images"}),
)
FIXED = Deployment(
    provider="moonshot",
    model="kimi-k3",
    upstream="kimi-k3",
    context=1_048_576,
    max_output=1_048_576,
    capabilities=frozenset({"tools", "tool_choice_required"}),
    sampling_fixed=True,
)
TOOL = {"type": "function", "function": {"name": "look"}}


def request(**members: object) -> InferenceRequest:
    whole = {"model": "k", "messages": [{"role": "user", "content": "x"}], **members}
    return parse(json.dumps(whole).encode(), headers={})


def refused(*deployments: Deployment, estimate: int = 100, **members: object) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        check(request(**members), deployments, input_tokens_estimate=estimate)
    assert caught.value.refusal.http_status == 400
    return caught.value.refusal


def passes(*deployments: Deployment, estimate: int = 100, **members: object) -> bool:
    check(request(**members), deployments, input_tokens_estimate=estimate)
    return True


def test_a_plain_request_fits() -> None:
    """And nobody to serve it is not its fault."""
    assert passes(K2, SMALL)
    assert passes(temperature=2, n=5)


def test_temperatures_above_one_are_refused_where_one_candidate_is_strict() -> None:
    """EvoLink would take 2; a failover to Moonshot would turn that into a 400 (providers §7.17)."""
    assert refused(K2, SMALL, temperature=1.01).param == "temperature"
    assert passes(K2, SMALL, temperature=1)
    assert passes(FIXED, temperature=2), "fixed sampling is not sent a temperature"
    assert refused(FIXED, K2, temperature=2).param == "temperature"


def test_several_answers_need_free_sampling() -> None:
    """Newer models give one."""
    assert passes(K2, n=5)
    assert refused(K2, FIXED, n=2).param == "n"


def test_an_output_limit_that_somebody_can_keep() -> None:
    """Above the smallest is routing's business; above the largest is refused, with the number."""
    assert passes(K2, SMALL, max_tokens=65_537)
    refusal = refused(K2, SMALL, max_tokens=262_145)
    assert refusal.param == "max_tokens"
    assert "at most 262144" in refusal.message


def test_input_and_output_limit_share_the_context() -> None:
    """262,000 and 16,384 do not fit 262,144 (providers §11.14); the message says all three."""
    refusal = refused(K2, SMALL, estimate=262_000, max_tokens=16_384)
    assert refusal.code is RefusalCode.CONTEXT_LENGTH_EXCEEDED
    assert refusal.param == "messages"
    for number in ("262144", "262000", "16384"):
        assert number in refusal.message
    assert passes(K2, SMALL, estimate=200_000, max_tokens=16_384)


def test_an_estimate_is_trusted_to_five_percent() -> None:
    """248,900 x 0.95 = 236,455 leaves room for 25,689; one more is refused."""
    assert passes(K2, estimate=248_900, max_tokens=25_689)
    assert refused(K2, estimate=248_900, max_tokens=25_690).code is RefusalCode.CONTEXT_LENGTH_EXCEEDED


def test_without_an_output_limit_the_input_alone_must_fit() -> None:
    """With room for one token."""
    assert passes(K2, estimate=275_941)
    assert refused(K2, estimate=275_942).code is RefusalCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": "x", "partial": True}]}, "messages"),
    ],
)
def test_what_nobody_can_do_names_the_field(members: dict[str, object], param: str) -> None:
    """A capability that no candidate has is the request's fault."""
    with pytest.raises(RefusedError) as caught:
        check(request(**members), (K2, SMALL), input_tokens_estimate=100)
    assert caught.value.refusal.param == param


def test_what_somebody_can_do_is_left_to_routing() -> None:
    """Unless no single one can do all of it."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "ms://a"}]}]
    assert passes(K2, SMALL, response_format={"type": "json_object"})
    assert passes(K2, SMALL, messages=image)
    refusal = refused(K2, SMALL, messages=image, response_format={"type": "json_object"})
    assert "No single provider" in refusal.message


def test_k2_wants_tool_names_of_three_characters() -> None:
    """Newer models take shorter ones; one strict candidate is enough to refuse."""
    tools = [TOOL, {"type": "function", "function": {"name": "ls"}}]
    assert refused(K2, tools=tools).param == "tools[1].function.name"
    assert refused(FIXED, K2, tools=tools).param == "tools[1].function.name"
    assert passes(FIXED, tools=tools)
    assert refused(K2, tools=[{"name": "x" * 65, "input_schema": {}}]).param == "tools[0].function.name"


@pytest.mark.parametrize(
    ("asked", "deployment", "estimate", "limit"),
    [
        ({"max_tokens": 7}, K2, 100, 7),
        ({}, K2, 100, 32_768),
        ({}, SMALL, 120_000, 11_072),
        ({}, SMALL, 140_000, 1),
    ],
)
def test_the_output_limit_of_a_candidate(
    asked: dict[str, object], deployment: Deployment, estimate: int, limit: int
) -> None:
    """The client's own, else the default as far as the context goes, and never less than one."""
    assert (
        output_limit_for(request(**asked), deployment, default_max_output=32_768, input_tokens_estimate=estimate)
        == limit
    )


def test_the_default_output_limit_respects_the_deployment() -> None:
    """A default above what a deployment answers would be refused by it."""
    limit = output_limit_for(request(), SMALL, default_max_output=100_000, input_tokens_estimate=100)
    assert limit == 65_536
