"""What each provider puts on the wire: bodies, chunks, usage and errors, as bytes; nothing is decided here.

Moonshot reports usage inside the choice of the finish chunk always, and in a closing chunk when asked; with both
spellings of the cached tokens. CometAPI and EvoLink report it at top level, in a stream only when asked, in the
nested spelling alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from gateway.simulator.bill import Price, rounded
from gateway.simulator.faults import Struck
from gateway.simulator.model import Choice, ToolCall
from gateway.simulator.rules import Refusal
from gateway.simulator.tokens import BYTES_PER_TOKEN, count_text

PROVIDERS: Final = ("moonshot", "cometapi", "evolink")
DONE: Final = b"data: [DONE]\n\n"
HTML: Final = b"<html><head><title>%s</title></head><body><center><h1>%s</h1></center></body></html>\n"

Headers = list[tuple[bytes, bytes]]

encode = msgspec.json.encode


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """True counts of one answer. ``writes``: the model bills cache writes, so the report names them."""

    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    writes: bool


class Event(msgspec.Struct, frozen=True, gc=False):
    """One SSE event, and the tokens that the model has generated for it."""

    data: bytes
    output_tokens: int = 0
    reasoning_tokens: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Where usage is told (``places`` within {choice, chunk, finish, body}) and how cached tokens are spelled."""

    places: frozenset[str]
    spelling: str
    zero: bool = False
    inflated: bool = False

    @property
    def told(self) -> bool:
        return bool(self.places)

    @property
    def distorted(self) -> bool:
        return self.zero or self.inflated or self.spelling in ("conflicting", "over_prompt", "none")


# -- usage -----------------------------------------------------------------------------------------------------------


_NATURAL_SPELLING: Final = {"moonshot": "both", "cometapi": "nested", "evolink": "nested"}
_PLACEMENTS: Final = {
    "choice": frozenset({"choice"}),
    "chunk": frozenset({"chunk"}),
    "both": frozenset({"choice", "chunk"}),
    "finish": frozenset({"finish"}),
    "none": frozenset[str](),
}


def report_of(provider: str, *, stream: bool, include_usage: bool, struck: Struck | None) -> Report:
    """How this answer tells its usage: the provider's own way, bent by faults."""
    places = _natural_places(provider, stream=stream, include_usage=include_usage)
    spelling = _NATURAL_SPELLING[provider]
    if struck is None:
        return Report(places=places, spelling=spelling)
    if "usage_placement" in struck:
        places = _PLACEMENTS[struck["usage_placement"].placement]
    if "missing_usage" in struck:
        places = _PLACEMENTS["none"]
    if "cached_spelling" in struck:
        spelling = struck["cached_spelling"].spelling
    return Report(places=places, spelling=spelling, zero="zero_usage" in struck, inflated="inflated_prompt" in struck)


def _natural_places(provider: str, *, stream: bool, include_usage: bool) -> frozenset[str]:
    if not stream:
        return frozenset({"body"})
    places = frozenset({"choice"}) if provider == "moonshot" else frozenset[str]()
    return places | {"chunk"} if include_usage else places


def usage_json(provider: str, usage: Usage, report: Report, *, completion_tokens: int) -> dict[str, Any]:
    """The usage object with ``completion_tokens`` of one choice or of all."""
    prompt, cached = usage.prompt_tokens, usage.cached_tokens
    if report.inflated:
        prompt = prompt * 3 // 2
    if report.zero:
        prompt = cached = completion_tokens = 0
    document: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }
    if report.spelling == "over_prompt":
        cached = prompt + 64
    if report.spelling in ("top", "both", "conflicting", "over_prompt"):
        document["cached_tokens"] = cached
    if report.spelling in ("nested", "both", "conflicting", "over_prompt"):
        nested = cached // 2 if report.spelling == "conflicting" else cached
        document["prompt_tokens_details"] = _details(provider, nested, usage)
    if provider == "cometapi":
        document["claude_cache_creation_5_m_tokens"] = 0
        document["latency_checkpoint"] = {"first_token_ms": 0}
    return document


def _details(provider: str, cached: int, usage: Usage) -> dict[str, int]:
    if provider == "cometapi":
        return {"audio_tokens": 0, "cached_tokens": cached}
    if usage.writes:
        return {"cached_tokens": cached, "cache_write_tokens": usage.cache_write_tokens}
    return {"cached_tokens": cached}


# -- a body ----------------------------------------------------------------------------------------------------------


def completion(
    provider: str,
    *,
    completion_id: str,
    created: int,
    model: str,
    choices: tuple[Choice, ...],
    usage: Usage,
    report: Report,
) -> bytes:
    """The body of an answer without stream."""
    document: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice_json(index, choice) for index, choice in enumerate(choices)],
    }
    if "choice" in report.places:
        for choice, rendered in zip(choices, document["choices"], strict=True):
            rendered["usage"] = usage_json(provider, usage, report, completion_tokens=choice.completion_tokens)
    if report.places & {"body", "chunk", "finish"}:
        document["usage"] = usage_json(provider, usage, report, completion_tokens=usage.completion_tokens)
    return encode(document)


def _choice_json(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content.string()}
    if choice.reasoning is not None:
        message["reasoning_content"] = choice.reasoning.string()
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return {"index": index, "message": message, "finish_reason": choice.finish_reason}


# -- a stream --------------------------------------------------------------------------------------------------------


class Frame(msgspec.Struct, frozen=True, gc=False):
    """The bytes around every choice of a chunk."""

    head: bytes
    tail: bytes

    @classmethod
    def of(cls, *, completion_id: str, created: int, model: str, usage_null: bool) -> Frame:
        head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            encode(completion_id), created, encode(model)
        )  # fmt: skip
        return cls(head, b'],"usage":null}\n\n' if usage_null else b"]}\n\n")

    def choice(self, index: int, delta: bytes, rest: bytes = b'"finish_reason":null') -> bytes:
        return b'%b{"index":%d,"delta":%b,%b}%b' % (self.head, index, delta, rest, self.tail)


def chunks(
    provider: str, frame: Frame, *, choices: tuple[Choice, ...], usage: Usage, report: Report, size: int
) -> Iterator[Event]:
    """The events of a stream, several choices taking turns, ``size`` tokens to a chunk; the last is [DONE]."""
    streams = [
        _choice_chunks(provider, frame, index, choice, usage, report, size) for index, choice in enumerate(choices)
    ]
    if len(streams) == 1:
        yield from streams[0]
    while len(streams) > 1:
        for stream in tuple(streams):
            event = next(stream, None)
            if event is None:
                streams.remove(stream)
            else:
                yield event
        if len(streams) == 1:
            yield from streams.pop()
    if "chunk" in report.places:
        told = encode(usage_json(provider, usage, report, completion_tokens=usage.completion_tokens))
        yield Event(b'%b],"usage":%b}\n\n' % (frame.head, told))
    yield Event(DONE)


def _choice_chunks(
    provider: str, frame: Frame, index: int, choice: Choice, usage: Usage, report: Report, size: int
) -> Iterator[Event]:
    yield Event(frame.choice(index, b'{"role":"assistant","content":""}'))
    before, after = frame.choice(index, b'{"\x00":"\x01"}').split(b"\x00")
    middle, after = after.split(b"\x01")
    if choice.reasoning is not None:
        head = before + b"reasoning_content" + middle
        if not choice.reasoning.tokens:
            yield Event(head + after)
        for piece, tokens in choice.reasoning.pieces(size):
            yield Event(head + piece + after, tokens, tokens)
    head = before + b"content" + middle
    for piece, tokens in choice.content.pieces(size):
        yield Event(head + piece + after, tokens)
    for position, call in enumerate(choice.tool_calls):
        yield from _call_chunks(frame, index, position, call, size)
    yield _finish_chunk(provider, frame, index, choice, usage, report)


def _call_chunks(frame: Frame, index: int, position: int, call: ToolCall, size: int) -> Iterator[Event]:
    first = {"index": position, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
    left = call.tokens
    opening = left - count_text(call.arguments)
    yield Event(frame.choice(index, encode({"tool_calls": [first]})), opening)
    left -= opening
    step = size * BYTES_PER_TOKEN
    for start in range(0, len(call.arguments), step):
        taken = left if start + step >= len(call.arguments) else min(left, size)
        left -= taken
        piece = {"index": position, "function": {"arguments": call.arguments[start : start + step]}}
        yield Event(frame.choice(index, encode({"tool_calls": [piece]})), taken)


def _finish_chunk(provider: str, frame: Frame, index: int, choice: Choice, usage: Usage, report: Report) -> Event:
    rest = b'"finish_reason":"%b"' % choice.finish_reason.encode()
    if "choice" in report.places:
        told = usage_json(provider, usage, report, completion_tokens=choice.completion_tokens)
        rest += b',"usage":' + encode(told)
    data = frame.choice(index, b"{}", rest)
    if "finish" in report.places:
        told = usage_json(provider, usage, report, completion_tokens=usage.completion_tokens)
        data = b'%b],"usage":%b}\n\n' % (data.removesuffix(frame.tail), encode(told))
    return Event(data)


# -- errors ----------------------------------------------------------------------------------------------------------


class Error(msgspec.Struct, frozen=True):
    """Status, type (at CometAPI: code) and message of one kind of refusal at one provider."""

    status: int
    type: str
    message: str


_RATE: Final = "rate_limit_reached_error"
_REACHED: Final = "Your account {account} reached "
_WAIT: Final = "please try again after {retry_seconds} seconds"
_MOONSHOT: Final = {
    "invalid_request": Error(400, "invalid_request_error", "Invalid request: the request is not valid"),
    "content_filter": Error(400, "content_filter", "The request was rejected because it was considered high risk"),
    "invalid_key": Error(401, "invalid_authentication_error", "Invalid Authentication"),
    "incorrect_key": Error(401, "incorrect_api_key_error", "Incorrect API key provided"),
    "permission_denied": Error(403, "permission_denied_error", "The API you are accessing is not open"),
    "payment_required": Error(402, "payment_required_error", "Your membership does not include this model"),
    "model_gone": Error(404, "resource_not_found_error", "Not found the model {model} or Permission denied"),
    "not_found": Error(404, "resource_not_found_error", "The requested resource was not found"),
    "request_timeout": Error(408, "request_timeout_error", "Request timed out"),
    "too_large": Error(413, "invalid_request_error", "Request exceeds the maximum size"),
    "engine_overloaded": Error(429, "engine_overloaded_error", "The engine is overloaded, please try again later"),
    "rate_limit_concurrency": Error(429, _RATE, _REACHED + "organization max concurrency: {limit}, " + _WAIT),
    "rate_limit_rpm": Error(429, _RATE, _REACHED + "organization max RPM: {limit}, " + _WAIT),
    "rate_limit_tpm": Error(429, _RATE, _REACHED + "TPM rate limit, current: {current}, limit: {limit}"),
    "rate_limit_tpd": Error(429, _RATE, _REACHED + "TPD rate limit, current: {current}, limit: {limit}"),
    "quota_exceeded": Error(
        429, "exceeded_current_quota_error",
        "You exceeded your current token quota: {account}, please check your account balance",
    ),
    "balance_exhausted": Error(
        429, "exceeded_current_quota_error",
        "Your account {account} is suspended due to insufficient balance, please recharge your account",
    ),
    "server_error": Error(500, "server_error", "Internal error, please try again"),
    "unexpected_output": Error(500, "unexpected_output", "invalid state transition"),
    "unavailable": Error(503, "server_error", "Service unavailable"),
    "gateway_timeout": Error(504, "server_error", "Gateway timeout"),
    "overloaded_529": Error(529, "engine_overloaded_error", "The engine is overloaded"),
}  # fmt: skip
_SATURATED: Final = "当前上游负载已饱和，请稍后重试"
_NO_CHANNEL: Final = "no available channel for group default and model {model} (distributor)"
_COMETAPI: Final = {
    "invalid_request": Error(500, "invalid_request", "invalid request"),
    "model_missing": Error(400, "", "model name is required"),
    "content_filter": Error(400, "sensitive_words_detected", "sensitive words detected"),
    "invalid_key": Error(401, "", "invalid token"),
    "incorrect_key": Error(401, "", "invalid token"),
    "permission_denied": Error(403, "permission_denied", "this token may not use model {model}"),
    "payment_required": Error(402, "insufficient_user_quota", "user quota is not enough"),
    "model_gone": Error(503, "model_not_found", _NO_CHANNEL),
    "not_found": Error(404, "", "invalid URL"),
    "request_timeout": Error(408, "do_request_failed", "do request failed"),
    "too_large": Error(413, "read_request_body_failed", "request body is too large"),
    "engine_overloaded": Error(429, "", _SATURATED),
    "rate_limit_concurrency": Error(429, "token_concurrency_limit_reached", _SATURATED),
    "rate_limit_rpm": Error(429, "", _SATURATED),
    "rate_limit_tpm": Error(429, "", _SATURATED),
    "rate_limit_tpd": Error(429, "", _SATURATED),
    "quota_exceeded": Error(403, "pre_consume_token_quota_failed", "token quota is not enough"),
    "balance_exhausted": Error(403, "insufficient_user_quota", "user quota is not enough"),
    "server_error": Error(500, "do_request_failed", "do request failed"),
    "unexpected_output": Error(500, "bad_response_body", "bad response body"),
    "unavailable": Error(503, "get_channel_failed", "failed to get a channel"),
    "gateway_timeout": Error(504, "channel:response_time_exceeded", "response time exceeded"),
    "overloaded_529": Error(529, "bad_response_status_code", "bad response status code 529"),
}  # fmt: skip
_EVOLINK: Final = {
    "invalid_request": Error(400, "invalid_request_error", "invalid request"),
    "content_filter": Error(400, "invalid_request_error", "content was rejected by the content policy"),
    "invalid_key": Error(401, "authentication_error", "invalid API key"),
    "incorrect_key": Error(401, "authentication_error", "invalid API key"),
    "payment_required": Error(402, "insufficient_quota_error", "insufficient credits"),
    "quota_exceeded": Error(402, "insufficient_quota_error", "insufficient credits"),
    "balance_exhausted": Error(402, "insufficient_quota_error", "insufficient credits"),
    "permission_denied": Error(403, "permission_error", "access to model {model} is not allowed"),
    "model_gone": Error(404, "not_found_error", "model {model} was not found"),
    "not_found": Error(404, "not_found_error", "not found"),
    "request_timeout": Error(408, "internal_server_error", "request timed out"),
    "too_large": Error(413, "request_too_large_error", "request is too large"),
    "engine_overloaded": Error(429, "rate_limit_error", "too many requests"),
    "rate_limit_concurrency": Error(429, "rate_limit_error", "too many concurrent requests"),
    "rate_limit_rpm": Error(429, "rate_limit_error", "too many requests"),
    "rate_limit_tpm": Error(429, "rate_limit_error", "too many tokens"),
    "rate_limit_tpd": Error(429, "rate_limit_error", "too many tokens"),
    "server_error": Error(500, "internal_server_error", "internal error"),
    "unexpected_output": Error(500, "internal_server_error", "internal error"),
    "unavailable": Error(503, "service_unavailable_error", "service is unavailable"),
    "gateway_timeout": Error(504, "upstream_error", "upstream timed out"),
    "overloaded_529": Error(529, "service_unavailable_error", "service is overloaded"),
}  # fmt: skip
_ERRORS: Final = {"moonshot": _MOONSHOT, "cometapi": _COMETAPI, "evolink": _EVOLINK}
_HINTS: Final = {429: "retry after 60 seconds", 503: "retry after 30 seconds"}


def refusal(provider: str, refused: Refusal, *, request_id: str, facts: dict[str, object]) -> tuple[int, bytes]:
    """Status and body. ``facts`` fill the message: model, account, limit, current."""
    table = _ERRORS[provider]
    kind = refused.kind if refused.kind in table else "invalid_request"
    error = table[kind]
    message = refused.message or error.message.format(retry_seconds=refused.retry_seconds, **facts)
    return error.status, encode({"error": error_json(provider, error, message, request_id)})


def error_json(provider: str, error: Error, message: str, request_id: str) -> dict[str, Any]:
    if provider == "cometapi":
        text = f"{message} (request id: {request_id})"
        return {"message": text, "type": "comet_api_error", "param": "", "code": error.type}
    if provider == "evolink":
        document: dict[str, Any] = {"code": error.status, "message": message, "type": error.type, "param": None}
        if error.status in _HINTS:
            document["fallback_suggestion"] = _HINTS[error.status]
        return document
    return {"message": message, "type": error.type}


def failure_event(provider: str, request_id: str, message: str | None) -> bytes:
    """An error that arrives in a stream."""
    error = _ERRORS[provider]["server_error"]
    document = error_json(provider, error, message or error.message, request_id)
    return b"data: " + encode({"error": document}) + b"\n\n"


# -- headers and other endpoints -------------------------------------------------------------------------------------


def headers(provider: str, request_id: str, content_type: bytes) -> Headers:
    """Response headers as the provider sends them, without content-length."""
    name = request_id.encode()
    if provider == "moonshot":
        return [
            (b"content-type", content_type),
            (b"msh-request-id", name),
            (b"server-timing", b"1"),
            (b"msh-uid", b"simulated"),
            (b"msh-gid", b"enterprise-tier-5"),
        ]
    if provider == "cometapi":
        return [(b"content-type", content_type), (b"x-oneapi-request-id", name)]
    return [(b"content-type", content_type), (b"x-request-id", name)]


def models(provider: str, cards: list[tuple[str, int]]) -> dict[str, Any]:
    """The model list; ``cards`` are ids with their context windows."""
    rows: list[dict[str, Any]] = [
        {"id": name, "object": "model", "created": 0, "owned_by": provider} for name, _ in cards
    ]
    if provider == "moonshot":
        for row, (_, context) in zip(rows, cards, strict=True):
            row["context_length"] = context
            row["supports_image_in"] = row["supports_video_in"] = row["id"].startswith(("kimi-k2.", "kimi-k3"))
            row["supports_reasoning"] = True
    return {"object": "list", "data": rows}


def catalog(prices: Mapping[str, Price]) -> dict[str, Any]:
    """CometAPI's public catalog: list prices of which it charges ``ratio``."""
    return {
        "success": True,
        "data": [
            {
                "id": name,
                "code": name,
                "name": name,
                "model_type": "text",
                "pricing": {"input": price.input / 1e6 / 0.8, "output": price.output / 1e6 / 0.8, "ratio": 0.8},
            }
            for name, price in prices.items()
        ],
    }


def balance(provider: str, *, account: str, left_pico: int, spent_pico: int, requests: int) -> dict[str, Any]:
    """The balance document: what is left, at the aggregators also what was used, at CometAPI in quota of 1/500,000 USD.

    EvoLink's rate of credits to dollars is not public; here one credit is one dollar.
    """
    if provider == "moonshot":
        available = _usd(left_pico, 10**5)
        data = {"available_balance": available, "voucher_balance": 0.0, "cash_balance": available}
        return {"code": 0, "data": data, "scode": "0x0", "status": True}
    if provider == "cometapi":
        left, spent = _usd(left_pico, 500_000), _usd(spent_pico, 500_000)
        return {
            "username": account,
            "total_quota": left,
            "total_used_quota": spent,
            "request_count": requests,
            "keys": [{"name": account, "remain_quota": left, "used_quota": spent}],
            "daily_quota": [],
        }
    credits_left = {"remaining_credits": _usd(left_pico, 10**6), "used_credits": _usd(spent_pico, 10**6)}
    return {
        "success": True,
        "message": "",
        "data": {"token": {**credits_left, "unlimited_credits": False}, "user": credits_left},
    }


def _usd(pico: int, parts: int) -> float:
    """Dollars to that fraction of one; the shortest number that reads back as this float has no more decimals."""
    return rounded(pico, 10**12 // parts) / parts
