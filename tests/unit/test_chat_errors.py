"""An error has OpenAI's envelope, the request id, and words that help the caller."""

from __future__ import annotations

import json

import pytest

from gateway.core.failure import Failure, FailureClass
from gateway.core.refusal import Refusal, RefusalCode
from gateway.core.sse import parse_event
from gateway.surfaces.chat_completions import HEARTBEAT, refusal_of, render_error, render_stream_error
from gateway.surfaces.errors import error_type, shown


def test_the_envelope() -> None:
    """Four members, as the SDKs expect them."""
    refusal = Refusal(code=RefusalCode.INVALID_REQUEST, message="`n` is 9.", param="n")
    assert json.loads(render_error(refusal, request_id="req-1")) == {
        "error": {
            "message": "`n` is 9. (request id: req-1)",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request_error",
        }
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "insufficient_quota"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (431, "invalid_request_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
    ],
)
def test_the_type_follows_the_status(status: int, expected: str) -> None:
    """As at OpenAI."""
    assert error_type(status) == expected


def test_an_error_in_a_stream_is_one_event() -> None:
    """The same envelope as data."""
    refusal = Refusal(code=RefusalCode.UPSTREAM_ERROR, message="a\nb")
    event = parse_event(render_stream_error(refusal, request_id="r"))
    assert event.raw.count(b"\n\n") == 1
    assert event.data == render_error(refusal, request_id="r")


def test_a_heartbeat_is_a_comment() -> None:
    """It carries no data."""
    assert parse_event(HEARTBEAT).data is None
    assert HEARTBEAT.endswith(b"\n\n")


@pytest.mark.parametrize(
    ("status", "message", "code", "passed_on"),
    [
        (400, "tool_call_id  is not found", RefusalCode.INVALID_REQUEST, 400),
        (422, "bad", RefusalCode.INVALID_REQUEST, 422),
        (413, "Request exceeds the maximum size", RefusalCode.INVALID_REQUEST, 413),
        (500, "messages missing", RefusalCode.INVALID_REQUEST, 400),
        (None, "in a stream", RefusalCode.INVALID_REQUEST, 400),
        (401, "a defect, but not the caller's to see as 401", RefusalCode.INVALID_REQUEST, 400),
        (
            400,
            "Your request exceeded model token limit : 262144 (requested: 269030)",
            RefusalCode.CONTEXT_LENGTH_EXCEEDED,
            400,
        ),
        (400, "Input token length too long", RefusalCode.CONTEXT_LENGTH_EXCEEDED, 400),
        (400, "This model's maximum context length is 4096 tokens", RefusalCode.CONTEXT_LENGTH_EXCEEDED, 400),
    ],
)
def test_an_upstreams_client_error_in_its_words(
    status: int | None, message: str, code: RefusalCode, passed_on: int
) -> None:
    """Its own status where that says what the caller did, else 400 (CometAPI answers 500)."""
    failure = Failure(kind=FailureClass.CALLER_FAULT, message=message, http_status=status, param="p", code="c")
    refusal = refusal_of(failure)
    assert refusal.code is code
    assert refusal.http_status == passed_on
    assert refusal.message == message
    assert (refusal.param, refusal.upstream_code) == ("p", "c")


def test_an_upstream_without_words() -> None:
    """An empty message helps nobody."""
    refusal = refusal_of(Failure(kind=FailureClass.CALLER_FAULT, message=" ", http_status=400))
    assert refusal.message == "The provider refused the request and did not say why."


def test_what_a_client_wrote_is_shown_short_and_plain() -> None:
    """No line breaks, no foreign letters, no novel."""
    assert shown("a\r\né") == '"a\\r\\n\\u00e9"'
    assert len(shown("x" * 10_000)) < 80
