"""pi #2016, #2017, #8075: choice-level and top-level usage were added, and billed twice."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read, totals


def test_usage_in_the_choice_and_on_top_is_not_added() -> None:
    """Moonshot says the same figures in both places when asked for usage."""
    told = totals(146, 26, cached_tokens=128)
    reader, _ = read(ANSWER + finish(in_choice=told) + closing(told) + DONE)
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=18, cache_read=128, output=26)
