"""litellm #36168, #36083: usage in a chunk that also had choices was dropped, and cached tokens with it."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, finish, read, sse, totals

USAGE = totals(4000, 10, prompt_tokens_details={"cached_tokens": 3840})
EXPECTED = Usage(input=160, cache_read=3840, output=10)


def test_usage_beside_a_finish_reason_counts() -> None:
    """On top of the finishing chunk."""
    reader, _ = read(ANSWER + finish(on_top=USAGE) + DONE)
    assert DIALECTS["openai"].read_usage(reader.reports) == EXPECTED


def test_usage_beside_content_counts() -> None:
    """Even in a chunk that brings a piece of the answer, finished or not."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}], "usage": USAGE}
    reader, _ = read(sse(chunk) + DONE)
    assert DIALECTS["openai"].read_usage(reader.reports) == EXPECTED
