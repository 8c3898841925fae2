"""opencode #1071, Cogtrix #2376: a stream without usage left a row that cost nothing."""

from __future__ import annotations

from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read


def test_a_stream_without_usage_is_unknown_and_not_zero() -> None:
    """L14: None, so that the caller estimates; with ``null`` told or nothing told."""
    for end in (finish(), finish(usage=None), finish() + closing(None), b""):
        reader, _ = read(ANSWER + end + DONE)
        assert [dialect.read_usage(reader.reports) for dialect in DIALECTS.values()] == [None] * len(DIALECTS)
