"""A request leaves with the bytes it came with: members are spliced in, out and over, never decoded and rebuilt.

Only messages that use a word the provider does not know (the ``developer`` role, an alias of ``reasoning_content``)
are opened, and of those only that member changes. Everything that is left out is said in a warning, unless leaving
it out changes nothing. Source: providers §1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.providers.dialect import RenderedCall

_TRUE: Final = msgspec.Raw(b"true")
_REASONING: Final = b'"reasoning'
_LIMITS: Final = frozenset({"max_tokens", "max_completion_tokens"})

OPENAI_ONLY: Final = frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "include_reasoning",
        "logit_bias",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "reasoning",
        "seed",
        "service_tier",
        "store",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Members of OpenAI's and OpenRouter's APIs that no Kimi provider documents."""

BY_CAPABILITY: Final[Mapping[str, str]] = MappingProxyType(
    {
        "logprobs": "logprobs",
        "top_logprobs": "logprobs",
        "prompt_cache_options": "prompt_cache_options",
        "reasoning_effort": "reasoning_effort",
        "thinking": "thinking",
    }
)
"""Members that only some deployments take, with the capability that says so."""

_SAYS_NOTHING: Final[Mapping[str, frozenset[bytes]]] = MappingProxyType(
    {
        "function_call": frozenset({b'"none"', b'"auto"'}),
        "functions": frozenset({b"[]"}),
        "logit_bias": frozenset({b"{}"}),
        "logprobs": frozenset({b"false"}),
        "metadata": frozenset({b"{}"}),
        "modalities": frozenset({b'["text"]'}),
        "parallel_tool_calls": frozenset({b"true"}),
        "service_tier": frozenset({b'"auto"', b'"default"'}),
        "store": frozenset({b"false"}),
        "top_logprobs": frozenset({b"0"}),
        "verbosity": frozenset({b'"medium"'}),
    }
)
"""Values that ask for what happens anyway."""

_UNANNOUNCED: Final = frozenset({"prompt_cache_key", "safety_identifier"})
"""Members whose absence changes neither the answer nor its price for the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRules:
    """What a dialect's requests look like.

    ``limit_member`` carries the output limit; ``unknown`` members are left out; those in ``by_capability`` too unless
    the deployment has the capability; ``developer_role`` and ``reasoning_alias`` say whether messages may keep these.
    ``names_conversation``: the conversation's name is worth sending as ``prompt_cache_key``.
    """

    limit_member: str
    by_capability: Mapping[str, str]
    unknown: frozenset[str] = frozenset()
    developer_role: bool = False
    reasoning_alias: bool = False
    names_conversation: bool = False


def render(rules: RequestRules, request: InferenceRequest, deployment: Deployment, output_limit: int) -> RenderedCall:
    """The upstream call of a request under a dialect's rules."""
    assert output_limit > 0
    left_out = _left_out(rules, request.fields, deployment)
    fixed = _unfixable(request.fields) if deployment.sampling_fixed else {}
    members = {
        name: value
        for name, value in request.fields.items()
        if name not in left_out and name not in fixed and name not in _LIMITS
    }
    members["model"] = _raw(deployment.upstream)
    members[rules.limit_member] = _raw(output_limit)
    _set_stream(members, is_stream=request.stream)
    if rules.names_conversation and request.conversation is not None:
        members.setdefault("prompt_cache_key", _raw(request.conversation))
    if (messages := members.get("messages")) is not None:
        members["messages"] = _messages(rules, messages)
    return RenderedCall(
        path="/chat/completions",
        body=msgspec.json.encode(members),
        warnings=(*_warnings(left_out, request.fields, deployment), *fixed.values()),
    )


def _left_out(rules: RequestRules, fields: Mapping[str, msgspec.Raw], deployment: Deployment) -> tuple[str, ...]:
    able = deployment.capabilities
    return tuple(
        name
        for name in fields
        if name in rules.unknown or (name in rules.by_capability and rules.by_capability[name] not in able)
    )


def _warnings(left_out: tuple[str, ...], fields: Mapping[str, msgspec.Raw], deployment: Deployment) -> tuple[str, ...]:
    said = (name for name in left_out if name not in _UNANNOUNCED and not _says_nothing(name, bytes(fields[name])))
    return tuple(f"{name} was not sent: {deployment.provider} does not take it for {deployment.model}" for name in said)


def _says_nothing(name: str, value: bytes) -> bool:
    return value == b"null" or value in _SAYS_NOTHING.get(name, ())


def _unfixable(fields: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    """The sampling members that a model with fixed sampling would refuse, each with its warning (providers §1.3)."""
    thinking = _decoded(fields.get("thinking"))
    is_off = isinstance(thinking, dict) and thinking.get("type") == "disabled"
    fixed = {
        "temperature": 0.6 if is_off else 1.0,
        "top_p": 0.95,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }
    return {
        name: f"{name} was not sent: this model only takes {value}"
        for name, value in fixed.items()
        if name in fields and _decoded(fields[name]) not in (value, None)
    }


def _set_stream(members: dict[str, msgspec.Raw], *, is_stream: bool) -> None:
    """Usage is always asked for: a stream without it would have to be estimated."""
    if not is_stream:
        members.pop("stream", None)
        members.pop("stream_options", None)
        return
    try:
        options = msgspec.json.decode(members.get("stream_options", b"{}"), type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        options = {}
    members["stream"] = _TRUE
    members["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": _TRUE}))


def _messages(rules: RequestRules, messages: msgspec.Raw) -> msgspec.Raw:
    """The same bytes, unless a message says something that the provider would not understand."""
    text = bytes(messages)
    if not (_has_developer(rules, text) or _has_alias(rules, text)):
        return messages
    try:
        parts = msgspec.json.decode(text, type=list[msgspec.Raw])
    except msgspec.DecodeError:
        return messages
    return msgspec.Raw(msgspec.json.encode([_message(rules, part) for part in parts]))


def _message(rules: RequestRules, message: msgspec.Raw) -> msgspec.Raw:
    text = bytes(message)
    developer, alias = _has_developer(rules, text), _has_alias(rules, text)
    if not (developer or alias):
        return message
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return message
    role = bytes(members.get("role", b""))
    if developer and role == b'"developer"':
        members["role"] = msgspec.Raw(b'"system"')
    if alias and role == b'"assistant"':
        _rename_reasoning(members)
    return msgspec.Raw(msgspec.json.encode(members))


def _has_developer(rules: RequestRules, text: bytes) -> bool:
    return not rules.developer_role and b'"developer"' in text


def _has_alias(rules: RequestRules, text: bytes) -> bool:
    """One pass over what may be a megabyte, in which ``reasoning_content`` is to be expected."""
    if rules.reasoning_alias:
        return False
    at = text.find(_REASONING)
    while at >= 0:
        at += len(_REASONING)
        if text.startswith((b'"', b'_details"'), at):
            return True
        at = text.find(_REASONING, at)
    return False


def _rename_reasoning(members: dict[str, msgspec.Raw]) -> None:
    """What other APIs call ``reasoning`` or ``reasoning_details`` goes under Kimi's name, unless that is there."""
    alias = members.pop("reasoning", None)
    details = members.pop("reasoning_details", None)
    if "reasoning_content" in members:
        return
    if alias is not None and bytes(alias).startswith(b'"'):
        members["reasoning_content"] = alias
        return
    parts = _decoded(details)
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if any(isinstance(text, str) for text in texts):
        members["reasoning_content"] = _raw("".join(text for text in texts if isinstance(text, str)))


def _decoded(value: msgspec.Raw | None) -> Any:
    return None if value is None else msgspec.json.decode(value)


def _raw(value: str | int) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
