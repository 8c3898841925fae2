"""Usage counts each token once, and what nobody told stays unknown."""

from __future__ import annotations

import pytest

from gateway.core.usage import NO_USAGE, TOKENS_MAX, Meter, Usage, UsageSource


def test_inclusive_figures_become_disjoint_meters() -> None:
    """The prompt of providers §1.4: 1,336 tokens of which 1,280 came from the cache."""
    usage = Usage.from_wire(prompt=1336, completion=31, cached=1280)
    assert usage == Usage(input=56, cache_read=1280, output=31)
    assert usage.input_tokens == 1336
    assert usage.output_tokens == 31


def test_written_tokens_are_a_part_of_the_prompt() -> None:
    """100 = 60 read + 30 written + 10 neither; reasoning is a part of the output and is never added."""
    usage = Usage.from_wire(prompt=100, completion=50, cached=60, cache_write=30, reasoning=45)
    assert usage.meters() == (
        (Meter.INPUT, 10),
        (Meter.CACHE_READ, 60),
        (Meter.CACHE_WRITE, 30),
        (Meter.OUTPUT, 50),
    )
    assert (usage.reasoning, usage.reasoning_source) == (45, UsageSource.PROVIDER)
    assert usage.output_tokens == 50


def test_absent_is_not_zero() -> None:
    """L14: an unreported cache figure is None, a reported zero is 0, and both charge the whole prompt as input."""
    silent, told = Usage.from_wire(prompt=10, completion=1), Usage.from_wire(prompt=10, completion=1, cached=0)
    assert (silent.cache_read, told.cache_read) == (None, 0)
    assert silent.meters() == told.meters()
    assert (silent.reasoning, silent.reasoning_source) == (None, UsageSource.NONE)


@pytest.mark.parametrize(
    ("cached", "cache_write", "meters", "flags"),
    [
        (11, 0, (0, 10, 0), ("cached_exceeds_prompt",)),
        (10, 1, (0, 10, 0), ()),
        (4, 9, (0, 4, 6), ()),
        (None, 12, (0, 0, 10), ()),
        (10, 0, (0, 10, 0), ()),
    ],
)
def test_a_meter_never_exceeds_what_contains_it(
    cached: int | None, cache_write: int, meters: tuple[int, ...], flags: tuple[str, ...]
) -> None:
    """Clamped in the order of providers §10.1: cached to the prompt, written to what is left."""
    usage = Usage.from_wire(prompt=10, completion=1, cached=cached, cache_write=cache_write)
    assert tuple(tokens for _, tokens in usage.meters())[:3] == meters
    assert usage.flags == flags
    assert usage.input_tokens == 10


def test_reasoning_is_at_most_the_output() -> None:
    """A provider that counts reasoning beside the output does not make it longer."""
    assert Usage.from_wire(prompt=1, completion=5, reasoning=9).reasoning == 5


def test_earlier_flags_stay() -> None:
    """What reading noticed comes first."""
    assert Usage.from_wire(prompt=1, completion=1, cached=2, flags=("a",)).flags == ("a", "cached_exceeds_prompt")


@pytest.mark.parametrize(
    ("reasoning_bytes", "content_bytes", "share"),
    [(300, 100, 75), (100, 0, 100), (1, 2, 33), (0, 7, None), (0, 0, None)],
)
def test_reasoning_is_apportioned_by_its_text(reasoning_bytes: int, content_bytes: int, share: int | None) -> None:
    """Rounded down and marked as an estimate; without reasoning text nothing is claimed."""
    usage = Usage(input=1, output=100).with_reasoning_share(
        reasoning_bytes=reasoning_bytes, content_bytes=content_bytes
    )
    assert usage.reasoning == share
    assert usage.reasoning_source is (UsageSource.NONE if share is None else UsageSource.ESTIMATED)
    assert usage.output == 100


def test_reported_reasoning_is_not_replaced_by_an_estimate() -> None:
    """The provider's figure stands, also when it is zero."""
    told = Usage.from_wire(prompt=1, completion=100, reasoning=0)
    assert told.with_reasoning_share(reasoning_bytes=5, content_bytes=5) is told


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": -1, "output": 0},
        {"input": 0, "output": TOKENS_MAX + 1},
        {"input": 0, "output": 0, "cache_read": -1},
        {"input": 0, "output": 0, "cache_write": -1},
        {"input": 0, "output": 1, "reasoning": 2, "reasoning_source": UsageSource.PROVIDER},
        {"input": 0, "output": 1, "reasoning": 1},
        {"input": 0, "output": 1, "reasoning_source": UsageSource.ESTIMATED},
    ],
)
def test_impossible_usage_cannot_be_made(wrong: dict[str, int]) -> None:
    """Negative, absurd, or reasoning without a source."""
    with pytest.raises(AssertionError):
        Usage(**wrong)  # type: ignore[arg-type]


def test_no_usage_has_no_tokens() -> None:
    """The usage of a refusal: nothing, and nothing reported."""
    assert all(tokens == 0 for _, tokens in NO_USAGE.meters())
    assert NO_USAGE.cache_read is None
