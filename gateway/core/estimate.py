"""Estimates are what ``rate`` would charge, and their token counts are calibrated on what providers told.

A calibration is bytes per token, learned from finished answers; it starts from a prior measured on agent prompts
(4.2 bytes a token) and forgets slowly. Bytes are steadier than characters: Chinese and English differ less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.money import Money
from gateway.core.pricing import DEFAULT_CACHE_TTL, Price, rate
from gateway.core.usage import Meter, Usage

PRIOR_BYTES: Final = 4_200
PRIOR_TOKENS: Final = 1_000
"""Light, so that a few answers outweigh it: estimates promise 2 % in sum (INTERFACE §4)."""
FORGET_ABOVE_TOKENS: Final = 2_000_000
PART_FORGET_ABOVE_TOKENS: Final = 200_000
"""A single key's traffic changes sooner than a model's: a new conversation, another language."""
OUTPUT_LIMIT_MAX: Final = 2**31 - 1
OUTPUT_TOKENS_PRIOR: Final = 1_000
"""What a thinking answer is expected to be long before any was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Bytes per token of one model's input or output, as whole sums so that it is exact and repeatable."""

    bytes_seen: int = PRIOR_BYTES
    tokens_seen: int = PRIOR_TOKENS

    def learn(self, size_bytes: int, tokens: int, *, forget_above: int = FORGET_ABOVE_TOKENS) -> Calibration:
        """With one more finished answer; older ones fade once enough is known."""
        if tokens <= 0 or size_bytes <= 0:
            return self
        kept = 1 if self.tokens_seen < forget_above else 2
        return Calibration(
            bytes_seen=self.bytes_seen // kept + size_bytes,
            tokens_seen=self.tokens_seen // kept + tokens,
        )

    def tokens(self, size_bytes: int) -> int:
        """The tokens expected in so many bytes, rounded up."""
        return -(-size_bytes * self.tokens_seen // self.bytes_seen)


NO_CALIBRATION: Final = Calibration(bytes_seen=0, tokens_seen=0)
"""Of a part of a model's traffic of which nothing is known yet; only read beside the whole, by :func:`part_tokens`."""


def part_tokens(part: Calibration, whole: Calibration, size_bytes: int) -> int:
    """The tokens expected in so many bytes of a part of a model's traffic, one key's or one conversation's: by its own
    ratio, which the whole's outweighs until the part has seen as much as a prior is worth; rounded up."""
    bytes_ = part.bytes_seen * whole.tokens_seen + PRIOR_TOKENS * whole.bytes_seen
    return -(-size_bytes * (part.tokens_seen + PRIOR_TOKENS) * whole.tokens_seen // bytes_)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLength:
    """How long a model's answers are, as a fading mean; the expectation that plans compare candidates with."""

    tokens: int = OUTPUT_TOKENS_PRIOR * 8
    answers: int = 8

    def learn(self, tokens: int) -> AnswerLength:
        kept = 1 if self.answers < 512 else 2
        return AnswerLength(tokens=self.tokens // kept + tokens, answers=self.answers // kept + 1)

    def expected(self, output_limit: int) -> int:
        return min(output_limit, -(-self.tokens // self.answers))


def expected_cost(
    price: Price, *, input_tokens: int, cached_tokens: int, output_tokens: int, cache_ttl: str = DEFAULT_CACHE_TTL
) -> Money:
    """The cost of a request as it is expected to be answered."""
    usage = Usage.from_wire(prompt=input_tokens, cached=cached_tokens, completion=output_tokens)
    return rate(usage, price, cache_ttl=cache_ttl).cost


def largest_cost(
    price: Price, *, input_tokens: int, output_limit: int, n: int = 1, cache_ttl: str = DEFAULT_CACHE_TTL
) -> Money:
    """What an answer within the output limit costs at the most: all input of the dearest kind, all output used. The
    same as the dearest ``rate``, without its lines: every request asks this of every candidate."""
    dearest = price.input_max
    if price.cache_write:
        dearest = max(dearest, price.unit(Meter.CACHE_WRITE, cache_ttl=cache_ttl))
    return Money(dearest.pico_per_token * input_tokens + price.output.pico_per_token * output_limit * n)


def input_tokens_max(input_bytes: int) -> int:
    """What so much input can be at the most: a tokenizer over bytes makes no token of less than one, and the JSON
    around the texts outweighs what a chat template puts in its place. Budgets are held for this, not for the estimate
    (law L11)."""
    return input_bytes


def output_limit_affordable(
    price: Price, amount: Money, *, input_tokens: int, n: int = 1, cache_ttl: str = DEFAULT_CACHE_TTL
) -> int:
    """The largest output limit whose largest cost is within the amount; less than 0 where the input alone is not."""
    fixed = largest_cost(price, input_tokens=input_tokens, output_limit=0, cache_ttl=cache_ttl)
    left, each = amount.pico - fixed.pico, price.output.pico_per_token * n
    if left < 0:
        return -1
    return left // each if each else OUTPUT_LIMIT_MAX
