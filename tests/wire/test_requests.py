"""What is sent upstream: the client's own bytes, but for what this provider says otherwise (providers §1.3)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest, Surface
from gateway.providers import DIALECTS, dialect
from gateway.providers.dialect import RenderedCall

MESSAGES = '[ {"role": "user",  "content": "H\\u00e9\\ud83d\\ude00llo\\n", "unknown": 1e400} ]'
KIMI = ("moonshot", "cometapi", "evolink")


def deployment(*capabilities: str, sampling_fixed: bool = False) -> Deployment:
    return Deployment(
        provider="somewhere",
        model="kimi-k2-thinking",
        upstream="k2/thinking",
        context=262_144,
        max_output=262_144,
        capabilities=frozenset(capabilities),
        sampling_fixed=sampling_fixed,
    )


def request(
    members: dict[str, Any] | None = None,
    *,
    messages: str = MESSAGES,
    stream: bool = False,
    conversation: str | None = None,
) -> InferenceRequest:
    fields = {"model": msgspec.Raw(b'"kimi-thinking"'), "messages": msgspec.Raw(messages.encode())}
    fields |= {name: msgspec.Raw(json.dumps(value).encode()) for name, value in (members or {}).items()}
    return InferenceRequest(
        surface=Surface.CHAT_COMPLETIONS,
        model="kimi-k2-thinking",
        model_asked="kimi-thinking",
        fields=fields,
        stream=stream,
        conversation=conversation,
    )


def render(
    name: str, members: dict[str, Any] | None = None, *, on: Deployment | None = None, **more: Any
) -> tuple[RenderedCall, dict[str, Any]]:
    call = dialect(name).render_request(request(members, **more), on or deployment(), 4096)
    return call, json.loads(call.body)


every = pytest.mark.parametrize("name", DIALECTS)
kimi = pytest.mark.parametrize("name", KIMI)


@every
def test_messages_travel_byte_for_byte(name: str) -> None:
    """Spaces, escapes and numbers no double can hold included; only the model's name is another."""
    call, body = render(name)
    assert MESSAGES.encode() in call.body
    assert (call.path, body["model"], call.warnings) == ("/chat/completions", "k2/thinking", ())


@every
def test_unknown_members_pass(name: str) -> None:
    """A newer model's member needs no change here."""
    _, body = render(name, {"brand_new": {"a": [1]}})
    assert body["brand_new"] == {"a": [1]}


@pytest.mark.parametrize("asked", [{}, {"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "n": 1}])
@every
def test_the_output_limit_is_always_sent_once_under_the_dialects_name(name: str, asked: dict[str, Any]) -> None:
    """Moonshot deprecates ``max_tokens``; the others know nothing else."""
    _, body = render(name, asked)
    limits = {member: body[member] for member in ("max_tokens", "max_completion_tokens") if member in body}
    assert limits == {"max_completion_tokens" if name == "moonshot" else "max_tokens": 4096}


@every
def test_a_stream_is_always_asked_for_its_usage(name: str) -> None:
    """Also where the client declined it; other stream options stay, and nothing of it is sent without a stream."""
    for options in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
        _, body = render(name, options, stream=True)
        assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    _, body = render(name, {"stream": True, "stream_options": {"chunk_size": 5}}, stream=True)
    assert body["stream_options"] == {"chunk_size": 5, "include_usage": True}
    _, body = render(name, {"stream": False, "stream_options": {"include_usage": True}})
    assert body.keys().isdisjoint({"stream", "stream_options"})


DROPPED = {
    "audio": {"voice": "x"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"5": 1},
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "reasoning": {"effort": "high"},
    "seed": 7,
    "service_tier": "flex",
    "store": True,
    "user": "anna",
    "web_search_options": {"x": 1},
    "logprobs": True,
    "top_logprobs": 3,
    "thinking": {"type": "enabled"},
    "reasoning_effort": "high",
    "prompt_cache_options": {"mode": "implicit", "ttl": "1h"},
}


@pytest.mark.parametrize("member", DROPPED)
@kimi
def test_what_a_provider_does_not_know_is_left_out_and_said(name: str, member: str) -> None:
    """One warning each, naming the member, the provider and the model."""
    call, body = render(name, {member: DROPPED[member]})
    assert member not in body
    assert call.warnings == (f"{member} was not sent: somewhere does not take it for kimi-k2-thinking",)


@pytest.mark.parametrize("member", DROPPED)
def test_a_generic_provider_is_told_everything(member: str) -> None:
    """What a server of one's own takes, its operator knows best."""
    call, body = render("openai", {member: DROPPED[member]})
    assert (body[member], call.warnings) == (DROPPED[member], ())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("seed", None),
        ("user", None),
        ("logit_bias", {}),
        ("logprobs", False),
        ("store", False),
        ("parallel_tool_calls", True),
        ("functions", []),
        ("service_tier", "auto"),
    ],
)
@kimi
def test_leaving_out_what_asks_for_nothing_is_not_worth_a_word(name: str, member: str, value: object) -> None:
    """Client libraries send their defaults; a warning on every request is none."""
    call, body = render(name, {member: value})
    assert member not in body
    assert call.warnings == ()


@pytest.mark.parametrize(
    ("member", "capability"),
    [
        ("thinking", "thinking"),
        ("reasoning_effort", "reasoning_effort"),
        ("logprobs", "logprobs"),
        ("top_logprobs", "logprobs"),
    ],
)
@kimi
def test_a_capable_deployment_gets_the_member(name: str, member: str, capability: str) -> None:
    """Newer models take what kimi-k2-thinking does not."""
    call, body = render(name, {member: DROPPED[member]}, on=deployment(capability))
    assert (body[member], call.warnings) == (DROPPED[member], ())


def test_cache_options_only_go_to_a_provider_that_knows_them() -> None:
    """Moonshot by capability; an aggregator never, since it would charge for them at its own guess."""
    options = {"prompt_cache_options": {"mode": "implicit", "ttl": "1h"}}
    able = deployment("prompt_cache_options")
    assert {name: "prompt_cache_options" in render(name, options, on=able)[1] for name in DIALECTS} == {
        "moonshot": True,
        "cometapi": False,
        "evolink": False,
        "openai": True,
    }


def test_the_conversations_name_goes_only_to_a_provider_that_knows_it() -> None:
    """As the client sent it; Moonshot is also told a name that came in a header. Silence elsewhere is no loss."""
    for name, expected in (("moonshot", "k1"), ("cometapi", None), ("evolink", None), ("openai", "k1")):
        call, body = render(name, {"prompt_cache_key": "k1"}, conversation="k1")
        assert (body.get("prompt_cache_key"), call.warnings) == (expected, ())
    assert render("moonshot", conversation='s"1')[1]["prompt_cache_key"] == 's"1'
    assert "prompt_cache_key" not in render("openai", conversation="s1")[1]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"temperature": 0.2}, {}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"temperature": 1.0, "top_p": 0.95, "n": 1}, {"temperature": 1.0, "top_p": 0.95, "n": 1}),
        ({"top_p": 1.0, "n": 2, "presence_penalty": 0.5, "frequency_penalty": -1}, {}),
        ({"presence_penalty": 0, "frequency_penalty": 0.0}, {"presence_penalty": 0, "frequency_penalty": 0.0}),
        ({"temperature": 0.6, "thinking": {"type": "disabled"}}, {"temperature": 0.6}),
        ({"temperature": 1.0, "thinking": {"type": "disabled"}}, {}),
    ],
)
@every
def test_fixed_sampling_is_never_contradicted(name: str, asked: dict[str, Any], sent: dict[str, Any]) -> None:
    """Any other value is a 400 there, so it is left out, with a warning for each; the fixed value itself passes."""
    call, body = render(name, asked, on=deployment("thinking", sampling_fixed=True))
    sampling = {"temperature", "top_p", "n", "presence_penalty", "frequency_penalty"}
    assert {member: value for member, value in body.items() if member in sampling} == sent
    assert len(call.warnings) == len(asked.keys() & sampling) - len(sent)


@every
def test_legal_sampling_is_never_rewritten(name: str) -> None:
    """kimi-k2-thinking takes what it is given (providers §7, row 6)."""
    asked = {"temperature": 0.2, "top_p": 0.5, "n": 2, "presence_penalty": 0.5, "frequency_penalty": -1}
    call, body = render(name, asked)
    assert asked.items() <= body.items()
    assert call.warnings == ()


DEVELOPER = '[{"role":"developer","content":"be  brief"},{"role": "user",  "content":"who is a \\"developer\\"?"}]'
NAMED = '[{"role":"user","name":"developer","content":"hi"}]'


@kimi
def test_a_developer_message_becomes_a_system_message(name: str) -> None:
    """Only that word changes: another message that merely mentions it keeps its bytes."""
    call, body = render(name, messages=DEVELOPER)
    assert body["messages"][0] == {"role": "system", "content": "be  brief"}
    assert json.loads(NAMED) == render(name, messages=NAMED)[1]["messages"]
    assert b'{"role": "user",  "content":"who is a \\"developer\\"?"}' in call.body


def test_a_generic_provider_may_know_developers() -> None:
    """There the role passes."""
    assert DEVELOPER.encode() in render("openai", messages=DEVELOPER)[0].body


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param({"reasoning": "hm"}, {"reasoning_content": "hm"}, id="renamed"),
        pytest.param({"reasoning": ""}, {"reasoning_content": ""}, id="the empty string counts"),
        pytest.param({"reasoning": "hm", "reasoning_content": "x"}, {"reasoning_content": "x"}, id="ours stands"),
        pytest.param({"reasoning": "hm", "reasoning_content": ""}, {"reasoning_content": ""}, id="ours, even empty"),
        pytest.param({"reasoning": None}, {}, id="null is nothing"),
        pytest.param(
            {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"text": "m"}, 5]},
            {"reasoning_content": "hm"},
            id="details are joined",
        ),
        pytest.param({"reasoning_details": [{"type": "reasoning.encrypted"}]}, {}, id="details without a text"),
        pytest.param(
            {"reasoning": "hm", "reasoning_details": [{"text": "other"}]}, {"reasoning_content": "hm"}, id="both"
        ),
        pytest.param({"reasoning_content": ""}, {"reasoning_content": ""}, id="nothing to do"),
    ],
)
@kimi
def test_reasoning_goes_under_kimis_name(name: str, message: dict[str, Any], expected: dict[str, Any]) -> None:
    """A tool loop whose reasoning is lost is a 400, or a worse answer (providers §8.1)."""
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [{"role": "assistant", "tool_calls": [call], **message}, {"role": "user", "reasoning": "mine"}]
    _, body = render(name, messages=json.dumps(history))
    assert body["messages"] == [{"role": "assistant", "tool_calls": [call], **expected}, history[1]]


def test_a_generic_provider_gets_the_alias_it_sent() -> None:
    """Newer vLLM itself says ``reasoning``."""
    history = '[{"role":"assistant","reasoning":"hm"}]'
    assert history.encode() in render("openai", messages=history)[0].body
