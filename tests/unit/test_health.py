"""A subject's health as a state machine, worked by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from gateway.core.failure import Failure, FailureClass
from gateway.core.health import (
    BREAKAGE,
    HALF_LIFE_SECONDS,
    OUT_FOR,
    PROBE_SECONDS,
    SLOW_PROBE_SECONDS,
    WELL,
    WHY,
    Health,
    Subject,
    after_failure,
    after_first_byte,
    after_free_probe,
    after_news,
    after_reload,
    after_success,
    claim_probe,
    failure_probability,
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


def fails(
    health: Health = WELL,
    kind: FailureClass = FailureClass.TRANSIENT,
    *,
    now: float = 0,
    began: float | None = None,
    told: float | None = None,
    jitter: float = 0,
    billed: bool = False,
) -> Health:
    """One failure ``now`` seconds after the beginning."""
    sent = at(now if began is None else began)
    return after_failure(health, failure(kind, told), at(now), began=sent, jitter=jitter, billed=billed)


def works(health: Health, now: float, *, began: float | None = None) -> Health:
    return after_success(health, at(now), began=at(now if began is None else began))


def failed(times: int, health: Health = WELL, *, kind: FailureClass = FailureClass.TRANSIENT) -> Health:
    for _ in range(times):
        health = fails(health, kind)
    return health


def seconds_out(health: Health, now: float = 0) -> float:
    assert health.out_until is not None
    return (health.out_until - at(now)).total_seconds()


@pytest.mark.parametrize("kind", sorted(BREAKAGE))
def test_breakage_opens_when_it_repeats(kind: FailureClass) -> None:
    """One is bad luck, two are not; a success between them starts the count again."""
    assert failed(1, kind=kind).out_until is None
    assert seconds_out(failed(2, kind=kind)) == OUT_FOR[kind].first
    assert fails(works(failed(1, kind=kind), 1), kind, now=2).out_until is None


@pytest.mark.parametrize("kind", sorted(OWN_WORDS))
def test_its_own_words_are_believed_at_once(kind: FailureClass) -> None:
    """One is enough, for the first time of its kind."""
    assert seconds_out(failed(1, kind=kind)) == OUT_FOR[kind].first


@pytest.mark.parametrize("kind", sorted(OUT_FOR))
def test_time_out_grows_to_its_longest(kind: FailureClass) -> None:
    """With each failed probe, and however many there were it stays what it may be."""
    now, health = 0.0, failed(2 if kind in BREAKAGE else 1, kind=kind)
    expected = float(OUT_FOR[kind].first)
    for _ in range(50):
        assert seconds_out(health, now) == pytest.approx(expected, abs=1e-3)
        now += seconds_out(health, now)
        health = fails(after_free_probe(health, at(now), ok=True), kind, now=now)
        expected = min(OUT_FOR[kind].longest, expected * OUT_FOR[kind].growth)
    assert expected == OUT_FOR[kind].longest


def test_an_outage_of_a_minute_is_over_soon_after_it() -> None:
    """By trying alone, it is back within half as long again; few tries are lost."""
    for outage in (20.0, 45.0, 60.0, 300.0):
        now, tries, health = 0.0, 2, failed(2)
        while True:
            now += seconds_out(health, now)
            if now >= outage:
                break
            health, tries = fails(health, now=now), tries + 1
        assert now - outage <= outage / 2 + 3
        assert tries <= 14


def test_jitter_spreads_the_way_back() -> None:
    """Up to a tenth longer, never shorter."""
    for jitter, seconds in ((0.0, 600.0), (0.5, 630.0), (0.999, 659.94)):
        assert seconds_out(fails(kind=FailureClass.CREDENTIAL, jitter=jitter)) == pytest.approx(seconds)


@pytest.mark.parametrize(("told", "seconds"), [(None, 2), (0.0, 2), (1.0, 2), (7.0, 7), (3_600.0, 3_600)])
def test_a_rate_limit_lasts_as_long_as_it_was_told(told: float | None, seconds: float) -> None:
    """The provider's seconds, but not less than our own."""
    health = fails(kind=FailureClass.RATE_LIMITED, told=told)
    assert seconds_out(health) == seconds
    assert health.is_out(at(seconds - 0.001))
    assert not health.is_out(at(seconds))
    assert not health.awaits_probe(at(seconds))


@pytest.mark.parametrize(
    ("kind", "seconds"), [(FailureClass.TRANSIENT, PROBE_SECONDS), (FailureClass.TIMED_OUT, SLOW_PROBE_SECONDS)]
)
def test_after_its_time_a_circuit_awaits_a_probe(kind: FailureClass, seconds: float) -> None:
    """One at a time; one that does not report lets others try, sooner where it is not silence that is feared."""
    health, first = failed(2, kind=kind), OUT_FOR[kind].first
    assert health.is_out(at(first - 0.1))
    assert not health.awaits_probe(at(first - 0.1))
    assert health.awaits_probe(at(first))
    probing = claim_probe(health, at(first))
    assert probing.probe_in_flight(at(first + seconds - 0.1))
    assert not probing.probe_in_flight(at(first + seconds))
    released = release_probe(probing, at(first + 1))
    assert (released.probe_until, released.out_until, released.kind) == (None, health.out_until, kind)


def test_a_success_ends_it_and_a_failed_probe_does_not() -> None:
    """One success closes; one failure of a probe opens for longer."""
    probing = claim_probe(failed(2), at(3))
    closed = works(probing, 4, began=3)
    assert (closed.out_until, closed.kind, closed.times_out, closed.consecutive_failures) == (None, None, 0, 0)
    assert closed.probe_until is None
    again = fails(probing, now=4, began=3)
    assert seconds_out(again, 4) == 4.5
    assert again.probe_until is None
    assert again.out_since == NOW


def test_the_first_byte_ends_it_and_the_end_forgets_it() -> None:
    """All may go again as soon as a probe is being answered; if that breaks off, the growth goes on."""
    probing = claim_probe(failed(2), at(3))
    answering = after_first_byte(probing, at(5), began=at(3))
    assert (answering.out_until, answering.kind, answering.probe_until) == (None, None, None)
    broke = fails(fails(answering, FailureClass.BROKEN, now=9, began=3), FailureClass.BROKEN, now=10, began=6)
    assert seconds_out(broke, 10) == 4.5
    assert works(answering, 9, began=3).times_out == 0
    assert after_first_byte(WELL, at(1), began=NOW) is WELL


def test_an_answer_to_an_earlier_question_proves_nothing() -> None:
    """A stream that began before the circuit opened may end well; a purse may have been full then."""
    out = fails(fails(now=5), now=6)
    for now in (7, 9, 60):
        assert works(out, now, began=4) is out
        assert after_first_byte(out, at(now), began=at(4)) is out
    assert works(out, 7, began=6.5).out_until is None
    for kind in OWN_WORDS:
        own = failed(1, kind=kind)
        assert works(own, 1, began=0.5) is own


def test_a_failure_from_an_outage_that_is_over_is_old_news() -> None:
    """Silences that began in it are heard of minutes later, when all is well."""
    back = works(claim_probe(failed(2, kind=FailureClass.TIMED_OUT), at(15)), 16, began=15)
    for began in (0, 3, 14.9):
        assert fails(back, FailureClass.TIMED_OUT, now=120, began=began) == replace(back, billed_share=0.0)
    assert fails(back, FailureClass.TIMED_OUT, now=136, began=16).consecutive_failures == 1
    assert fails(back, FailureClass.QUOTA, now=120, began=3).kind is FailureClass.QUOTA


def test_failures_while_out_change_nothing_but_for_longer_waits() -> None:
    """A burst that fails together counts once; a longer wait by the provider's own word is heeded."""
    out = failed(2)
    assert failed(50, out) == out
    limited = fails(kind=FailureClass.RATE_LIMITED, told=30.0)
    shorter = fails(limited, FailureClass.RATE_LIMITED, told=5.0, now=1)
    assert (shorter.out_until, shorter.times_out) == (limited.out_until, 1)
    assert seconds_out(fails(limited, FailureClass.RATE_LIMITED, told=90.0, now=1)) == 91
    broke = fails(limited, FailureClass.QUOTA, now=1)
    assert (seconds_out(broke), broke.kind) == (301, FailureClass.QUOTA)


def test_what_was_asked_about_a_key_says_nothing_of_money() -> None:
    """Its key was refused and no list shown; then an answer that was under way says that there is no money: nobody has
    asked about that yet, and where nobody can it is back after its time."""
    asked = after_free_probe(fails(kind=FailureClass.CREDENTIAL), at(5), ok=False)
    poor = after_failure(asked, failure(FailureClass.QUOTA, 3_600), at(10), began=NOW, jitter=0)
    assert poor.kind is FailureClass.QUOTA
    assert poor.is_out(at(3_600))
    assert not poor.is_out(at(3_610))
    known = after_free_probe(poor, at(20), ok=False)
    assert after_failure(known, failure(FailureClass.QUOTA, 7_200), at(30), began=NOW, jitter=0).is_out(at(9_000))


def test_failing_too_often_opens_too() -> None:
    """A fifth of twenty attempts lately; fewer attempts, or older ones, do not count."""
    health = WELL
    for number in range(1, 21):
        health = fails(health) if number % 4 == 0 else works(health, 0)
        assert health.out_until is None or number == 20
    assert health.out_until is not None
    twenty = replace(WELL, attempts=19.5, failures=4.5, counted_at=NOW)
    assert fails(twenty, now=0.5).out_until is not None
    assert fails(twenty, now=HALF_LIFE_SECONDS).out_until is None


def test_a_failed_probe_opens_again_whatever_opened_it() -> None:
    """Also a circuit that never failed twice in a row."""
    opened = fails(replace(WELL, attempts=30.0, failures=10.0, counted_at=NOW))
    assert opened.consecutive_failures == 1
    assert seconds_out(fails(claim_probe(opened, at(60)), now=60), 60) == 4.5


def test_the_probability_of_failure_fades() -> None:
    """By hand: one of eleven and two believed; half as much evidence after half a minute; none to begin with."""
    health = WELL
    assert failure_probability(health, NOW) == 0
    for _ in range(10):
        health = works(health, 0)
    health = fails(health)
    assert failure_probability(health, NOW) == pytest.approx(1 / 13)
    assert failure_probability(health, at(30)) == pytest.approx(0.5 / 7.5)
    assert failure_probability(health, at(60)) == pytest.approx(0.25 / 4.75)
    assert failure_probability(works(health, 30), at(30)) == pytest.approx(0.5 / 8.5)


def test_what_put_it_out_is_not_held_against_it_again() -> None:
    """Else nobody would be sent to see whether it is well."""
    assert failure_probability(failed(1), NOW) == pytest.approx(1 / 3)
    out = failed(2)
    assert failure_probability(out, at(3)) == 0
    assert failure_probability(works(claim_probe(out, at(3)), 4, began=3), at(4)) == 0


def test_the_billed_share_of_failures_is_learned() -> None:
    """From nothing, by a tenth of each; a success or a time out does not change it."""
    health = fails(billed=True)
    assert health.billed_share == pytest.approx(0.1)
    health = fails(works(health, 1), now=2, billed=True)
    assert health.billed_share == pytest.approx(0.19)
    health = fails(health, now=3)
    assert health.out_until is not None
    assert health.billed_share == pytest.approx(0.171)


# --- free probes -----------------------------------------------------------------------------------------------------


def test_a_free_probe_that_failed_and_works_again_ends_the_time_out() -> None:
    """Half open: one request may go at once; if it fails all the same, the growth goes on."""
    out = failed(2)
    silent = after_free_probe(out, at(1), ok=False)
    assert (silent.out_until, silent.free_probe, silent.free_probe_at) == (out.out_until, False, at(1))
    answered = after_free_probe(silent, at(2), ok=True)
    assert answered.awaits_probe(at(2))
    assert answered.out_since == NOW
    again = fails(claim_probe(answered, at(2)), now=2.5, began=2)
    assert seconds_out(again, 2.5) == 4.5
    assert again.free_probe is None


def test_a_free_probe_that_works_all_along_proves_nothing() -> None:
    """Lists are served while completions fail: the time out stands, and one that is well stays so."""
    out = failed(2)
    for seconds in (0.5, 1, 1.5):
        out = after_free_probe(out, at(seconds), ok=True)
        assert seconds_out(out) == 3
    assert after_free_probe(WELL, NOW, ok=False) is WELL
    late = after_free_probe(after_free_probe(out, at(5), ok=False), at(6), ok=True)
    assert seconds_out(late) == 3


def test_a_model_that_is_not_listed_is_not_asked_for() -> None:
    """Neither is one that nobody has looked for; one that was listed all along is tried after its time."""
    gone = failed(1, kind=FailureClass.MODEL_GONE)
    assert gone.is_out(at(700))
    missing = after_free_probe(gone, at(60), ok=False)
    assert missing.is_out(at(86_400))
    assert not missing.awaits_probe(at(86_400))
    assert after_free_probe(missing, at(120), ok=True).awaits_probe(at(120))
    listed = after_free_probe(gone, at(60), ok=True)
    assert listed.is_out(at(599))
    assert listed.awaits_probe(at(600))
    assert "until the provider lists it" in missing.until_words
    assert listed.until_words == "out until 00:10:00Z"


def test_an_account_without_money_is_not_asked_until_it_has_some() -> None:
    """Where the balance cannot be read, or shows money all along, a request finds out after the time."""
    broke = failed(1, kind=FailureClass.QUOTA)
    assert broke.awaits_probe(at(300))
    empty = after_free_probe(broke, at(10), ok=False)
    assert empty.is_out(at(86_400))
    assert empty.until_words == "out until its balance is above zero"
    assert after_free_probe(empty, at(20), ok=True).awaits_probe(at(20))
    assert after_free_probe(broke, at(10), ok=True).is_out(at(299))


def test_a_reload_forgets_what_an_operator_can_mend() -> None:
    """A credential, a purse, a model; not that a provider breaks or limits us."""
    for kind in (FailureClass.CREDENTIAL, FailureClass.QUOTA, FailureClass.MODEL_GONE, FailureClass.MODEL_MISMATCH):
        assert after_reload(failed(1, kind=kind), at(1)).out_until is None
    for health in (failed(2), failed(1, kind=FailureClass.RATE_LIMITED), WELL):
        assert after_reload(health, at(1)) is health


# --- replicas --------------------------------------------------------------------------------------------------------


def test_newer_news_win_and_counts_stay() -> None:
    """What another replica saw later is believed; its own counts are its own."""
    mine = works(works(WELL, 0), 1)
    out = fails(fails(now=2), now=3)
    heard = after_news(mine, out)
    assert (heard.out_until, heard.kind, heard.times_out) == (out.out_until, FailureClass.TRANSIENT, 1)
    assert (heard.attempts, heard.counted_at) == (mine.attempts, mine.counted_at)
    assert after_news(heard, out) is heard
    back = works(claim_probe(out, at(6)), 7, began=6)
    told = after_news(heard, back)
    assert (told.out_until, told.times_out, told.consecutive_failures) == (None, 0, 0)
    assert after_news(told, out) is told
    assert after_news(told, WELL) is told


def test_a_clock_that_is_ahead_does_not_silence_others() -> None:
    """What is done about news of a later moment is later still."""
    ahead = failed(2)
    behind = after_news(WELL, ahead)
    released = works(behind, -5, began=-5)
    assert released is behind
    claimed = claim_probe(behind, at(-5))
    assert claimed.changed_at is not None
    assert ahead.changed_at is not None
    assert claimed.changed_at > ahead.changed_at
    assert after_news(ahead, claimed).probe_until == claimed.probe_until


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
