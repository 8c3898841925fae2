"""What an account carries, how it fails and how fast it is: worked by hand."""

from __future__ import annotations

import pytest

from gateway.core.limits import NO_LIMITS, RateLimits
from gateway.core.load import UNKNOWN_PACE, CacheShare, Load, Pace, moved

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
    assert load.room_in(one, 1, 60.0) == 0.0


def test_a_clock_that_was_ahead_does_not_fill_an_account() -> None:
    """What came from more than a minute ahead of the clock counts nowhere, nor does it keep what came after it."""
    load = Load()
    load.add(10_000.0, 900)
    load.add(100.0, 50)
    load.under_way -= 2
    assert load.utilisation(LIMITS, 100.0) == 0.1
    assert load.room_in(LIMITS, 900, 100.0) == 0.0
    assert load.utilisation(LIMITS, 160.0) == 0.0


def test_the_share_of_cached_input_fades() -> None:
    """A hundredth of what was before is forgotten with each answer; more cached than read is not believed."""
    share = CacheShare()
    assert share.share == 0.0
    share.add(100, 0)
    share.add(100, 100)
    assert share.share == 100 / 199
    share.add(1, 5)
    assert share.share == (99 + 1) / (0.99 * 199 + 1)


def test_pace_moves_a_tenth_of_the_way() -> None:
    """The first answer is taken as it is; a whole body says nothing of first chunks."""
    first = moved(UNKNOWN_PACE, first_chunk_seconds=None, tokens_per_second=50.0)
    assert first == Pace(first_chunk_seconds=0.0, tokens_per_second=50.0)
    second = moved(first, first_chunk_seconds=2.0, tokens_per_second=60.0)
    assert second == Pace(first_chunk_seconds=2.0, tokens_per_second=51.0)
    third = moved(second, first_chunk_seconds=3.0, tokens_per_second=51.0)
    assert third == Pace(first_chunk_seconds=pytest.approx(2.1), tokens_per_second=51.0)
