"""A refusal is an answer given before any upstream was called; it costs nothing and says how to mend the request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.core.limits import RateStates


class RefusalCode(StrEnum):
    """The public error codes of INTERFACE §3; a client may switch on them."""

    INVALID_REQUEST = "invalid_request_error"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    BUDGET_EXCEEDED = "budget_exceeded"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    PROVIDER_NOT_ALLOWED = "provider_not_allowed"
    ROLE_NOT_ALLOWED = "role_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    UPSTREAM_ERROR = "upstream_error"
    NO_PROVIDER_AVAILABLE = "no_provider_available"
    OVERLOADED = "overloaded"
    METERING_UNAVAILABLE = "metering_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL = "internal_error"


STATUS: Final = {
    RefusalCode.INVALID_REQUEST: 400,
    RefusalCode.CONTEXT_LENGTH_EXCEEDED: 400,
    RefusalCode.INVALID_API_KEY: 401,
    RefusalCode.BUDGET_EXCEEDED: 402,
    RefusalCode.MODEL_NOT_ALLOWED: 403,
    RefusalCode.PROVIDER_NOT_ALLOWED: 403,
    RefusalCode.ROLE_NOT_ALLOWED: 403,
    RefusalCode.MODEL_NOT_FOUND: 404,
    RefusalCode.NOT_FOUND: 404,
    RefusalCode.METHOD_NOT_ALLOWED: 405,
    RefusalCode.REQUEST_TOO_LARGE: 413,
    RefusalCode.RATE_LIMIT_EXCEEDED: 429,
    RefusalCode.UPSTREAM_ERROR: 502,
    RefusalCode.NO_PROVIDER_AVAILABLE: 503,
    RefusalCode.OVERLOADED: 503,
    RefusalCode.METERING_UNAVAILABLE: 503,
    RefusalCode.STORE_UNAVAILABLE: 503,
    RefusalCode.INTERNAL: 500,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What happened and what to do, for the caller's eyes.

    ``param`` names the offending field; ``retry_after`` is in seconds; ``status`` overrides the code's own where an
    upstream's client error is passed on with its status; ``rates`` are the caller's limits as they stand.
    """

    code: RefusalCode
    message: str
    param: str | None = None
    retry_after: float | None = None
    status: int = 0
    upstream_code: str | None = None
    rates: RateStates | None = None

    @property
    def http_status(self) -> int:
        return self.status or STATUS[self.code]


class RefusedError(Exception):
    """Carries a refusal up to the edge, where the surface renders it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


INTERNAL: Final = Refusal(
    code=RefusalCode.INTERNAL,
    message="The gateway failed on this request; the administrator finds why in its log under this request id.",
)
"""What a caller is told of a defect."""
