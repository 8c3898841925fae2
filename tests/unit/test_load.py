"""What an account carries, how it fails and how fast it is: worked by hand."""

from __future__ import annotations

import pytest

from gateway.core.limits import NO_LIMITS, RateLimits
from gateway.core.load import HALF_LIFE_SECONDS, NO_FAILURES, UNKNOWN_PACE, Failures, Load, Pace, moved

LIMITS = RateLimits(scope="s", name="n", rpm=10, tpm=1_000, concurrency=4)


def test_the_most_used_limit_counts() -> None:
    """Two of ten requests, 600 of 1,000 tokens, one of four at once."""
    load = Load()
    load.add(0.0, 100)
    load.add(30.0, 500)
    load.under_way -= 1
    assert load.utilisation(LIMITS, 30.0) == 0.6
    assert load.utilisation(NO_LIMITS, 30.0) == 0.0
    assert load.utilisation(LIMITS, 60.0) == 0.5
    assert load.utilisation(LIMITS, 90.0) == 0.25


def test_when_there_is_room_is_known_to_the_second() -> None:
    """700 tokens fit when the first 500 are a minute old; more than the limit only when the minute is empty."""
    load = Load()
    load.add(0.0, 500)
    load.add(20.0, 200)
    assert load.room_in(LIMITS, 300, 30.0) == 0.0
    assert load.room_in(LIMITS, 700, 30.0) == 30.0
    assert load.room_in(LIMITS, 5_000, 30.0) == 50.0
    one = RateLimits(scope="s", name="n", rpm=2)
    assert load.room_in(one, 1, 30.0) == 30.0


def test_failures_fade_and_remember_what_was_billed() -> None:
    """One failure: one of two, the other is trust. A half-life later a half, of one and a half."""
    failures = Failures()
    assert failures.odds(0.0) == NO_FAILURES
    failures.learn(0.0, is_failure=True, is_billed=True)
    assert failures.odds(0.0) == (0.5, 1.0)
    assert failures.odds(HALF_LIFE_SECONDS) == (pytest.approx(0.5 / 1.5), 1.0)
    failures.learn(HALF_LIFE_SECONDS, is_failure=True, is_billed=False)
    assert failures.odds(HALF_LIFE_SECONDS) == (pytest.approx(1.5 / 2.5), 0.5)


def test_pace_moves_a_tenth_of_the_way() -> None:
    """The first answer is taken as it is; a whole body says nothing of first chunks."""
    first = moved(UNKNOWN_PACE, first_chunk_seconds=None, tokens_per_second=50.0)
    assert first == Pace(first_chunk_seconds=0.0, tokens_per_second=50.0)
    second = moved(first, first_chunk_seconds=2.0, tokens_per_second=60.0)
    assert second == Pace(first_chunk_seconds=2.0, tokens_per_second=51.0)
    third = moved(second, first_chunk_seconds=3.0, tokens_per_second=51.0)
    assert third == Pace(first_chunk_seconds=pytest.approx(2.1), tokens_per_second=51.0)
