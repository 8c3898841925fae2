"""litellm #1787: tokens of a stream were counted twice."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read, totals


def test_a_usage_that_is_told_twice_counts_once() -> None:
    """Repeated closing chunks, and a stream that says it in every place."""
    told = totals(300, 40)
    for end in (closing(told) * 2, finish(in_choice=told, on_top=told) * 2 + closing(told)):
        reader, _ = read(ANSWER + end + DONE)
        assert DIALECTS["openai"].read_usage(reader.reports) == Usage(input=300, output=40)
