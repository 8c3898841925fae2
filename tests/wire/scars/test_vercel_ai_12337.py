"""vercel/ai #12337, #12352, vera-bench #97: one spelling of cached tokens was read, so 0 % seemed cached."""

from __future__ import annotations

from gateway.core.usage import Usage
from gateway.providers import DIALECTS
from tests.wire.transcripts import read_whole, totals, whole


def test_each_spelling_of_cached_tokens_is_read_and_never_both() -> None:
    """Top level, nested, or both: the same 512, once."""
    nested = {"prompt_tokens_details": {"cached_tokens": 512}}
    for spelling in ({"cached_tokens": 512}, nested, {"cached_tokens": 512, **nested}):
        reader, _ = read_whole(whole(totals(600, 9, **spelling)))
        for dialect in DIALECTS.values():
            assert dialect.read_usage(reader.reports) == Usage(input=88, cache_read=512, output=9)
