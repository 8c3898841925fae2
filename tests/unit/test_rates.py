"""What a caller's limits look like as headers: OpenAI's names and OpenAI's durations."""

from __future__ import annotations

import pytest

from gateway.core.limits import NO_RATES, RateState, RateStates
from gateway.surfaces.rates import duration, rate_headers


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0ms"), (1, "1ms"), (999, "999ms"), (1_000, "1s"), (1_500, "1.5s"), (59_999, "59.999s"), (60_000, "1m0s"),
     (61_000, "1m1s"), (60_999, "1m0.999s"), (3_600_000, "60m0s")],
)  # fmt: skip
def test_a_duration_is_written_as_openai_writes_it(milliseconds: int, text: str):
    """No unit is left out in the middle."""
    assert duration(milliseconds) == text


def test_each_kind_has_its_three_headers():
    """Limit, what remains, and when it is whole again."""
    rates = RateStates(
        requests=RateState(limit=60, remaining=59, reset_ms=60_400),
        tokens=RateState(limit=150_000, remaining=0, reset_ms=17),
    )
    assert rate_headers(rates) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1m0.4s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "17ms",
    }


def test_a_kind_without_a_limit_has_none():
    """Absent is not unlimited spelled as a number."""
    assert rate_headers(NO_RATES) == {}
    only = rate_headers(RateStates(tokens=RateState(limit=5, remaining=5, reset_ms=0)))
    assert set(only) == {f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")}
