"""litellm #12679, Kimi-K2 #89: tool calls came as special tokens in the text, and nobody noticed."""

from __future__ import annotations

from gateway.providers import DIALECTS
from tests.wire.transcripts import delta, finish, read


def test_leaked_tool_calls_are_flagged() -> None:
    """The answer passes as it came; its row says what was wrong with the host."""
    reader, _ = read(
        delta(content="I will search. <|tool_calls_section_begin|><|tool_call_begin|>functions.search:0")
        + finish("stop")
    )
    assert reader.flags == ("special_tokens_leaked",)
    assert DIALECTS["moonshot"].read_usage(reader.reports) is None
