"""The chat completions surface: a body is understood member by member, and what is not understood passes untouched.

``parse`` and ``check`` come before any upstream, the renderings after; all of them are functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.exchange import InferenceRequest, Surface
from gateway.surfaces.bodies import (
    BOOLEAN,
    NESTING_MAX,
    OBJECT,
    STRING,
    STRINGS,
    Members,
    integer_between,
    is_deeper,
    is_string,
    kind_of,
    nested_too_deep,
    number_between,
    open_body,
    present,
    text_bytes,
)
from gateway.surfaces.chat_answers import render_answer, render_closing_chunk, render_usage
from gateway.surfaces.conversation import read_conversation
from gateway.surfaces.errors import HEARTBEAT, bounded, invalid, refusal_of, render_error, render_stream_error, shown
from gateway.surfaces.extensions import take_extensions
from gateway.surfaces.fingerprint import fingerprint_of
from gateway.surfaces.fitness import check, output_limit_for
from gateway.surfaces.listing import render_model, render_models, render_plan_header, render_route
from gateway.surfaces.tools import read_tools

__all__ = [
    "HEARTBEAT",
    "check",
    "output_limit_for",
    "parse",
    "refusal_of",
    "render_answer",
    "render_closing_chunk",
    "render_error",
    "render_model",
    "render_models",
    "render_plan_header",
    "render_route",
    "render_stream_error",
    "render_usage",
]

MODEL_CHARACTERS_MAX: Final = 256
ANSWERS_MAX: Final = 5
OUTPUT_LIMIT_MAX: Final = 2**31 - 1
STOPS_MAX: Final = 5
STOP_BYTES_MAX: Final = 32
TOP_LOGPROBS_MAX: Final = 20

_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_FORMATS: Final = ("text", "json_object", "json_schema")
_OPTIONAL: Final = (
    "logit_bias",
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "reasoning",
    "reasoning_effort",
    "safety_identifier",
    "seed",
    "store",
    "thinking",
    "user",
)


def parse(body: bytes, *, headers: Mapping[str, str], seed: int = 0) -> InferenceRequest:
    """The request that a body and its headers (names in lower case) make. Raises RefusedError and nothing else.

    ``model`` is as asked until the catalogue has resolved it. ``max_tokens`` and ``max_completion_tokens`` leave the
    fields for ``output_limit``, which counts for each of ``n`` answers: ``n`` up to 5 is allowed, and whoever
    estimates multiplies the output by it. A member that is null is absent; unknown members pass. ``seed`` is this
    gateway's secret, 64 bits, that its fingerprints are made with.
    """
    members = open_body(body)
    messages = present(members, "messages")
    if is_deeper((value for name, value in members.items() if name != "messages"), NESTING_MAX - 1):
        raise nested_too_deep()
    model = _model(members)
    extensions = take_extensions(members, headers)
    if messages is None:
        raise invalid("messages", "`messages` is missing; send a list of at least one message.")
    conversation = read_conversation(messages)
    tools = read_tools(members)
    output_limit = _take_output_limit(members)
    n = _check_sampling(members)
    _check_stop(members)
    format_needs = _format_needs(members, is_partial="partial" in conversation.needs)
    stream, include_usage = _streaming(members)
    for name in _OPTIONAL:
        present(members, name)
    messages_bytes = conversation.input_bytes(messages)
    tools_bytes = text_bytes(members["tools"]) if "tools" in members else 0
    return InferenceRequest(
        surface=Surface.CHAT_COMPLETIONS,
        model=model,
        model_asked=model,
        fields=members,
        stream=stream,
        include_usage=stream and (include_usage or extensions.asks_usage),
        n=n,
        output_limit=output_limit,
        needs=frozenset(conversation.needs | tools.needs | format_needs | _logprobs_needs(members)),
        input_bytes=messages_bytes + tools_bytes,
        fingerprint=fingerprint_of(
            conversation, members.get("tools"), tools_bytes=tools_bytes, messages_bytes=messages_bytes, seed=seed
        ),
        preferences=extensions.preferences,
        tags=extensions.tags,
        conversation=extensions.conversation,
        cache_ttl=extensions.cache_ttl,
        asks_plan=extensions.asks_plan,
        warnings=bounded((*extensions.warnings, *tools.warnings)),
    )


def _model(members: Members) -> str:
    model = STRING.optional(members, "model")
    if model is None or not model.strip():
        raise invalid("model", "`model` is missing; name one of GET /v1/models.")
    if len(model) > MODEL_CHARACTERS_MAX:
        raise invalid("model", f"`model` is longer than {MODEL_CHARACTERS_MAX} characters.")
    return model


def _take_output_limit(members: Members) -> int | None:
    """The client's limit by either name; the dialect writes the one its provider knows."""
    given = [integer_between(members, name, 1, OUTPUT_LIMIT_MAX) for name in _LIMITS]
    for name in _LIMITS:
        members.pop(name, None)
    older, newer = given
    if older is not None and newer is not None and older != newer:
        raise invalid(
            "max_tokens", f"`max_tokens` is {older} and `max_completion_tokens` {newer}; send one, or the same."
        )
    return newer if older is None else older


def _check_sampling(members: Members) -> int:
    """How many answers are asked for; temperatures above 1 are for ``check``, which knows the candidates."""
    number_between(members, "temperature", 0, 2)
    number_between(members, "top_p", 0, 1)
    number_between(members, "presence_penalty", -2, 2)
    number_between(members, "frequency_penalty", -2, 2)
    n = integer_between(members, "n", 1, ANSWERS_MAX)
    return 1 if n is None else n


def _check_stop(members: Members) -> None:
    stop = present(members, "stop")
    if stop is None:
        return
    if is_string(stop):
        stops = [STRING.of(stop, "stop")]
    elif kind_of(stop) == "a list":
        stops = STRINGS.of(stop, "stop")
    else:
        raise invalid("stop", f"`stop` must be a string or a list of strings; it is {kind_of(stop)}.")
    if len(stops) > STOPS_MAX:
        raise invalid("stop", f"`stop` has {len(stops)} strings; at most {STOPS_MAX} are allowed.")
    for each in stops:
        if len(each.encode()) > STOP_BYTES_MAX:
            raise invalid("stop", f"`stop` has a string of {len(each.encode())} bytes; at most {STOP_BYTES_MAX} fit.")


def _format_needs(members: Members, *, is_partial: bool) -> set[str]:
    wanted = OBJECT.optional(members, "response_format")
    if wanted is None:
        return set()
    kind = STRING.optional(wanted, "type", path="response_format.")
    if kind not in _FORMATS:
        what = "is missing" if kind is None else f"is {shown(kind)}"
        raise invalid(
            "response_format.type", f'`response_format.type` {what}; it is "text", "json_object" or "json_schema".'
        )
    if kind == "text":
        return set()
    if kind == "json_object" and is_partial:
        raise invalid("response_format", "`response_format` json_object cannot be combined with a partial message.")
    if kind == "json_schema":
        _check_schema(OBJECT.optional(wanted, "json_schema", path="response_format."))
    return {kind}


def _check_schema(named: Members | None) -> None:
    path = "response_format.json_schema"
    if named is None:
        raise invalid(path, f"`{path}` is missing; send its name and schema.")
    if not STRING.optional(named, "name", path=f"{path}."):
        raise invalid(f"{path}.name", f"`{path}.name` is missing.")
    OBJECT.optional(named, "schema", path=f"{path}.")


def _logprobs_needs(members: Members) -> set[str]:
    wanted = BOOLEAN.optional(members, "logprobs")
    top = integer_between(members, "top_logprobs", 0, TOP_LOGPROBS_MAX)
    return {"logprobs"} if wanted or top else set()


def _streaming(members: Members) -> tuple[bool, bool]:
    """Whether to stream, and whether the client asked for the closing usage chunk."""
    stream = BOOLEAN.optional(members, "stream") or False
    options = OBJECT.optional(members, "stream_options")
    include = None
    if options is not None:
        include = BOOLEAN.optional(options, "include_usage", path="stream_options.")
    if not stream:
        members.pop("stream_options", None)
    return stream, include or False
