"""Health is a state machine: (state, event, now) -> state; what fails is out a growing while, and back by one probe.

Three kinds of subject: an account (credential, money, its own limits), a model at a provider (gone), and the circuit
of provider x account x model (it breaks). Figures: Envoy's outlier detection and the retry budget of INTERFACE §3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple, assert_never

from gateway.core.failure import Failure, FailureClass

CONSECUTIVE_FAILURES_MAX: Final = 5
RATE_ATTEMPTS_MIN: Final = 20
RATE_FAILURES_PERCENT_MAX: Final = 20
"""A circuit that fails more often than retries are budgeted for is opened (INTERFACE §3: 20 % of traffic)."""
WINDOW_SECONDS: Final = 30
PROBE_SECONDS: Final = 120
"""A probe that has not reported by then is taken for lost, and another may go."""


BREAKAGE: Final = frozenset(
    {
        FailureClass.OVERLOADED,
        FailureClass.TRANSIENT,
        FailureClass.UNREACHABLE,
        FailureClass.TIMED_OUT,
        FailureClass.BROKEN,
    }
)
"""What opens a circuit only when it repeats; every other kind is the provider's own word, believed at once."""
DOUBLINGS_MAX: Final = 16


class Subject(NamedTuple):
    """What is ill: an account (no model), a model at a provider (no account), or a circuit (both)."""

    provider: str
    account: str | None
    model: str | None


class OutFor(NamedTuple):
    """First and longest time out, in seconds; it doubles each time in a row."""

    first: float
    longest: float


OUT_FOR: Final = {
    FailureClass.CREDENTIAL: OutFor(600, 3600),
    FailureClass.QUOTA: OutFor(300, 3600),
    FailureClass.MODEL_GONE: OutFor(600, 6 * 3600),
    FailureClass.RATE_LIMITED: OutFor(2, 60),
    FailureClass.OVERLOADED: OutFor(15, 300),
    FailureClass.TRANSIENT: OutFor(15, 300),
    FailureClass.UNREACHABLE: OutFor(15, 300),
    FailureClass.TIMED_OUT: OutFor(15, 300),
    FailureClass.BROKEN: OutFor(15, 300),
    FailureClass.MODEL_MISMATCH: OutFor(600, 6 * 3600),
}

WHY: Final = {
    FailureClass.CREDENTIAL: "the provider refused our credential",
    FailureClass.QUOTA: "the account has no money left",
    FailureClass.MODEL_GONE: "the provider does not serve this model any more",
    FailureClass.RATE_LIMITED: "the account reached the provider's rate limit",
    FailureClass.OVERLOADED: "the provider is overloaded",
    FailureClass.TRANSIENT: "the provider keeps failing",
    FailureClass.UNREACHABLE: "the provider cannot be reached",
    FailureClass.TIMED_OUT: "the provider does not answer in time",
    FailureClass.BROKEN: "the provider's answers break off",
    FailureClass.MODEL_MISMATCH: "the provider answers with another model",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One subject's state. ``out_until`` None = in; ``kind`` says what it was last out for."""

    consecutive_failures: int = 0
    window_started: datetime | None = None
    window_attempts: int = 0
    window_failures: int = 0
    times_out: int = 0
    out_until: datetime | None = None
    kind: FailureClass | None = None
    probe_until: datetime | None = None

    def is_out(self, now: datetime) -> bool:
        return self.out_until is not None and now < self.out_until

    def awaits_probe(self, now: datetime) -> bool:
        """Its time out is over but nothing has proved it well. A rate limit needs no proof: its time was told."""
        return self.out_until is not None and now >= self.out_until and self.kind is not FailureClass.RATE_LIMITED

    def probe_in_flight(self, now: datetime) -> bool:
        return self.probe_until is not None and now < self.probe_until


WELL: Final = Health()


def subject_of(failure: Failure, *, provider: str, account: str, model: str) -> Subject | None:
    """Whom a failure is about; None when it says nothing about the provider."""
    match failure.kind:
        case FailureClass.CREDENTIAL | FailureClass.QUOTA | FailureClass.RATE_LIMITED:
            return Subject(provider, account, None)
        case FailureClass.MODEL_GONE | FailureClass.MODEL_MISMATCH:
            return Subject(provider, None, model)
        case (
            FailureClass.OVERLOADED
            | FailureClass.TRANSIENT
            | FailureClass.UNREACHABLE
            | FailureClass.TIMED_OUT
            | FailureClass.BROKEN
        ):
            return Subject(provider, account, model)
        case FailureClass.CALLER_FAULT | FailureClass.CONTENT_FILTERED:
            return None
        case FailureClass.DEFECT | FailureClass.SHUTDOWN | FailureClass.UNMETERED:
            return None
    assert_never(failure.kind)


def after_success(health: Health, now: datetime) -> Health:
    """An attempt worked: whatever was wrong is over; the window remembers that it happened.

    Except for what the provider said of itself while this attempt was already under way: an answer that began before
    a rate limit, or before a credential was refused, proves nothing about either.
    """
    counted = _counted(health, now, failed=False)
    if health.is_out(now) and health.kind not in BREAKAGE:
        return replace(counted, consecutive_failures=0)
    return replace(counted, consecutive_failures=0, times_out=0, out_until=None, kind=None, probe_until=None)


def after_failure(health: Health, failure: Failure, now: datetime, *, jitter: float) -> Health:
    """An attempt failed in a way that is about this subject. ``jitter`` in [0, 1) spreads the way back."""
    assert 0 <= jitter < 1
    counted = replace(
        _counted(health, now, failed=True), consecutive_failures=health.consecutive_failures + 1, probe_until=None
    )
    if health.is_out(now):
        return _kept_out(counted, failure, now)
    if not _is_enough(counted, failure.kind, was_probe=health.out_until is not None):
        return counted
    bounds = OUT_FOR[failure.kind]
    told = failure.retry_after or 0.0
    doubled = bounds.first * 2 ** min(counted.times_out, DOUBLINGS_MAX)
    seconds = max(told, min(bounds.longest, doubled)) * (1 + jitter / 10)
    return replace(
        counted, out_until=now + timedelta(seconds=seconds), times_out=counted.times_out + 1, kind=failure.kind
    )


def _kept_out(health: Health, failure: Failure, now: datetime) -> Health:
    """Another failure of one that is out already: it stays out for at least as long as this one says of itself."""
    assert health.out_until is not None
    if failure.kind in BREAKAGE:
        return health
    until = now + timedelta(seconds=max(failure.retry_after or 0.0, OUT_FOR[failure.kind].first))
    return health if until <= health.out_until else replace(health, out_until=until, kind=failure.kind)


def claim_probe(health: Health, now: datetime) -> Health:
    """One request goes to see whether the subject is well again."""
    return replace(health, probe_until=now + timedelta(seconds=PROBE_SECONDS))


def release_probe(health: Health) -> Health:
    """The probe ended without saying anything about the subject (its client hung up, its request was wrong)."""
    return replace(health, probe_until=None)


def _is_enough(health: Health, kind: FailureClass, *, was_probe: bool) -> bool:
    """Whether this failure puts the subject out: its own words at once, mere breakage when it repeats."""
    if was_probe or kind not in BREAKAGE:
        return True
    if health.consecutive_failures >= CONSECUTIVE_FAILURES_MAX:
        return True
    enough_seen = health.window_attempts >= RATE_ATTEMPTS_MIN
    return enough_seen and health.window_failures * 100 >= health.window_attempts * RATE_FAILURES_PERCENT_MAX


def _counted(health: Health, now: datetime, *, failed: bool) -> Health:
    started = health.window_started
    if started is None or (now - started).total_seconds() >= WINDOW_SECONDS:
        return replace(health, window_started=now, window_attempts=1, window_failures=int(failed))
    return replace(
        health,
        window_attempts=health.window_attempts + 1,
        window_failures=health.window_failures + int(failed),
    )
