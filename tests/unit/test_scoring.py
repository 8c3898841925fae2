"""The score, worked by hand: what a request, a failure, the turns to come and a slice of quota cost."""

from __future__ import annotations

import pytest

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import RoutingTerms
from gateway.core.continuation import FIRST_TURN, Outlook
from gateway.core.happenings import Answered, Ended, Sent
from gateway.core.limits import NO_LIMITS, RateLimits
from gateway.core.prefix import Prompt
from gateway.core.pricing import Units
from gateway.core.scoring import Offer, Scored, look_ahead, scored

PROMPT = Prompt(digests=(1, 2, 3), tokens=(4_000, 8_000, 10_000), family=1)
CACHING = Units(600_000, 150_000, 2_500_000)
CHEAP = Units(400_000, 400_000, 1_750_000)
TERMS = RoutingTerms(failure_usd=0.001)


def offer(provider: str, units: Units, *, limits: RateLimits = NO_LIMITS, **more: float) -> Offer:
    return Offer((provider, "main", "m"), units, limits, 1_000, True, *more.values())


def sent(provider: str, *, at: float = 0.0, attempt: str = "1", output_tokens: int = 1_000) -> Sent:
    return Sent(
        attempt_id=attempt,
        provider=provider,
        account="main",
        model="m",
        tenant="t",
        at=at,
        digests=PROMPT.digests[:2],
        tokens=PROMPT.tokens[:2],
        family=1,
        turn=0,
        follows=0,
        output_tokens=output_tokens,
    )


def scores(beliefs: Beliefs, *offers: Offer, now: float = 20.0) -> list[Scored]:
    return scored(offers, PROMPT, FIRST_TURN, beliefs, tenant="t", terms=TERMS, now=now)


def test_what_is_cached_is_cheaper_by_its_chance() -> None:
    """8,000 of 10,000 tokens were used there 20 s ago, cached with 0.95: 2,400 x 0.6 + 7,600 x 0.15 + 1,000 x 2.5."""
    beliefs = Beliefs()
    beliefs.apply(sent("moonshot"))
    (warm,) = scores(beliefs, offer("moonshot", CACHING))
    assert warm.cost_pico == 5_080_000_000
    score = warm.score
    assert (score.matched_tokens, score.matched_age_seconds, score.hit_probability) == (8_000, 20.0, 0.95)
    assert score.expected_cached_tokens == 7_600
    assert score.request_usd == 0.00508
    (cold,) = scores(beliefs, offer("evolink", CACHING))
    assert cold.cost_pico == 8_500_000_000
    assert score.total_usd == score.request_usd + score.failure_usd + score.future_usd + score.quota_usd


def test_a_failure_costs_time_what_was_billed_and_what_the_next_best_costs_more() -> None:
    """Half of them fail, a quarter of those is billed; the next best costs less, but a failure never saves anything."""
    caching, cheap = scores(
        Beliefs(),
        offer("moonshot", CACHING, probability=0.5, billed=0.25),
        offer("nocache", CHEAP, probability=0.1, billed=0.0),
    )
    assert caching.score.request_usd == 0.0085
    assert caching.score.failure_usd == pytest.approx(0.5 * (0.25 * 0.0085 + 0.001), rel=1e-12)
    assert cheap.score.failure_usd == pytest.approx(0.1 * (0.001 + 0.0085 - 0.00575), rel=1e-12)


def test_the_last_slice_of_a_quota_has_a_price() -> None:
    """At 0.8 of a minute's tokens: ((0.8 - 0.6) / 0.4)^2 of 11,000 tokens' list price; below 0.6 nothing."""
    beliefs = Beliefs()
    beliefs.apply(sent("moonshot", output_tokens=8_000))
    limits = RateLimits(scope="s", name="n", tpm=20_000)
    (found,) = scores(beliefs, offer("moonshot", CACHING, limits=limits))
    assert found.score.utilisation == 0.8
    assert found.score.quota_usd == pytest.approx(0.25 * 11_000 * 0.6e-6, rel=1e-12)
    wide = RateLimits(scope="s", name="n", tpm=27_000)
    assert scores(beliefs, offer("moonshot", CACHING, limits=wide))[0].score.quota_usd == 0.0


def test_two_turns_ahead() -> None:
    """Backwards. Turn 2, 12,000 tokens: 9,700 at the one that caches, 6,550 at the other (millionths of a dollar); who
    holds the cache saves 4,950, lives with 0.9: 0.5 x (6,550 - 0.9 x 1,800) = 2,465 against 3,275. Turn 1, 11,000
    tokens: 9,100 + 2,465 and 6,150 + 3,275; saves 4,500: 0.5 x (9,425 - 0.9 x 2,360) = 3,650.5 against 4,712.5."""
    columns = [(0.6e-6, 0.45e-6, 0.0025, 0.9), (0.4e-6, 0.0, 0.00175, 0.9)]
    outlook = Outlook((0.5, 0.5, 0.0), (), 1_000.0)
    caching, cheap, _ = look_ahead(columns, outlook, 10_000)
    assert caching == pytest.approx(0.0036505, rel=1e-12)
    assert cheap == pytest.approx(0.0047125, rel=1e-12)
    assert look_ahead([], outlook, 10_000) == [0.0]


def test_where_the_next_turn_may_not_go_is_no_comparison() -> None:
    """With the cheap one closed the next turn pays the full price of the one that caches, or finds its cache there."""
    columns = [(0.6e-6, 0.45e-6, 0.0025, 0.9)]
    caching, cheap = look_ahead(columns, Outlook((0.5, 0.0), (), 1_000.0), 10_000)
    assert cheap == pytest.approx(0.5 * 0.0091, rel=1e-12)
    assert caching == pytest.approx(0.5 * (0.0091 - 0.9 * 0.0045), rel=1e-12)


def test_conversations_that_go_on_are_worth_a_first_miss() -> None:
    """A cheap seller without a cache is cheaper for this request, and dearer for the conversation once it is known."""
    beliefs, turn, at = Beliefs(), 0, 0.0
    for turn in range(40):
        at = turn * 20.0
        digests = (1, *range(100, 101 + turn))
        beliefs.apply(
            Sent(
                attempt_id=str(turn),
                provider="moonshot",
                account="main",
                model="m",
                tenant="t",
                at=at,
                digests=digests,
                tokens=tuple(8_000 + 500 * each for each in range(len(digests))),
                family=1,
                turn=turn,
                follows=digests[-2] if turn else 0,
                output_tokens=500,
                matched_tokens=8_000 if turn else 0,
                matched_age=20.0 if turn else 0.0,
            )
        )
        beliefs.apply(Answered(str(turn), at + 5, 8_000, 7_900 if turn else 0, 500, 5.0))
    caching, cheap = scores(beliefs, offer("moonshot", CACHING), offer("nocache", CHEAP), now=at + 20)
    assert caching.score.request_usd > cheap.score.request_usd
    assert caching.score.total_usd < cheap.score.total_usd


def test_a_refused_attempt_leaves_no_warm_cache() -> None:
    """The next attempt there is believed to find nothing."""
    beliefs = Beliefs()
    beliefs.apply(sent("moonshot"))
    beliefs.apply(Ended("1", 1.0, is_warm=False))
    assert scores(beliefs, offer("moonshot", CACHING))[0].score.expected_cached_tokens == 0
