"""What each provider's usage comes to, wherever it stands: worked by hand from providers §1.5, §10.1 and §11."""

from __future__ import annotations

import pytest

from gateway.core.usage import TOKENS_MAX, Usage, UsageSource
from gateway.providers import DIALECTS
from tests.wire.transcripts import (
    ANSWER,
    DONE,
    HELLO,
    ROLE,
    THOUGHT,
    closing,
    delta,
    finish,
    read,
    read_whole,
    sse,
    totals,
    whole,
)

LIVE = totals(1336, 31, cached_tokens=1280, prompt_tokens_details={"cached_tokens": 1280})
EXPECTED = Usage(input=56, cache_read=1280, output=31)

every_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)

STREAMS = {
    "moonshot: usage only in choices[0] of the finishing chunk": ANSWER + finish(in_choice=LIVE) + DONE,
    "moonshot: closing chunk without choices": ANSWER + finish(usage=None) + closing(LIVE) + DONE,
    "moonshot: both, counted once": ANSWER + finish(in_choice=LIVE) + closing(LIVE) + DONE,
    "moonshot: three totals in the choice, everything in the closing chunk": (
        ANSWER + finish(in_choice=totals(1336, 31)) + closing(LIVE) + DONE
    ),
    "newer models: top level of the finishing chunk": ANSWER + finish(on_top=LIVE) + DONE,
    "all three places": ANSWER + finish(in_choice=LIVE, on_top=LIVE) + closing(LIVE) + DONE,
    "null in every other chunk": (
        sse({"choices": [{"index": 0, "delta": {"content": "hello"}, "usage": None}], "usage": None})
        + finish(in_choice=LIVE, usage=None)
        + closing(LIVE)
        + DONE
    ),
    "null after the usage": ANSWER + finish(in_choice=LIVE) + closing(None) + DONE,
    "usage chunk without a choices member": ANSWER + finish() + sse({"usage": LIVE}) + DONE,
    "usage chunk with choices null": ANSWER + finish() + sse({"choices": None, "usage": LIVE}) + DONE,
    "usage in every chunk, growing": (
        sse({"choices": [{"index": 0, "delta": {"content": "he"}}], "usage": totals(1336, 1)})
        + sse({"choices": [{"index": 0, "delta": {"content": "llo"}}], "usage": totals(1336, 30)})
        + finish(on_top=LIVE)
        + DONE
    ),
    "the last of two closing chunks": ANSWER + finish() + closing(totals(1336, 30)) + closing(LIVE) + DONE,
    "a later zero tells nothing": ANSWER + finish(on_top=LIVE) + closing(totals(0, 0)) + DONE,
    "a later malformed one tells nothing": ANSWER + finish(on_top=LIVE) + closing(totals("1336", -1)) + DONE,
    "usage that is no object": ANSWER + finish(on_top=LIVE) + closing("1336 + 31") + DONE,
    "a zero on top, figures in the choice": ANSWER + finish(in_choice=LIVE) + closing(totals(0, 0)) + DONE,
    "a repeated finishing chunk": ANSWER + finish(in_choice=totals(1336, 30)) + finish(in_choice=LIVE) + DONE,
    "no [DONE]": ANSWER + finish(in_choice=LIVE),
    "no blank line at the end": ANSWER + finish(in_choice=LIVE)[:-2],
    "CRLF": (ANSWER + finish(in_choice=LIVE) + DONE).replace(b"\n", b"\r\n"),
    "comments between": b": ping\n\n" + ANSWER + b": ping\n\n" + finish(in_choice=LIVE) + b": ping\n\n" + DONE,
    "unknown events between": ANSWER + sse({"choices": [], "prompt_filter_results": []}) + finish(in_choice=LIVE),
    "an unreadable event between": ANSWER + b"data: {oops\n\n" + finish(in_choice=LIVE) + DONE,
    "no index on the choice": ANSWER + sse({"choices": [{"delta": {}, "finish_reason": "stop", "usage": LIVE}]}) + DONE,
}


@every_dialect
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_counted_once_wherever_its_usage_stands(stream: bytes, dialect) -> None:
    """1,336 prompt tokens of which 1,280 cached, and 31 completion tokens: by every dialect the same."""
    reader, _ = read(stream)
    assert dialect.read_usage(reader.reports) == EXPECTED


@every_dialect
def test_l8_a_whole_answer_costs_what_its_stream_costs(dialect) -> None:
    """L8: the same usage at the top level, in the choice, or in both."""
    for answer in (whole(LIVE), whole(None, in_choice=LIVE), whole(LIVE, in_choice=LIVE)):
        reader, _ = read_whole(answer)
        assert dialect.read_usage(reader.reports) == EXPECTED


CACHED = {
    "both spellings, equal": (LIVE, 1280, ()),
    "only top level": (totals(1336, 31, cached_tokens=1280), 1280, ()),
    "only nested": (totals(1336, 31, prompt_tokens_details={"cached_tokens": 1280}), 1280, ()),
    "cometapi: nested beside foreign members": (
        totals(1336, 31, prompt_tokens_details={"audio_tokens": 0, "cached_tokens": 1280}, latency_checkpoint={"a": 1}),
        1280,
        (),
    ),
    "conflicting: the smaller": (
        totals(1336, 31, cached_tokens=1280, prompt_tokens_details={"cached_tokens": 1024}),
        1024,
        ("cached_conflict",),
    ),
    "conflicting with zero": (
        totals(1336, 31, cached_tokens=1280, prompt_tokens_details={"cached_tokens": 0}),
        0,
        ("cached_conflict",),
    ),
    "more than the prompt": (totals(1336, 31, cached_tokens=2000), 1336, ("cached_exceeds_prompt",)),
    "exactly the prompt": (totals(1336, 31, cached_tokens=1336), 1336, ()),
    "absent: not reported": (totals(1336, 31), None, ()),
    "null: not reported": (totals(1336, 31, cached_tokens=None, prompt_tokens_details=None), None, ()),
    "null nested: not reported": (totals(1336, 31, prompt_tokens_details={"cached_tokens": None}), None, ()),
    "zero: reported": (totals(1336, 31, cached_tokens=0), 0, ()),
    "negative: ignored": (totals(1336, 31, cached_tokens=-5), None, ("cached_unusable",)),
    "text: ignored": (totals(1336, 31, cached_tokens="1280"), None, ("cached_unusable",)),
    "boolean: ignored": (totals(1336, 31, cached_tokens=True), None, ("cached_unusable",)),
    "fraction: ignored": (totals(1336, 31, cached_tokens=12.5), None, ("cached_unusable",)),
    "one unusable, one usable": (
        totals(1336, 31, cached_tokens=-5, prompt_tokens_details={"cached_tokens": 1280}),
        1280,
        ("cached_unusable",),
    ),
    "details that are no object": (totals(1336, 31, prompt_tokens_details=[1280]), None, ()),
}


@pytest.mark.parametrize(("usage", "cached", "flags"), CACHED.values(), ids=CACHED)
def test_cached_tokens_are_a_part_of_the_prompt(usage: object, cached: int | None, flags: tuple[str, ...]) -> None:
    """Read under either spelling, never added, never more than the prompt; absent is not zero (L14)."""
    reader, _ = read_whole(whole(usage))
    for dialect in DIALECTS.values():
        read_usage = dialect.read_usage(reader.reports)
        assert read_usage == Usage(input=1336 - (cached or 0), cache_read=cached, output=31, flags=flags)


UNUSABLE = {
    "absent": None,
    "null": {"prompt_tokens": None, "completion_tokens": None},
    "empty": {},
    "both zero": totals(0, 0),
    "completion zero": totals(1336, 0),
    "prompt zero": totals(0, 31),
    "prompt absent": {"completion_tokens": 31, "total_tokens": 1367},
    "completion absent": {"prompt_tokens": 1336, "total_tokens": 1367},
    "negative prompt": totals(-1336, 31),
    "negative completion": totals(1336, -31),
    "fraction": totals(1336.5, 31),
    "whole number written as a fraction": totals(1336.0, 31),
    "text": totals("1336", "31"),
    "booleans": totals(True, True),
    "absurd": totals(TOKENS_MAX + 1, 31),
    "beyond any integer type": totals(10**400, 31),
    "a list": [1336, 31],
    "lists inside": totals([1336], [31]),
}


@pytest.mark.parametrize("usage", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_usage_on_an_answer_with_content_is_none(usage: object) -> None:
    """Then the caller estimates and says so (INTERFACE §4); streamed and whole alike (L8)."""
    for reader in (
        read_whole(whole(usage))[0],
        read_whole(whole(None, in_choice=usage))[0],
        read(ANSWER + finish(in_choice=usage) + closing(usage) + DONE)[0],
    ):
        assert reader.has_content
        assert [dialect.read_usage(reader.reports) for dialect in DIALECTS.values()] == [None] * len(DIALECTS)


def test_an_empty_answer_may_have_cost_its_prompt_only() -> None:
    """Without content, zero completion tokens are what one would expect, not an absence."""
    reader, _ = read_whole(whole(totals(1336, 0), content=None))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=1336, output=0)


def test_a_completion_without_a_prompt_is_not_believed_even_without_content() -> None:
    """Whatever was generated had a prompt."""
    reader, _ = read_whole(whole(totals(0, 31), content=None))
    assert DIALECTS["moonshot"].read_usage(reader.reports) is None


def test_length_with_empty_content_is_billed_and_flagged() -> None:
    """Reasoning ate the whole limit: 16,384 tokens were bought, and the ledger says for what."""
    reader, _ = read(ROLE + THOUGHT + finish("length", in_choice=totals(90, 16384)) + DONE)
    assert reader.flags == ("empty_at_length",)
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=90, output=16384)


def two_choices(first: object, second: object) -> bytes:
    return (
        delta(1, content="b")
        + delta(0, content="a")
        + finish("tool_calls", index=0, in_choice=first)
        + finish("tool_calls", index=1, in_choice=second)
        + DONE
    )


def test_the_prompt_of_two_choices_is_counted_once() -> None:
    """MoonPalace's n=2 stream: 146/26 and 146/25 come to 146/51."""
    reader, _ = read(two_choices(totals(146, 26, cached_tokens=128), totals(146, 25, cached_tokens=128)))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=18, cache_read=128, output=51)


def test_a_closing_chunk_wins_over_the_sum_of_the_choices() -> None:
    """They are never added."""
    reader, _ = read(two_choices(totals(146, 26), totals(146, 25))[: -len(DONE)] + closing(totals(146, 51)) + DONE)
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=146, output=51)


def test_choices_that_disagree_err_towards_charging() -> None:
    """The largest prompt and the smallest cached part, flagged."""
    reader, _ = read(two_choices(totals(146, 26, cached_tokens=128), totals(147, 25, cached_tokens=0)))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(
        input=147, cache_read=0, output=51, flags=("prompt_conflict", "cached_conflict")
    )


@pytest.mark.parametrize("second", [None, totals(0, 0), totals(146, -1)], ids=["cut before it", "zero", "negative"])
def test_a_choice_that_told_nothing_makes_the_sum_unknown(second: object) -> None:
    """Half of the completion is not the completion."""
    reader, _ = read(two_choices(totals(146, 26), second))
    assert DIALECTS["moonshot"].read_usage(reader.reports) is None


def test_written_tokens_are_read_and_clamped() -> None:
    """100 = 60 read + 30 written + 10; of 100 read, none can have been written."""
    details = {"cached_tokens": 60, "cache_write_tokens": 30}
    reader, _ = read_whole(whole(totals(100, 5, cached_tokens=60, prompt_tokens_details=details)))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == Usage(input=10, cache_read=60, cache_write=30, output=5)

    reader, _ = read_whole(whole(totals(100, 5, prompt_tokens_details={"cached_tokens": 90, "cache_write_tokens": 30})))
    clamped = Usage(input=0, cache_read=90, cache_write=10, output=5, flags=("cache_write_exceeds_prompt",))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == clamped

    reader, _ = read_whole(whole(totals(100, 5, prompt_tokens_details={"cache_write_tokens": "30"})))
    ignored = Usage(input=100, output=5, flags=("cache_write_unusable",))
    assert DIALECTS["moonshot"].read_usage(reader.reports) == ignored


def test_reasoning_tokens_are_informative() -> None:
    """Inside the completion; never added, never more than it, and nonsense is as good as nothing."""
    for reasoning, expected in ((20, 20), (99, 31), (-1, None), ("20", None), (None, None)):
        usage = totals(1336, 31, completion_tokens_details={"reasoning_tokens": reasoning})
        reader, _ = read_whole(whole(usage))
        source = UsageSource.NONE if expected is None else UsageSource.PROVIDER
        assert DIALECTS["openai"].read_usage(reader.reports) == Usage(
            input=1336, output=31, reasoning=expected, reasoning_source=source
        )


def test_a_total_that_does_not_add_up_is_flagged_and_ignored() -> None:
    """The total is only a check (providers §10.1)."""
    reader, _ = read_whole(whole(totals(1336, 31, total_tokens=9999)))
    assert DIALECTS["openai"].read_usage(reader.reports) == Usage(input=1336, output=31, flags=("total_mismatch",))


def test_evolinks_sample_answer() -> None:
    """Nested cached tokens that are the whole prompt (providers §3.2)."""
    reader, _ = read_whole(whole(totals(8, 292, prompt_tokens_details={"cached_tokens": 8}), reasoning_content="hm"))
    assert DIALECTS["evolink"].read_usage(reader.reports) == Usage(input=0, cache_read=8, output=292)


def test_a_cut_stream_has_no_usage() -> None:
    """Reset mid-reasoning, or after the content but before the finishing chunk: to be estimated."""
    for stream in (ROLE + THOUGHT, ANSWER, ANSWER + HELLO[:-20]):
        reader, _ = read(stream)
        assert not reader.complete
        assert DIALECTS["moonshot"].read_usage(reader.reports) is None
