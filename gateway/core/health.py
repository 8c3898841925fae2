"""Health is a state machine: (state, event, now) -> state; what fails is out a growing while, and back by one probe.

Three kinds of subject: an account (credential, money, its own limits), a model at a provider (gone), and the circuit
of provider x account x model (it breaks). Events are the ends and first bytes of attempts, what a free question to the
provider (its list of models, a balance) showed, and what another replica has told.

Its figures, for an outage of a minute that nobody announced: to be wrong about a circuit is cheap, so two failures are
enough, and the first time out is three seconds; it grows by a half, so that by trying alone it is found well again
after a quarter of the time that it was away, at the most after half of it, and eight tries are lost in a minute. Two
minutes are the longest: tries that are lost take from the retries that others need. Whoever can be asked for free ends
the time out sooner: a question that failed and now is answered says that something has changed. Only a failure that
costs a caller minutes is kept away from callers for longer.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

from gateway.core.failure import Failure, FailureClass

CONSECUTIVE_FAILURES_MAX: Final = 2
RATE_ATTEMPTS_MIN: Final = 20
RATE_FAILURES_SHARE_MAX: Final = 0.2
"""A circuit that fails more often than retries are budgeted for is opened (20 % of traffic)."""
HALF_LIFE_SECONDS: Final = 30.0
"""What was seen counts half as much after so long."""
PRIOR_ATTEMPTS: Final = 2.0
"""One that nobody has tried lately is believed well, as if so many attempts had worked."""
BILLED_WEIGHT: Final = 0.1
PROBE_SECONDS: Final = 15
"""A probe that has not reported by then does not keep others from trying: what failed at once before fails no more."""
SLOW_PROBE_SECONDS: Final = 120
"""The same where it was its silence that put the subject out."""


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
GROWTHS_MAX: Final = 32
FREE_PAUSE_SHARE: Final = 0.05
"""Whoever is away is asked for free after a twentieth of its absence again, so that it is not away much longer."""


class Subject(NamedTuple):
    """What is ill: an account (no model), a model at a provider (no account), or a circuit (both)."""

    provider: str
    account: str | None
    model: str | None

    @property
    def is_circuit(self) -> bool:
        return self.account is not None and self.model is not None


class OutFor(NamedTuple):
    """First and longest time out, in seconds; it grows by the factor each time in a row."""

    first: float
    longest: float
    growth: float = 2.0


_SOON: Final = OutFor(3, 120, 1.5)
OUT_FOR: Final = {
    FailureClass.CREDENTIAL: OutFor(600, 3600),
    FailureClass.QUOTA: OutFor(300, 3600),
    FailureClass.MODEL_GONE: OutFor(600, 6 * 3600),
    FailureClass.RATE_LIMITED: OutFor(2, 60),
    FailureClass.OVERLOADED: _SOON,
    FailureClass.TRANSIENT: _SOON,
    FailureClass.UNREACHABLE: _SOON,
    FailureClass.TIMED_OUT: OutFor(15, 300),
    FailureClass.BROKEN: _SOON,
    FailureClass.MODEL_MISMATCH: OutFor(600, 6 * 3600),
}

FREE_PAUSES: Final = {
    FailureClass.CREDENTIAL: (60.0, 600.0),
    FailureClass.QUOTA: (10.0, 300.0),
    FailureClass.MODEL_GONE: (30.0, 600.0),
}
"""Shortest and longest pause between two free questions, in seconds; of breakage see below."""
FREE_PAUSE_OF_BREAKAGE: Final = (2.0, 30.0)

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


class Health(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One subject's state. ``out_until`` None = in; ``kind`` says what it was last out for.

    ``attempts`` and ``failures`` are as of ``counted_at`` and fade from then on; ``billed_share`` is of its failures.
    ``turned_at``: it is in, or out, as an attempt of that moment or a later one has shown. ``free_probe``: what the
    last free question of this time out showed, None where none was asked. ``changed_at`` orders what replicas tell.
    """

    consecutive_failures: int = 0
    attempts: float = 0.0
    failures: float = 0.0
    counted_at: datetime | None = None
    billed_share: float = 0.0
    times_out: int = 0
    out_since: datetime | None = None
    out_until: datetime | None = None
    kind: FailureClass | None = None
    turned_at: datetime | None = None
    probe_until: datetime | None = None
    free_probe: bool | None = None
    free_probe_at: datetime | None = None
    changed_at: datetime | None = None

    def is_out(self, now: datetime) -> bool:
        """Its time out is not over; or it is, and the provider itself says that a request would be wasted: a model
        that it does not list, or has not been asked for yet, an account without money."""
        if self.out_until is None:
            return False
        if now < self.out_until:
            return True
        if self.kind is FailureClass.MODEL_GONE:
            return self.free_probe is not True
        return self.kind is FailureClass.QUOTA and self.free_probe is False

    @property
    def until_words(self) -> str:
        """Until when one that is out stays out, for operators and callers."""
        assert self.out_until is not None
        moment = f"{self.out_until:%H:%M:%S}Z"
        if self.kind is FailureClass.MODEL_GONE and self.free_probe is not True:
            return f"out until the provider lists it, and until {moment} at least"
        if self.kind is FailureClass.QUOTA and self.free_probe is False:
            return "out until its balance is above zero"
        return f"out until {moment}"

    def awaits_probe(self, now: datetime) -> bool:
        """Its time out is over but nothing has proved it well. A rate limit needs no proof: its time was told."""
        return self.out_until is not None and self.kind is not FailureClass.RATE_LIMITED and not self.is_out(now)

    def probe_in_flight(self, now: datetime) -> bool:
        return self.probe_until is not None and now < self.probe_until


WELL: Final = Health()


class HealthChanged(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="h"):
    """What one replica tells the others: this subject went out, came back, is being probed, or was asked about."""

    provider: str
    account: str | None
    model: str | None
    health: Health

    @property
    def subject(self) -> Subject:
        return Subject(self.provider, self.account, self.model)


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


# --- what attempts show ----------------------------------------------------------------------------------------------


def after_first_byte(health: Health, now: datetime, *, began: datetime) -> Health:
    """An answer has begun: the subject is in again, though the growth of its times out is only forgotten at the end of
    a good answer. ``began`` is when the attempt was sent."""
    if health.out_until is None or _proves_nothing(health, now, began):
        return health
    return _turned(health, now, began, times_out=health.times_out)


def after_success(health: Health, now: datetime, *, began: datetime) -> Health:
    """An attempt worked: whatever was wrong is over; and it is remembered for a while that it worked.

    Except for one that was sent before the subject went out, and for what the provider said of itself meanwhile: an
    answer to an earlier question proves nothing about either.
    """
    if health.out_until is None:
        return replace(_counted(health, now, failed=False), consecutive_failures=0, times_out=0)
    if _proves_nothing(health, now, began):
        return health
    return _counted(_turned(health, now, began, times_out=0), now, failed=False)


def after_failure(
    health: Health, failure: Failure, now: datetime, *, began: datetime, jitter: float, billed: bool = False
) -> Health:
    """An attempt failed in a way that is about this subject. ``jitter`` in [0, 1) spreads the way back; ``billed``
    says whether it is owed all the same.

    Breakage of an attempt that was sent before the subject last turned is old news: it may be a silence that began in
    an outage which is over.
    """
    assert 0 <= jitter < 1
    health = replace(health, billed_share=health.billed_share + BILLED_WEIGHT * (billed - health.billed_share))
    if failure.kind in BREAKAGE and health.turned_at is not None and began < health.turned_at:
        return health
    if health.is_out(now):
        return _kept_out(health, failure, now)
    counted = replace(_counted(health, now, failed=True), consecutive_failures=health.consecutive_failures + 1)
    if not _is_enough(counted, failure.kind):
        return counted
    bounds = OUT_FOR[failure.kind]
    grown = bounds.first * bounds.growth ** min(counted.times_out, GROWTHS_MAX)
    seconds = max(failure.retry_after or 0.0, min(bounds.longest, grown)) * (1 + jitter / 10)
    return replace(
        WELL,
        billed_share=counted.billed_share,
        consecutive_failures=counted.consecutive_failures,
        times_out=counted.times_out + 1,
        out_since=counted.out_since or now,
        out_until=now + timedelta(seconds=seconds),
        kind=failure.kind,
        turned_at=now,
        changed_at=_later(health, now),
    )


def _kept_out(health: Health, failure: Failure, now: datetime) -> Health:
    """Another failure of one that is out already: it stays out for at least as long as this one says of itself."""
    assert health.out_until is not None
    if failure.kind in BREAKAGE:
        return health
    until = now + timedelta(seconds=max(failure.retry_after or 0.0, OUT_FOR[failure.kind].first))
    if until <= health.out_until:
        return health
    known = health.free_probe if failure.kind is health.kind else None
    return replace(health, out_until=until, kind=failure.kind, free_probe=known, changed_at=_later(health, now))


def _proves_nothing(health: Health, now: datetime, began: datetime) -> bool:
    """Whether a good answer to an attempt of ``began`` leaves open if one that is out is well again."""
    if health.is_out(now) and health.kind not in BREAKAGE:
        return True
    return health.turned_at is not None and began < health.turned_at


def _turned(health: Health, now: datetime, began: datetime, *, times_out: int) -> Health:
    """In again, without what was held against it."""
    return replace(
        WELL,
        billed_share=health.billed_share,
        times_out=times_out,
        turned_at=began,
        free_probe_at=health.free_probe_at,
        changed_at=_later(health, now),
    )


def _is_enough(health: Health, kind: FailureClass) -> bool:
    """Whether this failure puts the subject out: its own words at once, a probe's too, breakage when it repeats."""
    if health.out_until is not None or kind not in BREAKAGE:
        return True
    if health.consecutive_failures >= CONSECUTIVE_FAILURES_MAX:
        return True
    return health.attempts >= RATE_ATTEMPTS_MIN and health.failures >= health.attempts * RATE_FAILURES_SHARE_MAX


def _counted(health: Health, now: datetime, *, failed: bool) -> Health:
    left = _left(health, now)
    return replace(
        health,
        attempts=health.attempts * left + 1.0,
        failures=health.failures * left + failed,
        counted_at=now,
    )


def _left(health: Health, now: datetime) -> float:
    """The share of what was counted that still counts."""
    if health.counted_at is None:
        return 0.0
    return float(2.0 ** (-max(0.0, (now - health.counted_at).total_seconds()) / HALF_LIFE_SECONDS))


def failure_probability(health: Health, now: datetime) -> float:
    """How likely the next attempt fails, in [0, 1). What has put the subject out is not held against it once more."""
    if not health.failures:
        return 0.0
    left = _left(health, now)
    return health.failures * left / (health.attempts * left + PRIOR_ATTEMPTS)


# --- probes ----------------------------------------------------------------------------------------------------------


def claim_probe(health: Health, now: datetime) -> Health:
    """One request goes to see whether the subject is well again."""
    until = now + timedelta(seconds=probe_seconds(health))
    return replace(health, probe_until=until, changed_at=_later(health, now))


def probe_seconds(health: Health) -> int:
    """For how long a probe goes alone."""
    return SLOW_PROBE_SECONDS if health.kind is FailureClass.TIMED_OUT else PROBE_SECONDS


def release_probe(health: Health, now: datetime) -> Health:
    """The probe ended without saying anything about the subject (its client hung up, its request was wrong)."""
    return replace(health, probe_until=None, changed_at=_later(health, now))


def after_free_probe(health: Health, now: datetime, *, ok: bool) -> Health:
    """A question that costs nothing was asked about a subject that is out: of a circuit whether anything answers, of a
    missing model whether it is listed, of an account whether its key is taken or it has money.

    If that failed during this time out and now does not, something has changed, and a probe may go at once. If it never
    failed, it proves nothing and the time out stands: completions may fail where lists are served.
    """
    if health.out_until is None:
        return health
    has_changed = ok and health.free_probe is False
    return replace(
        health,
        out_until=min(now, health.out_until) if has_changed else health.out_until,
        free_probe=ok,
        free_probe_at=now,
        changed_at=_later(health, now) if ok is not health.free_probe else health.changed_at,
    )


def free_pause_seconds(health: Health, now: datetime) -> float:
    """How long to wait until a free question about one that is out is asked again."""
    if health.kind is None or health.out_since is None:
        return FREE_PAUSE_OF_BREAKAGE[1]
    shortest, longest = FREE_PAUSES.get(health.kind, FREE_PAUSE_OF_BREAKAGE)
    return min(longest, max(shortest, (now - health.out_since).total_seconds() * FREE_PAUSE_SHARE))


def after_reload(health: Health, now: datetime) -> Health:
    """An operator may have mended what a provider said of an account or a model; breakage he cannot mend."""
    if health.kind is None or health.kind in BREAKAGE or health.kind is FailureClass.RATE_LIMITED:
        return health
    return _turned(health, now, now, times_out=0)


# --- replicas --------------------------------------------------------------------------------------------------------


def after_news(health: Health, told: Health) -> Health:
    """What another replica knows, if it is newer than what this one knows; each keeps its own counts."""
    if told.changed_at is None or (health.changed_at is not None and told.changed_at <= health.changed_at):
        return health
    return replace(
        told,
        consecutive_failures=0 if told.out_until is None else health.consecutive_failures,
        attempts=health.attempts,
        failures=health.failures,
        counted_at=health.counted_at,
        billed_share=health.billed_share,
    )


def _later(health: Health, now: datetime) -> datetime:
    """Now, though never before what was known already: replicas' clocks differ."""
    if health.changed_at is None or now > health.changed_at:
        return now
    return health.changed_at + timedelta(microseconds=1)
