"""A refusal is read by its words before its status: error type, then code, then message, and the status only last.

Aggregators flatten: a bad request may be a 500 and an unknown model a 503, so a status alone is believed only where
nothing was said. An HTML body is a proxy speaking, which knows nothing of our key, our money or the model.
Source: providers §1.6, §2.6, §3.4, §4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final

from gateway.core.failure import Failure, FailureClass
from gateway.providers.reading import decode_object, fit

MESSAGE_CHARACTERS_MAX: Final = 2_000
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0
"""A wait of more than a day is no advice."""

_NAME_CHARACTERS_MAX: Final = 128
_BODY_BYTES_MAX: Final = 1024 * 1024
_BAD_REQUEST: Final = 400

MOONSHOT_TYPES: Final[Mapping[str, FailureClass]] = MappingProxyType(
    {
        "content_filter": FailureClass.CONTENT_FILTERED,
        "invalid_authentication_error": FailureClass.CREDENTIAL,
        "incorrect_api_key_error": FailureClass.CREDENTIAL,
        "permission_denied_error": FailureClass.CREDENTIAL,
        "resource_not_found_error": FailureClass.MODEL_GONE,
        "engine_overloaded_error": FailureClass.OVERLOADED,
        "rate_limit_reached_error": FailureClass.RATE_LIMITED,
        "exceeded_current_quota_error": FailureClass.QUOTA,
        "server_error": FailureClass.TRANSIENT,
        "unexpected_output": FailureClass.TRANSIENT,
    }
)

EVOLINK_TYPES: Final[Mapping[str, FailureClass]] = MappingProxyType(
    {
        "authentication_error": FailureClass.CREDENTIAL,
        "insufficient_quota_error": FailureClass.QUOTA,
        "permission_error": FailureClass.CREDENTIAL,
        "not_found_error": FailureClass.MODEL_GONE,
        "request_too_large_error": FailureClass.CALLER_FAULT,
        "rate_limit_error": FailureClass.RATE_LIMITED,
        "internal_server_error": FailureClass.TRANSIENT,
        "service_unavailable_error": FailureClass.OVERLOADED,
    }
)

OPENAI_TYPES: Final[Mapping[str, FailureClass]] = MappingProxyType(
    {
        "insufficient_quota": FailureClass.QUOTA,
        "overloaded_error": FailureClass.OVERLOADED,
        "rate_limit_exceeded": FailureClass.RATE_LIMITED,
    }
)

OPENAI_CODES: Final[Mapping[str, FailureClass]] = MappingProxyType(
    {
        "content_filter": FailureClass.CONTENT_FILTERED,
        "content_policy_violation": FailureClass.CONTENT_FILTERED,
        "context_length_exceeded": FailureClass.CALLER_FAULT,
        "insufficient_quota": FailureClass.QUOTA,
        "invalid_api_key": FailureClass.CREDENTIAL,
        "model_not_found": FailureClass.MODEL_GONE,
        "rate_limit_exceeded": FailureClass.RATE_LIMITED,
    }
)

NEW_API_CODES: Final[Mapping[str, FailureClass]] = MappingProxyType(
    {
        "access_denied": FailureClass.CREDENTIAL,
        "bad_response_body": FailureClass.TRANSIENT,
        "bad_response_status_code": FailureClass.TRANSIENT,
        "channel:no_available_key": FailureClass.TRANSIENT,
        "channel:response_time_exceeded": FailureClass.TRANSIENT,
        "convert_request_failed": FailureClass.CALLER_FAULT,
        "do_request_failed": FailureClass.TRANSIENT,
        "empty_response": FailureClass.TRANSIENT,
        "get_channel_failed": FailureClass.TRANSIENT,
        "insufficient_user_quota": FailureClass.QUOTA,
        "invalid_request": FailureClass.CALLER_FAULT,
        "model_not_found": FailureClass.MODEL_GONE,
        "permission_denied": FailureClass.CREDENTIAL,
        "pre_consume_token_quota_failed": FailureClass.QUOTA,
        "prompt_blocked": FailureClass.CONTENT_FILTERED,
        "read_request_body_failed": FailureClass.CALLER_FAULT,
        "sensitive_words_detected": FailureClass.CONTENT_FILTERED,
        "token_concurrency_limit_reached": FailureClass.RATE_LIMITED,
    }
)

_STATUSES: Final[Mapping[int, FailureClass]] = MappingProxyType(
    {
        401: FailureClass.CREDENTIAL,
        402: FailureClass.QUOTA,
        403: FailureClass.CREDENTIAL,
        404: FailureClass.MODEL_GONE,
        408: FailureClass.TRANSIENT,
        409: FailureClass.TRANSIENT,
        429: FailureClass.RATE_LIMITED,
        503: FailureClass.OVERLOADED,
        529: FailureClass.OVERLOADED,
    }
)

_CALLER_TYPE: Final = "invalid_request_error"
_CALLER_STATUSES: Final = frozenset({200, 400, 413, 422, 500})
"""Where ``invalid_request_error`` is about the request; OpenAI-like servers also use it for 401, 404 and 429."""

_CONTEXT_STATUSES: Final = frozenset({200, 400, 413, 422, 500})
_HTML_BELIEVED: Final = frozenset({413, 429, 503, 529})

# Deliberately without a bare "quota": a message about tokens per minute may contain it.
_QUOTA: Final = re.compile(
    r"exceeded your current (?:token )?quota|check your account balance|insufficient[ _](?:account )?(?:balance|funds)"
    r"|insufficient[ _](?:user |token )?quota|(?:please )?recharge(?: your account)?\b|account (?:is )?in arrears"
    r"|余额不足|额度不足|额度已(?:用尽|耗尽)|欠费|充值",
    re.IGNORECASE,
)
_CONTEXT: Final = re.compile(
    r"request.{0,40}exceed(?:ed|s|ing)?.{0,40}model token limit|input token length too long"
    r"|maximum context length|context[ _](?:length|window).{0,40}exceed|exceed.{0,60}context[ _](?:length|window)"
    r"|prompt is too long",
    re.IGNORECASE | re.DOTALL,
)
_RATE: Final = re.compile(r"reached .{0,80}max (?:rpm|tpm|concurrency)|[rt]p[md] rate limit", re.IGNORECASE | re.DOTALL)
_LOAD: Final = re.compile(r"负载已?(?:饱和|过高)|engine is (?:currently )?overloaded", re.IGNORECASE)
_NO_MODEL: Final = re.compile(
    r"no available channels? for|not found the model|model .{1,120} (?:does not exist|not found)|无可用渠道",
    re.IGNORECASE,
)
_BAD_KEY: Final = re.compile(r"无效的令牌|令牌(?:状态不可用|已过期)|invalid token\b|incorrect api key", re.IGNORECASE)
_NEW_API: Final = re.compile(r"\(request id: ?[^)]{1,128}\)\s*$")

_WAIT: Final = re.compile(
    r"(?:after|in)\ +"
    r"(?:(?P<minutes>\d{1,4})\ ?m(?:in(?:ute)?s?)?(?![a-z])\ ?)?"
    r"(?:(?P<seconds>\d{1,6}(?:\.\d{1,6})?)\ ?(?P<unit>ms|s(?:ec(?:ond)?s?)?)(?![a-z]))?",
    re.IGNORECASE | re.VERBOSE,
)
_KEY: Final = re.compile(r"\bsk-[\w*-]{6,}")
_TITLE: Final = re.compile(r"<title[^>]*>([^<]{1,200})", re.IGNORECASE)
_DECIMAL: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The error words a dialect knows. ``busy`` is what a 429 without a word about it means."""

    types: Mapping[str, FailureClass]
    codes: Mapping[str, FailureClass]
    busy: FailureClass = FailureClass.RATE_LIMITED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A refusal as it was told, whatever its shape; empty strings where nothing was."""

    status: int
    message: str
    type: str = ""
    code: str = ""
    param: str = ""
    hint: str = ""
    is_html: bool = False
    is_new_api: bool = False


def classify(words: Vocabulary, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """What a refusal says: an HTTP status other than 2xx, or an error that came with 200 or inside a stream."""
    told = _read(status, headers, body[:_BODY_BYTES_MAX])
    kind = _class_of(words, told)
    is_overflow = kind is FailureClass.CALLER_FAULT and _CONTEXT.search(told.message) is not None
    is_ours_to_return = kind in (FailureClass.CALLER_FAULT, FailureClass.CONTENT_FILTERED)
    return Failure(
        kind=kind,
        message=told.message,
        http_status=_BAD_REQUEST if is_ours_to_return and not 400 <= told.status < 500 else status,
        code="context_length_exceeded" if is_overflow else _name_of(told),
        param=told.param or None,
        retry_after=_retry_after(headers, f"{told.message}\n{told.hint}"),
    )


def _class_of(words: Vocabulary, told: _Told) -> FailureClass:
    if 300 <= told.status < 400:
        return FailureClass.TRANSIENT
    named = words.types.get(told.type) or words.codes.get(told.code)
    if named is FailureClass.CREDENTIAL and told.status == 403 and _QUOTA.search(told.message):
        return FailureClass.QUOTA  # some say "permission" when they mean money
    if named is not None:
        return named
    if told.type == _CALLER_TYPE and told.status in _CALLER_STATUSES:
        return FailureClass.CALLER_FAULT  # before the message, which may quote the caller's own text
    return _class_of_message(told) or _class_of_status(words, told)


def _class_of_message(told: _Told) -> FailureClass | None:
    if told.is_html:
        return None
    if _CONTEXT.search(told.message) and told.status in _CONTEXT_STATUSES:
        return FailureClass.CALLER_FAULT
    for pattern, kind in (
        (_QUOTA, FailureClass.QUOTA),
        (_RATE, FailureClass.RATE_LIMITED),
        (_LOAD, FailureClass.OVERLOADED),
        (_NO_MODEL, FailureClass.MODEL_GONE),
        (_BAD_KEY, FailureClass.CREDENTIAL),
    ):
        if pattern.search(told.message):
            return kind
    return None


def _class_of_status(words: Vocabulary, told: _Told) -> FailureClass:
    status = told.status
    if told.is_html and status < 500 and status not in _HTML_BELIEVED:
        return FailureClass.TRANSIENT
    if status == 429:
        return FailureClass.OVERLOADED if told.is_new_api else words.busy
    if (kind := _STATUSES.get(status)) is not None:
        return kind
    return FailureClass.CALLER_FAULT if 400 <= status < 500 else FailureClass.TRANSIENT


def _read(status: int, headers: Mapping[str, str], body: bytes) -> _Told:
    payload = decode_object(body)
    if payload is None:
        return _read_text(status, headers, body)
    error = payload.get("error") or payload
    if not isinstance(error, dict):
        error = {**payload, "message": error if isinstance(error, str) else payload.get("message")}
    message = _first_text(error, "message", "msg", "detail", "error_msg") or _first_text(payload, "message", "detail")
    code = _word(error.get("code"))
    if status == 200 and code.isdecimal() and 400 <= int(code) < 600:
        status = int(code)  # the refusal's real status, where the transport's says nothing
    return _Told(
        status=status,
        message=_clean(message) or _said_nothing(status),
        type=_word(error.get("type")),
        code=code,
        param=_clean(_word(error.get("param"))),
        hint=_word(error.get("fallback_suggestion")),
        is_new_api="x-oneapi-request-id" in headers or _NEW_API.search(message) is not None,
    )


def _read_text(status: int, headers: Mapping[str, str], body: bytes) -> _Told:
    text = "" if 300 <= status < 400 else body[: 4 * MESSAGE_CHARACTERS_MAX].decode("utf-8", "replace")
    is_html = text.lstrip().startswith("<") or "text/html" in headers.get("content-type", "").lower()
    if is_html and text:
        title = _TITLE.search(text)
        text = f"an HTML page: {title[1].strip()}" if title else "an HTML page"
    return _Told(
        status=status,
        message=_clean(text) or _said_nothing(status),
        is_html=is_html,
        is_new_api="x-oneapi-request-id" in headers,
    )


def _said_nothing(status: int) -> str:
    if 300 <= status < 400:
        return f"the base URL answers with a redirect (HTTP {status}); redirects are never followed"
    return f"HTTP {status} without a message"


def _first_text(members: Mapping[str, Any], *names: str) -> str:
    return next((value for name in names if isinstance(value := members.get(name), str) and value.strip()), "")


def _word(value: object) -> str:
    """A type, code or parameter as text; a code may be a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return str(value)[:_NAME_CHARACTERS_MAX]


def _clean(text: str) -> str:
    return _KEY.sub("sk-…", fit(text, 4 * MESSAGE_CHARACTERS_MAX)).strip()[:MESSAGE_CHARACTERS_MAX]


def _name_of(told: _Told) -> str | None:
    """The word that says most: a code in letters, else the type, else the code's number."""
    name = told.code if told.code and not told.code.isdecimal() else told.type or told.code
    return _clean(name) or None


def _retry_after(headers: Mapping[str, str], text: str) -> float | None:
    """The longest wait that was named, in seconds: by the header, in the message, or in a hint beside it."""
    waits = [_header_seconds(headers), *(_spoken_seconds(match) for match in _WAIT.finditer(text))]
    named = [wait for wait in waits if wait is not None]
    return min(max(named), RETRY_AFTER_SECONDS_MAX) if named else None


def _spoken_seconds(match: re.Match[str]) -> float | None:
    minutes, seconds = match["minutes"], match["seconds"]
    if minutes is None and seconds is None:
        return None
    scale = 0.001 if (match["unit"] or "").lower() == "ms" else 1.0
    return 60.0 * int(minutes or 0) + scale * float(seconds or 0)


def _header_seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "").strip()
    if _DECIMAL.fullmatch(value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        told_at = parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - told_at).total_seconds())
    except (TypeError, ValueError):
        return None  # not a date, or nothing to measure it against: the clock is not ours to read
