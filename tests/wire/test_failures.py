"""What each provider's refusals say: every row of providers §1.6, §2.6, §3.4 and §4, by words before status."""

from __future__ import annotations

import pytest

from gateway.core.failure import Advice, FailureClass, advise
from gateway.providers import DIALECTS, dialect
from gateway.providers.failing import MESSAGE_CHARACTERS_MAX
from tests.wire.transcripts import encoded

CALLER, CONTENT = FailureClass.CALLER_FAULT, FailureClass.CONTENT_FILTERED
CREDENTIAL, QUOTA, GONE = FailureClass.CREDENTIAL, FailureClass.QUOTA, FailureClass.MODEL_GONE
LIMITED, OVERLOADED, TRANSIENT = FailureClass.RATE_LIMITED, FailureClass.OVERLOADED, FailureClass.TRANSIENT

HTML = b"<html>\r\n<head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def moonshot(kind: str, message: str = "words") -> bytes:
    return encoded({"error": {"message": message, "type": kind}})


def new_api(code: object, message: str = "words", kind: str = "comet_api_error") -> bytes:
    message = f"{message} (request id: 2026112204431334)"
    return encoded({"error": {"message": message, "type": kind, "param": "", "code": code}})


def evolink(status: int, kind: str, **more: object) -> bytes:
    return encoded({"error": {"code": status, "message": "words", "type": kind, "param": None, **more}})


MOONSHOT = {
    "400 content_filter": (400, moonshot("content_filter", "The request was rejected as high risk"), CONTENT),
    "400 invalid_request_error": (400, moonshot("invalid_request_error", "Invalid request: n"), CALLER),
    "400 too long": (400, moonshot("invalid_request_error", "Input token length too long"), CALLER),
    "400 sampling": (400, moonshot("invalid_request_error", "invalid temperature: only 1 is allowed"), CALLER),
    "400 reasoning missing": (
        400,
        moonshot("invalid_request_error", "thinking is enabled but reasoning_content is missing at index 3"),
        CALLER,
    ),
    "400 unpaired tool message": (400, moonshot("invalid_request_error", "tool_call_id  is not found"), CALLER),
    "400 schema": (
        400,
        moonshot("invalid_request_error", "parameters is not a valid moonshot flavored json schema, details: <x>"),
        CALLER,
    ),
    "400 quoting the caller about money": (
        400,
        moonshot("invalid_request_error", "function name please recharge your account is duplicated"),
        CALLER,
    ),
    "401 invalid_authentication_error": (401, moonshot("invalid_authentication_error"), CREDENTIAL),
    "401 incorrect_api_key_error": (401, moonshot("incorrect_api_key_error"), CREDENTIAL),
    "403 permission_denied_error": (403, moonshot("permission_denied_error"), CREDENTIAL),
    "403 that means money": (403, moonshot("permission_denied_error", "insufficient balance"), QUOTA),
    "404 resource_not_found_error": (
        404,
        moonshot("resource_not_found_error", "Not found the model kimi-k2-thinking or Permission denied"),
        GONE,
    ),
    "413": (413, b"", CALLER),
    "413 from a proxy": (413, HTML, CALLER),
    "429 engine_overloaded_error": (429, moonshot("engine_overloaded_error", "try again later"), OVERLOADED),
    "429 concurrency": (
        429,
        moonshot("rate_limit_reached_error", "Your account reached organization max concurrency: 50"),
        LIMITED,
    ),
    "429 RPM": (429, moonshot("rate_limit_reached_error", "reached organization max RPM: 3"), LIMITED),
    "429 TPM, whose message says quota": (
        429,
        moonshot("rate_limit_reached_error", "TPM rate limit, current: 5, limit: 4, check your quota"),
        LIMITED,
    ),
    "429 exceeded_current_quota_error": (429, moonshot("exceeded_current_quota_error"), QUOTA),
    "429 without a type, out of money": (
        429,
        moonshot("", "You exceeded your current token quota: 5, please check your account balance"),
        QUOTA,
    ),
    "429 without a type, suspended": (
        429,
        moonshot("", "Your account is suspended due to insufficient balance, please recharge your account"),
        QUOTA,
    ),
    "429 without a type, RPM": (429, moonshot("", "Your account reached max RPM: 3, try again"), LIMITED),
    "429 without a word": (429, b"", LIMITED),
    "500 server_error": (500, moonshot("server_error"), TRANSIENT),
    "500 unexpected_output": (500, moonshot("unexpected_output", "invalid state transition"), TRANSIENT),
    "502 HTML": (502, HTML, TRANSIENT),
    "503": (503, b"", OVERLOADED),
    "504 HTML": (504, HTML, TRANSIENT),
    "529": (529, b"", OVERLOADED),
    "402": (402, b"{}", QUOTA),
    "408": (408, b"", TRANSIENT),
    "409": (409, b"", TRANSIENT),
    "200 with an error": (200, moonshot("engine_overloaded_error"), OVERLOADED),
    "200 with the caller's error": (200, moonshot("invalid_request_error"), CALLER),
    "200 with an error and no words": (200, encoded({"error": {"message": "x"}}), TRANSIENT),
    "200 with an error as text": (200, encoded({"error": "x"}), TRANSIENT),
}

COMETAPI = {
    "500 invalid_request": (500, new_api("invalid_request", "field messages is required"), CALLER),
    "503 model_not_found": (
        503,
        new_api("model_not_found", "no available channel for group default and model x (distributor)"),
        GONE,
    ),
    "503 no channel, without a code": (503, new_api("", "no available channel for group default"), GONE),
    "503 no channel, in Chinese": (503, new_api(None, "当前分组 default 下对于模型 x 无可用渠道"), GONE),
    "400 model name is required": (400, new_api("", "model name is required"), CALLER),
    "401 invalid token": (401, new_api("", "invalid token"), CREDENTIAL),
    "401 invalid token, in Chinese": (401, new_api("", "无效的令牌"), CREDENTIAL),
    "401 a token that is spent": (401, new_api("", "该令牌额度已用尽"), QUOTA),
    "403 permission_denied": (403, new_api("permission_denied"), CREDENTIAL),
    "403 permission_denied about money": (403, new_api("permission_denied", "insufficient user quota"), QUOTA),
    "403 quota text in Chinese": (403, new_api("", "用户额度不足"), QUOTA),
    "403 insufficient_user_quota": (403, new_api("insufficient_user_quota"), QUOTA),
    "403 pre_consume_token_quota_failed": (403, new_api("pre_consume_token_quota_failed"), QUOTA),
    "403 access_denied": (403, new_api("access_denied"), CREDENTIAL),
    "400 sensitive_words_detected": (400, new_api("sensitive_words_detected"), CONTENT),
    "400 prompt_blocked": (400, new_api("prompt_blocked"), CONTENT),
    "500 channel:no_available_key": (500, new_api("channel:no_available_key"), TRANSIENT),
    "500 get_channel_failed": (500, new_api("get_channel_failed"), TRANSIENT),
    "500 do_request_failed": (500, new_api("do_request_failed"), TRANSIENT),
    "504 channel:response_time_exceeded": (504, new_api("channel:response_time_exceeded"), TRANSIENT),
    "500 bad_response_status_code": (500, new_api("bad_response_status_code"), TRANSIENT),
    "500 bad_response_body": (500, new_api("bad_response_body"), TRANSIENT),
    "500 empty_response": (500, new_api("empty_response"), TRANSIENT),
    "400 read_request_body_failed": (400, new_api("read_request_body_failed"), CALLER),
    "500 convert_request_failed": (500, new_api("convert_request_failed"), CALLER),
    "429 token_concurrency_limit_reached": (429, new_api("token_concurrency_limit_reached"), LIMITED),
    "429 flattened to Chinese": (429, new_api(None, "当前分组上游负载已饱和，请稍后再试"), OVERLOADED),
    "429 otherwise": (429, new_api(""), OVERLOADED),
    "500 otherwise": (500, new_api(""), TRANSIENT),
    "500 with a number as code": (500, new_api(500), TRANSIENT),
    "502 otherwise": (502, new_api(""), TRANSIENT),
    "503 otherwise": (503, new_api(""), OVERLOADED),
    "504 otherwise": (504, new_api(""), TRANSIENT),
    "524 HTML": (524, HTML, TRANSIENT),
    "500 with a context overflow": (500, new_api("", "request exceeded model token limit : 262144"), CALLER),
    "301 for a wrong path": (301, HTML, TRANSIENT),
    "404 HTML for a wrong path": (404, HTML, TRANSIENT),
    "403 HTML from a firewall": (403, HTML, TRANSIENT),
    "403 HTML with words": (403, b"<html><title>please recharge your account</title></html>", TRANSIENT),
    "307 with words": (307, new_api("insufficient_user_quota"), TRANSIENT),
}

EVOLINK = {
    "400": (400, evolink(400, "invalid_request_error"), CALLER),
    "401": (401, evolink(401, "authentication_error"), CREDENTIAL),
    "402": (402, evolink(402, "insufficient_quota_error"), QUOTA),
    "403": (403, evolink(403, "permission_error"), CREDENTIAL),
    "404": (404, evolink(404, "not_found_error"), GONE),
    "413": (413, evolink(413, "request_too_large_error"), CALLER),
    "429": (429, evolink(429, "rate_limit_error", fallback_suggestion="retry after 60 seconds"), LIMITED),
    "500": (500, evolink(500, "internal_server_error"), TRANSIENT),
    "502": (502, evolink(502, "upstream_error"), TRANSIENT),
    "503": (503, evolink(503, "service_unavailable_error"), OVERLOADED),
    "new-api's shape": (503, new_api("model_not_found"), GONE),
    "200 whose code is 402": (200, evolink(402, "evolink_error"), QUOTA),
    "200 whose code is 429": (200, evolink(429, ""), LIMITED),
    "429 with code and type absent": (429, encoded({"error": {"message": "slow down"}}), LIMITED),
}

OPENAI = {
    "401 invalid_api_key": (
        401,
        encoded({"error": {"message": "x", "type": "invalid_request_error", "code": "invalid_api_key"}}),
        CREDENTIAL,
    ),
    "404 model_not_found": (
        404,
        encoded({"error": {"message": "x", "type": "invalid_request_error", "code": "model_not_found"}}),
        GONE,
    ),
    "404 without a code": (404, encoded({"error": {"message": "x", "type": "invalid_request_error"}}), GONE),
    "429 insufficient_quota": (
        429,
        encoded({"error": {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}}),
        QUOTA,
    ),
    "429 tokens": (
        429,
        encoded({"error": {"message": "x", "type": "tokens", "code": "rate_limit_exceeded"}}),
        LIMITED,
    ),
    "400 vLLM": (400, encoded({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}), CALLER),
    "404 vLLM": (404, encoded({"object": "error", "message": "x", "type": "NotFoundError", "code": 404}), GONE),
    "422 a detail": (422, encoded({"detail": "field required"}), CALLER),
    "422 a list of details": (422, encoded({"detail": [{"loc": ["body"]}]}), CALLER),
    "418": (418, b"", CALLER),
    "429 behind a new-api": (429, new_api(""), OVERLOADED),
    "400 plain text": (400, b"bad request", CALLER),
    "500 plain text": (500, b"upstream connect error or disconnect", TRANSIENT),
    "599": (599, b"\x00\xff", TRANSIENT),
}

ROWS = {"moonshot": MOONSHOT, "cometapi": COMETAPI, "evolink": EVOLINK, "openai": OPENAI}


@pytest.mark.parametrize(
    ("name", "status", "body", "kind"),
    [pytest.param(name, *row, id=f"{name}: {title}") for name, rows in ROWS.items() for title, row in rows.items()],
)
def test_a_refusal_is_read_by_its_words(name: str, status: int, body: bytes, kind: FailureClass) -> None:
    """The row's class; what is returned to the caller has a 4xx status, and everything else fails over."""
    failure = dialect(name).classify_failure(status, {}, body)
    assert failure.kind is kind
    assert failure.message
    if advise(failure, bytes_relayed=0) is Advice.RETURN:
        assert failure.http_status is not None
        assert 400 <= failure.http_status < 500
    else:
        assert failure.http_status == status


COMMON = [
    (name, title, row)
    for name, rows in ROWS.items()
    for title, row in rows.items()
    if (name, title) not in {("cometapi", "429 otherwise")}
]


@pytest.mark.parametrize(("name", "title", "row"), COMMON, ids=[f"{name}: {title}" for name, title, _ in COMMON])
def test_the_generic_dialect_understands_everybody(name: str, title: str, row: tuple[int, bytes, FailureClass]) -> None:
    """Anything may stand behind a generic address; only a bare 429 needs to know whose it is."""
    status, body, kind = row
    assert dialect("openai").classify_failure(status, {}, body).kind is kind


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        pytest.param({}, "words", None, id="absent"),
        pytest.param({"retry-after": "0"}, "words", 0.0, id="zero"),
        pytest.param({"retry-after": "7"}, "words", 7.0, id="whole"),
        pytest.param({"retry-after": "1.5"}, "words", 1.5, id="decimal"),
        pytest.param({"retry-after": "-5"}, "words", None, id="negative"),
        pytest.param({"retry-after": "nan"}, "words", None, id="not a number"),
        pytest.param({"retry-after": "soon"}, "words", None, id="a word"),
        pytest.param(
            {"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"},
            "words",
            30.0,
            id="HTTP-date by the answer's own clock",
        ),
        pytest.param(
            {"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"},
            "words",
            0.0,
            id="HTTP-date that has passed",
        ),
        pytest.param({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, "words", None, id="HTTP-date without a date"),
        pytest.param({"retry-after": "999999999"}, "words", 86_400.0, id="more than a day"),
        pytest.param({}, "please try again after 1 seconds", 1.0, id="Moonshot's sentence"),
        pytest.param({"retry-after": "0"}, "try again after 20 seconds", 20.0, id="the longer: message"),
        pytest.param({"retry-after": "30"}, "try again after 20 seconds", 30.0, id="the longer: header"),
        pytest.param({}, "Please try again in 6m0s.", 360.0, id="minutes and seconds"),
        pytest.param({}, "Please try again in 120ms.", 0.12, id="milliseconds"),
        pytest.param({}, "Please try again in 2 minutes", 120.0, id="minutes"),
        pytest.param({}, "reached max RPM: 3, 500 steps in 5 models", None, id="numbers that are no wait"),
    ],
)
def test_the_longest_named_wait_counts(headers: dict[str, str], message: str, seconds: float | None) -> None:
    """In the header, in the words, or nowhere; without a clock of our own."""
    failure = dialect("moonshot").classify_failure(429, headers, moonshot("rate_limit_reached_error", message))
    assert failure.retry_after == pytest.approx(seconds) if seconds is not None else failure.retry_after is None


def test_evolinks_hint_is_a_wait() -> None:
    """It stands beside the message (providers §3.4)."""
    body = evolink(503, "service_unavailable_error", fallback_suggestion="retry after 30 seconds")
    assert dialect("evolink").classify_failure(503, {}, body).retry_after == 30.0


@pytest.mark.parametrize(
    "message",
    [
        "Your request exceeded model token limit : 262144 (requested: 269030)",
        "Input token length too long",
        "This model's maximum context length is 262144 tokens",
    ],
)
def test_a_context_overflow_has_its_public_code(message: str) -> None:
    """A client may switch on it (INTERFACE §3), whoever found out."""
    for name, status in (("moonshot", 400), ("cometapi", 500), ("openai", 413)):
        failure = dialect(name).classify_failure(status, {}, moonshot("invalid_request_error", message))
        assert (failure.kind, failure.code, failure.message) == (CALLER, "context_length_exceeded", message)


def test_the_callers_own_fault_keeps_the_upstreams_words() -> None:
    """Message, code and field as they came; CometAPI's 500 becomes a 400."""
    body = encoded(
        {"error": {"message": "field x", "type": "comet_api_error", "param": "messages", "code": "invalid_request"}}
    )
    failure = dialect("cometapi").classify_failure(500, {}, body)
    assert (failure.http_status, failure.message) == (400, "field x")
    assert (failure.code, failure.param) == ("invalid_request", "messages")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "server_error"}, "server_error"),
        ({"type": "comet_api_error", "code": "invalid_request"}, "invalid_request"),
        ({"type": "rate_limit_error", "code": 429}, "rate_limit_error"),
        ({"code": 429}, "429"),
        ({}, None),
    ],
)
def test_the_word_that_says_most_is_the_code(error: dict[str, object], code: str | None) -> None:
    """A code in letters, else the type, else the number."""
    failure = dialect("openai").classify_failure(429, {}, encoded({"error": {"message": "x", **error}}))
    assert failure.code == code


def test_a_message_is_fit_to_be_shown() -> None:
    """On one line, of bounded length, and without a key that an upstream echoes (L13)."""
    body = moonshot("incorrect_api_key_error", "bad\x00 key\r\n sk-abcdef1234567890 " + "x" * 5000)
    failure = dialect("moonshot").classify_failure(401, {}, body)
    assert failure.message.startswith("bad  key  sk-… xxx")
    assert len(failure.message) == MESSAGE_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (302, HTML, "redirect"),
        (502, HTML, "an HTML page: 502 Bad Gateway"),
        (503, b"", "HTTP 503 without a message"),
        (500, b"upstream connect error", "upstream connect error"),
        (400, encoded({"error": "just text"}), "just text"),
    ],
)
def test_there_is_always_something_to_say(status: int, body: bytes, message: str) -> None:
    """An operator reads it; silence is said to be silence."""
    for known in DIALECTS.values():
        assert message in known.classify_failure(status, {}, body).message
