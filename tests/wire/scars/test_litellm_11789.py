"""litellm #11789: cache reads were billed as fresh input, only when streaming."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read, read_whole, totals, whole


def test_cache_reads_are_cache_reads_streamed_or_not() -> None:
    """L8: 1,000 tokens of which 900 were read from the cache leave 100 of input, on every path."""
    told = totals(1000, 20, cached_tokens=900)
    expected = Usage(input=100, cache_read=900, output=20)
    answered, _ = read_whole(whole(told))
    for end in (finish(in_choice=told), finish(on_top=told), finish() + closing(told)):
        streamed, _ = read(ANSWER + end + DONE)
        for dialect in DIALECTS.values():
            assert dialect.read_usage(streamed.reports) == dialect.read_usage(answered.reports) == expected
