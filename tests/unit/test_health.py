"""A subject's health as a state machine, worked by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.failure import Failure, FailureClass
from gateway.core.health import (
    BREAKAGE,
    OUT_FOR,
    PROBE_SECONDS,
    WELL,
    WHY,
    Health,
    Subject,
    after_failure,
    after_success,
    claim_probe,
    release_probe,
    subject_of,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OWN_WORDS = frozenset(OUT_FOR) - BREAKAGE
NOBODYS = frozenset(FailureClass) - frozenset(OUT_FOR)


def failure(kind: FailureClass = FailureClass.TRANSIENT, retry_after: float | None = None) -> Failure:
    return Failure(kind=kind, message="words", retry_after=retry_after)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def failed(times: int, health: Health = WELL, *, kind: FailureClass = FailureClass.TRANSIENT) -> Health:
    for _ in range(times):
        health = after_failure(health, failure(kind), NOW, jitter=0)
    return health


def seconds_out(health: Health, now: datetime = NOW) -> float:
    assert health.out_until is not None
    return (health.out_until - now).total_seconds()


@pytest.mark.parametrize("kind", sorted(BREAKAGE))
def test_breakage_opens_after_five(kind: FailureClass) -> None:
    """Four in a row are bad luck."""
    assert failed(4, kind=kind).out_until is None
    assert seconds_out(failed(5, kind=kind)) == 15


@pytest.mark.parametrize("kind", sorted(OWN_WORDS))
def test_its_own_words_are_believed_at_once(kind: FailureClass) -> None:
    """One is enough, for the first time of its kind."""
    assert seconds_out(failed(1, kind=kind)) == OUT_FOR[kind].first


@pytest.mark.parametrize("kind", sorted(OUT_FOR))
def test_time_out_doubles_to_its_longest(kind: FailureClass) -> None:
    """Each failed probe doubles it, and however many there were it stays what it may be."""
    now, health = NOW, failed(5, kind=kind) if kind in BREAKAGE else failed(1, kind=kind)
    expected = float(OUT_FOR[kind].first)
    for _ in range(50):
        assert seconds_out(health, now) == expected
        now = health.out_until or now
        health = after_failure(health, failure(kind), now, jitter=0)
        expected = min(OUT_FOR[kind].longest, expected * 2)
    assert expected == OUT_FOR[kind].longest


def test_jitter_spreads_the_way_back() -> None:
    """Up to a tenth longer, never shorter."""
    for jitter, seconds in ((0.0, 600.0), (0.5, 630.0), (0.999, 659.94)):
        health = after_failure(WELL, failure(FailureClass.CREDENTIAL), NOW, jitter=jitter)
        assert seconds_out(health) == pytest.approx(seconds)


@pytest.mark.parametrize(("told", "seconds"), [(None, 2), (0.0, 2), (1.0, 2), (7.0, 7), (3_600.0, 3_600)])
def test_a_rate_limit_lasts_as_long_as_it_was_told(told: float | None, seconds: float) -> None:
    """The provider's seconds, but not less than our own."""
    health = after_failure(WELL, failure(FailureClass.RATE_LIMITED, told), NOW, jitter=0)
    assert seconds_out(health) == seconds
    assert health.is_out(at(seconds - 0.001))
    assert not health.is_out(at(seconds))
    assert not health.awaits_probe(at(seconds))


def test_after_its_time_a_circuit_awaits_a_probe() -> None:
    """One at a time; one that does not report is taken for lost."""
    health = failed(5)
    assert health.is_out(at(14.9))
    assert not health.awaits_probe(at(14.9))
    assert health.awaits_probe(at(15))
    probing = claim_probe(health, at(15))
    assert probing.probe_in_flight(at(15 + PROBE_SECONDS - 0.1))
    assert not probing.probe_in_flight(at(15 + PROBE_SECONDS))
    assert release_probe(probing) == health


def test_a_success_ends_it_and_a_failed_probe_does_not() -> None:
    """One success closes; one failure of a probe opens for twice as long."""
    probing = claim_probe(failed(5), at(15))
    closed = after_success(probing, at(16))
    assert (closed.out_until, closed.kind, closed.times_out, closed.consecutive_failures) == (None, None, 0, 0)
    assert closed.probe_until is None
    again = after_failure(probing, failure(), at(16), jitter=0)
    assert seconds_out(again, at(16)) == 30
    assert again.probe_until is None


def test_a_success_while_out_is_only_believed_of_breakage() -> None:
    """An answer that began earlier shows that the provider works, not that our key or purse does."""
    assert after_success(failed(5), at(1)).out_until is None
    for kind in OWN_WORDS:
        out = failed(1, kind=kind)
        assert after_success(out, at(1)).out_until == out.out_until


def test_failures_while_out_change_nothing_but_for_longer_waits() -> None:
    """A burst that fails together counts once; a longer wait by the provider's own word is heeded."""
    out = failed(5)
    assert failed(50, out).out_until == out.out_until
    limited = after_failure(WELL, failure(FailureClass.RATE_LIMITED, 30.0), NOW, jitter=0)
    shorter = after_failure(limited, failure(FailureClass.RATE_LIMITED, 5.0), at(1), jitter=0)
    assert (shorter.out_until, shorter.times_out) == (limited.out_until, 1)
    longer = after_failure(limited, failure(FailureClass.RATE_LIMITED, 90.0), at(1), jitter=0)
    assert seconds_out(longer) == 91
    broke = after_failure(limited, failure(FailureClass.QUOTA), at(1), jitter=0)
    assert (seconds_out(broke), broke.kind) == (301, FailureClass.QUOTA)


def test_failing_too_often_opens_too() -> None:
    """A fifth of twenty attempts within half a minute; fewer attempts, or older ones, do not count."""
    health = WELL
    for number in range(1, 20):
        health = after_failure(health, failure(), NOW, jitter=0) if number % 4 == 0 else after_success(health, NOW)
    assert health.out_until is None
    assert after_failure(health, failure(), at(29), jitter=0).out_until is not None
    assert after_failure(health, failure(), at(30), jitter=0).out_until is None


def test_a_failed_probe_opens_again_whatever_opened_it() -> None:
    """Also a circuit that never failed five times in a row."""
    often = Health(window_started=NOW, window_attempts=30, window_failures=10)
    opened = after_failure(often, failure(), NOW, jitter=0)
    assert opened.consecutive_failures == 1
    again = after_failure(claim_probe(opened, at(60)), failure(), at(60), jitter=0)
    assert seconds_out(again, at(60)) == 30


@pytest.mark.parametrize(
    ("kinds", "subject"),
    [
        ({"credential", "quota", "rate_limited"}, Subject("p", "a", None)),
        ({"model_gone", "model_mismatch"}, Subject("p", None, "m")),
        ({"overloaded", "transient", "unreachable", "timed_out", "broken"}, Subject("p", "a", "m")),
        ({"caller_fault", "content_filtered", "defect", "shutdown", "metering_unavailable"}, None),
    ],
    ids=["account", "model", "circuit", "nobody"],
)
def test_whom_a_failure_is_about(kinds: set[str], subject: Subject | None) -> None:
    """Every kind is about exactly one of them."""
    for kind in kinds:
        assert subject_of(failure(FailureClass(kind)), provider="p", account="a", model="m") == subject


def test_every_kind_that_puts_out_has_words_for_it() -> None:
    """What an operator and a caller are told."""
    assert set(WHY) == set(OUT_FOR)
    assert {
        kind for kind in FailureClass if subject_of(failure(kind), provider="p", account="a", model="m") is None
    } == (NOBODYS)
