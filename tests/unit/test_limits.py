"""A sliding minute never holds more than its limit in sixty seconds, and lets all of it be used at once."""

from __future__ import annotations

import random

import pytest

from gateway.core.catalogue import Account
from gateway.core.limits import MINUTE_MS, RateLimits, SlidingMinute

NOON = 1_764_000_000_000
"""A moment at the beginning of a second, in milliseconds."""


def taken(*takes: tuple[int, int]) -> SlidingMinute:
    """A minute in which so much was taken, so many milliseconds after noon."""
    minute = SlidingMinute()
    for after_ms, amount in takes:
        minute.advance(NOON + after_ms)
        minute.take(amount, NOON + after_ms)
    return minute


def test_all_of_it_may_be_used_at_once_and_comes_back_at_once():
    """It is a window and not a rate: nothing trickles back before the minute is over."""
    minute = taken((0, 10))
    minute.advance(NOON + 59_999)
    assert minute.taken == 10
    minute.advance(NOON + 60_000)
    assert minute.taken == 0
    assert minute.is_empty


def test_what_was_taken_within_a_second_is_given_back_with_the_last_of_it():
    """Never early, and the first of it up to a second late."""
    minute = taken((100, 1), (999, 1), (1_000, 1))
    minute.advance(NOON + 60_998)
    assert minute.taken == 3, "the last of the first second is not a minute old"
    minute.advance(NOON + 60_999)
    assert minute.taken == 1
    minute.advance(NOON + 61_000)
    assert minute.taken == 0


def test_no_sixty_seconds_hold_more_than_the_limit():
    """Against every take of a long random history, summed over every window of sixty seconds."""
    chance, minute, limit = random.Random(7), SlidingMinute(), 40
    history: list[tuple[int, int]] = []
    now = NOON
    for _ in range(20_000):
        now += chance.choice((0, 1, 40, 400, 3_000))
        amount = chance.randint(1, 12)
        minute.advance(now)
        if minute.taken + amount <= limit:
            minute.take(amount, now)
            history.append((now, amount))
            held = sum(each for at, each in history[-200:] if at > now - 60_000)
            assert held <= limit


def test_the_wait_is_exactly_long_enough():
    """A millisecond before its end there is no room, and at its end there is."""
    minute = taken((0, 6), (20_500, 4))
    for needed, wait in ((1, 60_000), (6, 60_000), (7, 80_500), (10, 80_500)):
        minute.advance(NOON + 30_000)
        assert minute.wait_ms(needed, 10, NOON + 30_000) == wait - 30_000
    minute.advance(NOON + 59_999)
    assert minute.taken + 6 > 10
    minute.advance(NOON + 60_000)
    assert minute.taken + 6 <= 10


def test_what_never_fits_waits_a_whole_minute():
    """Whoever asks for more than the limit is not told that a moment will do."""
    assert taken((0, 1)).wait_ms(11, 10, NOON + 5) == MINUTE_MS
    assert SlidingMinute().wait_ms(11, 10, NOON) == MINUTE_MS


def test_whole_again_when_the_newest_has_been_given_back():
    """The reset counts from the newest take; an untouched minute is whole already."""
    assert SlidingMinute().reset_ms(NOON) == 0
    assert taken((0, 1), (30_000, 1)).reset_ms(NOON + 30_400) == 59_600
    corrected = taken((0, 1), (30_000, 5))
    corrected.correct((NOON + 30_000) // 1000, -5)
    assert corrected.reset_ms(NOON + 30_400) == 29_600, "what was wholly given back has nothing left to wait for"


def test_a_correction_counts_in_the_second_of_its_take():
    """More than was taken, less than was taken, never less than nothing, and too late after a minute."""
    minute = taken((0, 10), (5_000, 10))
    first = NOON // 1000
    minute.correct(first, 7)
    assert minute.taken == 27
    minute.correct(first, -100)
    assert minute.taken == 10
    minute.advance(NOON + 60_000)
    assert minute.taken == 10, "only what the second has left is given back with it"
    minute.correct(first, 5)
    assert minute.taken == 10
    minute.advance(NOON + 65_000)
    assert minute.taken == 0


@pytest.mark.parametrize(
    ("limits", "none"),
    [
        (RateLimits(scope="key:a", name="a"), True),
        (RateLimits(scope="key:a", name="a", rpm=1), False),
        (RateLimits(scope="key:a", name="a", tpm=1), False),
        (RateLimits(scope="key:a", name="a", concurrency=1), False),
    ],
)
def test_limits_that_limit_nothing_are_none(limits: RateLimits, none: bool):
    """They are left out of what is asked for."""
    assert limits.are_none is none


def test_an_account_has_a_scope_of_its_own():
    """Two providers may both have an account called main."""
    account = Account(provider="moonshot", name="main", rpm=500, tpm=3_000_000, concurrency=100)
    assert account.limits == RateLimits(
        scope="account:moonshot/main", name="moonshot/main", rpm=500, tpm=3_000_000, concurrency=100
    )
