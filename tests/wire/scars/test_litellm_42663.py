"""litellm #42663: an early cache breakdown was priced and the larger final total ignored."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import DONE, HELLO, closing, finish, read, sse, totals


def test_the_final_total_is_metered_whole() -> None:
    """What the breakdown does not name is plain input; nothing of the total is dropped."""
    early = totals(1000, 1, prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 900})
    final = totals(9000, 500, prompt_tokens_details={"cached_tokens": 2000, "cache_write_tokens": 900})
    reader, _ = read(sse({"choices": [], "usage": early}) + HELLO + finish() + closing(final) + DONE)
    usage = DIALECTS["moonshot"].read_usage(reader.reports)
    assert usage == Usage(input=6100, cache_read=2000, cache_write=900, output=500)
    assert usage.input_tokens == 9000


def test_foreign_breakdowns_are_not_added() -> None:
    """An aggregator's members for another vendor's cache tell nothing about this prompt (providers §2.5)."""
    usage = totals(9000, 500, claude_cache_creation_5_m_tokens=900, claude_cache_creation_1_h_tokens=100)
    reader, _ = read(HELLO + finish() + closing(usage) + DONE)
    assert DIALECTS["cometapi"].read_usage(reader.reports) == Usage(input=9000, output=500)
