"""A failure says what one failed attempt teaches about the caller, the account, the model and the provider.

Classes follow the words of the upstream's error before its status (providers §1.6, §2.6, §3.4, §4).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never


class FailureClass(StrEnum):
    """What a failed attempt says. The value is the ledger's ``error_type`` and the metric's ``error.type``."""

    CALLER_FAULT = "caller_fault"  # the request itself is wrong; another provider would say the same
    CONTENT_FILTERED = "content_filtered"  # the provider refuses this content; returned, not tried elsewhere
    CREDENTIAL = "credential"  # our key is wrong or not allowed; every call with it fails until mended
    QUOTA = "quota"  # our account has no money; waiting does not help, topping up does
    MODEL_GONE = "model_gone"  # this provider does not serve this model (any more)
    RATE_LIMITED = "rate_limited"  # our account's own limit; wait as told
    OVERLOADED = "overloaded"  # the provider has no capacity just now
    TRANSIENT = "transient"  # the provider broke; try elsewhere
    UNREACHABLE = "unreachable"  # no connection; nothing was sent, so nothing is owed
    TIMED_OUT = "timed_out"  # sent, then silence; may be billed
    BROKEN = "broken"  # sent, then a cut or malformed answer; may be billed
    MODEL_MISMATCH = "model_mismatch"  # another model answered than was asked for, and policy rejects that
    DEFECT = "defect"  # the gateway itself broke while the answer was under way
    SHUTDOWN = "shutdown"  # the gateway gave up because it is stopping
    UNMETERED = "metering_unavailable"  # the intent did not reach the disk; nothing was sent, so nothing is owed


MAY_BE_BILLED: Final = frozenset(
    {
        FailureClass.TIMED_OUT,
        FailureClass.BROKEN,
        FailureClass.MODEL_MISMATCH,
        FailureClass.DEFECT,
        FailureClass.SHUTDOWN,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt, classified.

    ``message`` is the upstream's own text (shown to a caller only for their own faults); ``code`` its ``type`` or
    ``code``; ``retry_after`` seconds by the provider's own words, None if it named none.
    """

    kind: FailureClass
    message: str
    http_status: int | None = None
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    @property
    def may_be_billed(self) -> bool:
        return self.kind in MAY_BE_BILLED


class Advice(StrEnum):
    """What to do after a failed attempt."""

    RETURN = "return"  # tell the caller in the upstream's words
    NEXT = "next"  # try the next candidate
    IN_STREAM = "in_stream"  # too late: end the open stream with an honest error


def advise(failure: Failure, *, bytes_relayed: int) -> Advice:
    """Fail over freely before the first byte of an answer, never silently after it (providers §10.4)."""
    if bytes_relayed:
        return Advice.IN_STREAM
    match failure.kind:
        case FailureClass.CALLER_FAULT | FailureClass.CONTENT_FILTERED:
            return Advice.RETURN
        case (
            FailureClass.CREDENTIAL
            | FailureClass.QUOTA
            | FailureClass.MODEL_GONE
            | FailureClass.RATE_LIMITED
            | FailureClass.OVERLOADED
            | FailureClass.TRANSIENT
            | FailureClass.UNREACHABLE
            | FailureClass.TIMED_OUT
            | FailureClass.BROKEN
            | FailureClass.MODEL_MISMATCH
        ):
            return Advice.NEXT
        case FailureClass.DEFECT | FailureClass.SHUTDOWN | FailureClass.UNMETERED:
            return Advice.RETURN
    assert_never(failure.kind)
