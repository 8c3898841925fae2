"""litellm #37923: a streamed answer was booked at zero because a zero in its usage was believed."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read, read_whole, totals, whole


def test_a_streamed_zero_is_not_an_absence_of_cost() -> None:
    """Zero tokens for an answer with content are no report: it is estimated, not free."""
    reader, _ = read(ANSWER + finish() + closing({**totals(0, 0), "cost": 0}) + DONE)
    assert DIALECTS["openai"].read_usage(reader.reports) is None


def test_a_provider_that_says_cost_zero_is_still_counted() -> None:
    """The tokens are what is charged; streamed and unstreamed come to the same."""
    usage = {**totals(1000, 200), "cost": 0}
    streamed, _ = read(ANSWER + finish() + closing(usage) + DONE)
    answered, _ = read_whole(whole(usage))
    assert DIALECTS["openai"].read_usage(streamed.reports) == Usage(input=1000, output=200)
    assert DIALECTS["openai"].read_usage(answered.reports) == Usage(input=1000, output=200)
