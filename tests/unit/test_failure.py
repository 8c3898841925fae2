"""What a failure advises: on before the first byte, honest after it, back to the caller for what is theirs."""

from __future__ import annotations

import pytest

from gateway.core.failure import Advice, Failure, FailureClass, advise

BEFORE = {
    FailureClass.CALLER_FAULT: Advice.RETURN,
    FailureClass.CONTENT_FILTERED: Advice.RETURN,
    FailureClass.CREDENTIAL: Advice.NEXT,
    FailureClass.QUOTA: Advice.NEXT,
    FailureClass.MODEL_GONE: Advice.NEXT,
    FailureClass.RATE_LIMITED: Advice.NEXT,
    FailureClass.OVERLOADED: Advice.NEXT,
    FailureClass.TRANSIENT: Advice.NEXT,
    FailureClass.UNREACHABLE: Advice.NEXT,
    FailureClass.TIMED_OUT: Advice.NEXT,
    FailureClass.BROKEN: Advice.NEXT,
    FailureClass.MODEL_MISMATCH: Advice.NEXT,
    FailureClass.DEFECT: Advice.RETURN,
    FailureClass.SHUTDOWN: Advice.RETURN,
    FailureClass.UNMETERED: Advice.RETURN,
}
BILLED = {"timed_out", "broken", "model_mismatch", "defect", "shutdown"}


@pytest.mark.parametrize("kind", FailureClass)
def test_advice_for_every_kind(kind: FailureClass) -> None:
    """The table of providers §10.4, and nothing but the stream once a byte has left (L9)."""
    failure = Failure(kind=kind, message="words")
    assert advise(failure, bytes_relayed=0) is BEFORE[kind]
    assert advise(failure, bytes_relayed=1) is Advice.IN_STREAM


@pytest.mark.parametrize("kind", FailureClass)
def test_what_may_be_billed(kind: FailureClass) -> None:
    """A refusal is free; what was sent and not refused may be on the bill (INTERFACE §4)."""
    assert Failure(kind=kind, message="words").may_be_billed is (kind.value in BILLED)
