"""bike4mind #1089: a host streamed zero usage beside a real answer."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import ANSWER, DONE, closing, finish, read, totals


def test_a_streamed_zero_never_wins_over_figures() -> None:
    """Before or after them; alone it is no usage at all."""
    zero, told = totals(0, 0), totals(146, 26)
    expected = Usage(input=146, output=26)
    for end in (closing(zero) + closing(told), closing(told) + closing(zero), finish(in_choice=told) + closing(zero)):
        reader, _ = read(ANSWER + end + DONE)
        assert DIALECTS["openai"].read_usage(reader.reports) == expected
    reader, _ = read(ANSWER + finish(in_choice=zero) + closing(zero) + DONE)
    assert DIALECTS["openai"].read_usage(reader.reports) is None
