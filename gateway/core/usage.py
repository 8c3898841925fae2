"""Usage is what one attempt consumed, in meters that do not overlap; what nobody told is None, never zero.

``input`` here is input that was neither read from nor written to a provider's cache. Reasoning is a part of
output and informative only. The wire's inclusive figures are properties. Source: INTERFACE §4, providers §10.1.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Meter(StrEnum):
    """A disjoint kind of token; its value is the class named in reports and explanations."""

    INPUT = "input"
    CACHE_READ = "cached_input"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"


class UsageSource(StrEnum):
    """Who said so: the provider; an estimate where money may be owed; none for a refusal that is not billed."""

    PROVIDER = "provider"
    ESTIMATED = "estimated"
    NONE = "none"


TOKENS_MAX: Final = 2**40
"""No attempt has more tokens than this; a larger figure is nonsense, not usage."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one attempt, in disjoint meters.

    ``cache_read`` and ``reasoning`` are None when the provider did not report them. ``reasoning_source`` says
    whether ``reasoning`` was reported, apportioned by the share of reasoning text, or is not known.
    """

    input: int
    cache_read: int | None = None
    cache_write: int = 0
    output: int
    reasoning: int | None = None
    reasoning_source: UsageSource = UsageSource.NONE
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert 0 <= self.input <= TOKENS_MAX
        assert 0 <= (self.cache_read or 0) <= TOKENS_MAX
        assert 0 <= self.cache_write <= TOKENS_MAX
        assert 0 <= self.output <= TOKENS_MAX
        assert self.reasoning is None or 0 <= self.reasoning <= self.output
        assert (self.reasoning is None) == (self.reasoning_source is UsageSource.NONE)

    @classmethod
    def from_wire(
        cls,
        *,
        prompt: int,
        completion: int,
        cached: int | None = None,
        cache_write: int = 0,
        reasoning: int | None = None,
        flags: tuple[str, ...] = (),
    ) -> Usage:
        """From a provider's inclusive figures, clamped so that no meter exceeds what contains it (providers §10.1)."""
        cached_clamped = None if cached is None else max(0, min(cached, prompt))
        if cached_clamped != cached:
            flags = (*flags, "cached_exceeds_prompt")
        write_clamped = max(0, min(cache_write, prompt - (cached_clamped or 0)))
        reasoning_clamped = None if reasoning is None else max(0, min(reasoning, completion))
        return cls(
            input=prompt - (cached_clamped or 0) - write_clamped,
            cache_read=cached_clamped,
            cache_write=write_clamped,
            output=completion,
            reasoning=reasoning_clamped,
            reasoning_source=UsageSource.NONE if reasoning is None else UsageSource.PROVIDER,
            flags=flags,
        )

    @property
    def input_tokens(self) -> int:
        """All input, cached and written included: the wire's ``prompt_tokens``."""
        return self.input + (self.cache_read or 0) + self.cache_write

    @property
    def output_tokens(self) -> int:
        """All output, reasoning included: the wire's ``completion_tokens``."""
        return self.output

    def meters(self) -> tuple[tuple[Meter, int], ...]:
        """Every meter with its tokens, in the order of a bill; an unreported one counts nothing."""
        return (
            (Meter.INPUT, self.input),
            (Meter.CACHE_READ, self.cache_read or 0),
            (Meter.CACHE_WRITE, self.cache_write),
            (Meter.OUTPUT, self.output),
        )

    def with_reasoning_share(self, *, reasoning_bytes: int, content_bytes: int) -> Usage:
        """Apportion output by the share of reasoning text, marked estimated, where the provider told nothing."""
        if self.reasoning is not None or reasoning_bytes == 0:
            return self
        share = self.output * reasoning_bytes // (reasoning_bytes + content_bytes)
        return msgspec.structs.replace(self, reasoning=share, reasoning_source=UsageSource.ESTIMATED)


NO_USAGE: Final = Usage(input=0, output=0)
