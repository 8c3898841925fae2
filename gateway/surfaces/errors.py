"""An error tells the caller what happened and what to do, in the OpenAI envelope, with the request id and no prompt.

Names and short values a client sent may be repeated, shortened and in ASCII; contents never are (law L13).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.core.failure import Failure
from gateway.core.refusal import Refusal, RefusalCode, RefusedError

HEARTBEAT: Final = b": keep-alive\n\n"
"""A comment line: it keeps a silent stream open and no client shows it."""

MESSAGE_CHARACTERS_MAX: Final = 2_000
SHOWN_CHARACTERS_MAX: Final = 64
WARNINGS_MAX: Final = 16

_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CLIENT_STATUSES: Final = frozenset({400, 404, 413, 422})
_CONTEXT_WORDING: Final = re.compile(
    r"exceed(?:ed|s|ing)?\b.{0,40}\bmodel token limit"
    r"|context[_ ]length|context window|maximum context"
    r"|token length too long|too many (?:input )?tokens|prompt is too long",
    re.IGNORECASE,
)


def invalid(param: str | None, message: str) -> RefusedError:
    """The error to raise for a request that breaks a rule; ``param`` is the path of the field."""
    return RefusedError(Refusal(code=RefusalCode.INVALID_REQUEST, message=message, param=param))


def shown(text: str) -> str:
    """What a client wrote, quoted for a message or a header: ASCII, one line, shortened."""
    return json.dumps(text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}…")


def bounded(warnings: Sequence[str]) -> tuple[str, ...]:
    """The first few warnings and how many more there were: they travel in one header."""
    if len(warnings) <= WARNINGS_MAX:
        return tuple(warnings)
    return (*warnings[:WARNINGS_MAX], f"and {len(warnings) - WARNINGS_MAX} more warnings")


def error_type(status: int) -> str:
    """OpenAI's ``type`` for a status."""
    return "api_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")


def render_error(refusal: Refusal, *, request_id: str) -> bytes:
    """The body of an error answer: ``{"error": {"message", "type", "param", "code"}}``."""
    error = {
        "message": f"{refusal.message} (request id: {request_id})",
        "type": error_type(refusal.http_status),
        "param": refusal.param,
        "code": refusal.code.value,
    }
    return msgspec.json.encode({"error": error})


def render_stream_error(refusal: Refusal, *, request_id: str) -> bytes:
    """The same error as one event of a stream that is already open; nothing follows it."""
    return b"data: " + render_error(refusal, request_id=request_id) + b"\n\n"


def refusal_of(failure: Failure) -> Refusal:
    """A client error that an upstream reported, in its words: 400, 404, 413 and 422 keep their status, others are 400.

    Only for failures that :func:`gateway.core.failure.advise` returns to the caller: what an upstream says about
    our account is not for the caller's eyes.
    """
    words = failure.message.strip()[:MESSAGE_CHARACTERS_MAX]
    too_long = _CONTEXT_WORDING.search(words) is not None
    return Refusal(
        code=RefusalCode.CONTEXT_LENGTH_EXCEEDED if too_long else RefusalCode.INVALID_REQUEST,
        message=words or "The provider refused the request and did not say why.",
        param=failure.param or None,
        status=failure.http_status if failure.http_status in _CLIENT_STATUSES else 400,
        upstream_code=failure.code,
    )
