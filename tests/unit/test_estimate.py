"""Estimates learn from what providers tell, through the same arithmetic as charges."""

from __future__ import annotations

import pytest

from gateway.core.estimate import (
    FORGET_ABOVE_TOKENS,
    NO_CALIBRATION,
    OUTPUT_TOKENS_PRIOR,
    PART_FORGET_ABOVE_TOKENS,
    AnswerLength,
    Calibration,
    expected_cost,
    largest_cost,
    part_tokens,
)
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price, rate
from gateway.core.usage import Usage
from tests.pipeline.world import price

MOONSHOT = price("moonshot")
K3 = Price(
    provider="moonshot",
    model="kimi-k3",
    effective_from=MOONSHOT.effective_from,
    input=UnitPrice.from_usd_per_million("3"),
    cached_input=UnitPrice.from_usd_per_million("0.3"),
    output=UnitPrice.from_usd_per_million("15"),
    cache_write={"5m": UnitPrice.from_usd_per_million("3"), "1h": UnitPrice.from_usd_per_million("6")},
)


@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (42, 10), (43, 11), (42_000, 10_000)])
def test_the_prior_is_4_2_bytes_a_token(size: int, tokens: int) -> None:
    """Rounded up, so that something is never nothing."""
    assert Calibration().tokens(size) == tokens


def test_a_few_answers_outweigh_the_prior() -> None:
    """Twenty answers of three bytes a token bring the estimate within 2 % (INTERFACE §4)."""
    learned = Calibration()
    for _ in range(20):
        learned = learned.learn(15_000, 5_000)
    assert abs(learned.tokens(300_000) - 100_000) <= 2_000


def test_what_is_told_of_nothing_teaches_nothing() -> None:
    """No bytes or no tokens: an answer that was empty, or a figure that is not one."""
    for size, tokens in ((0, 10), (10, 0), (-1, 5), (5, -1)):
        assert Calibration().learn(size, tokens) == Calibration()


def test_old_answers_fade() -> None:
    """Once enough is known a change of habit is believed after about as much again, and sums stay bounded."""
    learned = Calibration()
    for _ in range(1_000):
        learned = learned.learn(40_000, 10_000)
    assert learned.tokens_seen < 2 * FORGET_ABOVE_TOKENS
    for _ in range(1_000):
        learned = learned.learn(20_000, 10_000)
    assert abs(learned.tokens(200_000) - 100_000) <= 2_000


def test_how_long_an_answer_will_be() -> None:
    """The mean of what was seen, never more than the limit; at first a thousand tokens."""
    assert AnswerLength().expected(100_000) == OUTPUT_TOKENS_PRIOR
    assert AnswerLength().expected(10) == 10
    learned = AnswerLength()
    for _ in range(2_000):
        learned = learned.learn(300)
    assert 300 <= learned.expected(100_000) <= 302
    assert learned.answers < 1_024


def test_expected_cost_is_a_charge() -> None:
    """1,000 x 0.15 + 200 x 0.60 + 500 x 2.50 per million."""
    cost = expected_cost(MOONSHOT, input_tokens=1_200, cached_tokens=1_000, output_tokens=500)
    assert str(cost) == "0.00152"


@pytest.mark.parametrize(
    ("ttl", "cost"),
    [("5m", "0.033"), ("1h", "0.036")],
)
def test_the_largest_cost_assumes_the_worst(ttl: str, cost: str) -> None:
    """Nothing cached, all of it written where that is dearer, every answer as long as it may be (L11)."""
    assert str(largest_cost(K3, input_tokens=1_000, output_limit=1_000, n=2, cache_ttl=ttl)) == cost
    for cached, written in ((0, 0), (500, 500), (0, 1_000), (1_000, 0)):
        usage = Usage.from_wire(prompt=1_000, cached=cached, cache_write=written, completion=2_000)
        assert rate(usage, K3, cache_ttl=ttl).cost.pico <= largest_cost(
            K3, input_tokens=1_000, output_limit=1_000, n=2, cache_ttl=ttl
        ).pico  # fmt: skip


def test_a_part_is_its_whole_until_it_has_a_history() -> None:
    """Whole: 4 bytes a token. The part's own 2,000 bytes were 1,000 tokens, the prior is as heavy: 6,000 bytes are
    2,000 tokens, so 3 bytes a token."""
    whole = Calibration(bytes_seen=40_000, tokens_seen=10_000)
    assert part_tokens(NO_CALIBRATION, whole, 4_001) == whole.tokens(4_001) == 1_001
    part = NO_CALIBRATION.learn(2_000, 1_000)
    assert part_tokens(part, whole, 3_000) == 1_000


def test_a_part_forgets_sooner() -> None:
    """What it has seen is halved before the next answer once it is enough."""
    part = NO_CALIBRATION.learn(800_000, PART_FORGET_ABOVE_TOKENS, forget_above=PART_FORGET_ABOVE_TOKENS)
    learned = part.learn(10, 5, forget_above=PART_FORGET_ABOVE_TOKENS)
    assert learned == Calibration(bytes_seen=400_010, tokens_seen=PART_FORGET_ABOVE_TOKENS // 2 + 5)
