"""Savings are worked by hand to the picodollar: what was paid, what one choice would have cost, how sure that is."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from gateway.core.catalogue import Catalogue
from gateway.core.money import ZERO, Money
from gateway.core.prefix import Prompt
from gateway.core.savings import Baseline, ModelSavings, Savings, savings
from gateway.core.shadow import LIST_PRICE, Index, PastRequest, Shadow, brought_to, group_of
from tests.unit.past_samples import MODEL, PRICES, START, catalogue, price, request, usd

FIRST = {1: 100, 2: 1_000}
SECOND = {**FIRST, 3: 2_000}


def report(*requests: PastRequest, prices: Catalogue | None = None) -> Savings:
    shadow = Shadow(prices or catalogue())
    for each in requests:
        shadow.add(each)
    return savings(shadow)


def only(found: Savings) -> ModelSavings:
    assert len(found.models) == 1
    return found.models[0]


def baseline(found: Savings, name: str) -> Baseline:
    return next(each for each in only(found).baselines if each.name == name)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_cache_that_nobody_has_seen():
    """Two turns, a minute apart, were served where nothing is cached. Elsewhere 1,000 tokens would have matched: the
    prior says 950 of them, and the band reaches from none to all."""
    found = report(request(1, 0, "plain", FIRST), request(2, 60, "plain", SECOND))
    near = baseline(found, "near")
    # 3,000 tokens at $1.00 and 200 at $2.00, less 950 tokens at a discount of $0.90 per million
    assert near.cost == usd("0.0034") - usd("0.000855")
    assert near.actual == usd("0.0018") == only(found).actual
    assert near.saved == usd("0.000745")
    assert (near.cost_low, near.cost_high) == (usd("0.0034") - usd("0.0009"), usd("0.0034"))
    assert not near.is_measured
    assert near.accuracy is None


def test_what_has_no_cache_is_certain():
    """All to a provider without discounts costs its list price, and the band has no width."""
    plain = baseline(report(request(1, 0, "near", FIRST), request(2, 60, "near", SECOND, cached=1_000)), "plain")
    assert plain.cost == plain.cost_low == plain.cost_high == usd("0.0018")
    assert plain.is_measured
    # near took $0.0034 less 1,000 tokens at a discount of $0.90 per million
    assert plain.saved == usd("0.0018") - usd("0.0025")


def test_the_list_price_choice_ignores_caches():
    """It takes the lowest sum of input and output price, here the provider without a cache."""
    found = report(request(1, 0, "near", FIRST), request(2, 60, "near", SECOND, cached=1_000))
    assert baseline(found, LIST_PRICE).cost == baseline(found, "plain").cost
    assert [each.name for each in only(found).baselines] == ["far", "near", "plain", LIST_PRICE]


def test_the_list_price_choice_moves_with_prices_and_finds_a_cold_cache():
    """After a change of prices it is somebody else's turn, who has not seen the conversation; and back again."""
    hour = timedelta(hours=1)
    prices = catalogue(
        price("near", "1.00 0.10 2"), price("plain", "5 - 5"), price("far", "2 0.20 3"),
        price("far", "0.50 0.05 1", START + hour), price("far", "2 0.20 3", START + 2 * hour),
    )  # fmt: skip
    turns = [request(1, 3_540, "near", FIRST), request(2, 3_600, "near", FIRST), request(3, 3_660, "near", FIRST),
             request(4, 7_200, "near", FIRST)]  # fmt: skip
    chosen = baseline(report(*turns[:2], prices=prices), LIST_PRICE)
    assert chosen.cost == chosen.cost_high == usd("0.0012") + usd("0.0006")  # cold at both
    warm = baseline(report(*turns[:3], prices=prices), LIST_PRICE)
    assert warm.cost == chosen.cost + usd("0.0006") - Money(round(0.95 * 1_000 * 450_000))
    back = baseline(report(*turns, prices=prices), LIST_PRICE)
    assert back.cost < warm.cost + usd("0.0012")  # an hour later near may still know a little of it


def test_what_the_caches_saved_is_apart():
    """Same provider without its cache, less what it billed; a baseline says nothing of it."""
    found = only(report(request(1, 0, "near", FIRST), request(2, 60, "near", SECOND, cached=1_000)))
    assert found.saved_by_caches == usd("0.0009")


def test_what_failed_is_a_part_of_what_was_paid():
    """Attempts that bought nothing are in the actual cost, and so in what was (not) saved; no baseline fails."""
    well = request(1, 0, "plain", FIRST)
    ill = request(1, 0, "plain", FIRST, cost=well.cost + usd("0.01"), failed_cost=usd("0.01"))
    assert only(report(ill)).failed == usd("0.01")
    assert baseline(report(ill), "near").saved == baseline(report(well), "near").saved - usd("0.01")


def test_what_cannot_be_compared_is_left_out():
    """Requests from before prefixes were kept, and those that nobody read, are counted and not compared."""
    found = report(
        request(1, 0, "near", FIRST, prompt=None),
        request(2, 1, "near", FIRST, is_read=False, is_told=False, cost=ZERO, final_cost=ZERO),
        request(3, 2, "near", FIRST),
    )
    assert (found.requests, found.requests_left_out, found.cost_left_out) == (3, 2, usd("0.0012"))
    assert only(found).requests == 1


def test_models_are_apart():
    """A model has the baselines of whoever serves it, and a cache of its own."""
    prices = catalogue(*PRICES, price("far", "9 1 9", model="kimi-k3"))
    other = price("far", "9 1 9", model="kimi-k3")
    found = report(request(1, 0, "near", FIRST), request(2, 60, "far", FIRST, model="kimi-k3", row=other),
                   prices=prices)  # fmt: skip
    assert [(each.model, len(each.baselines)) for each in found.models] == [(MODEL, 4), ("kimi-k3", 2)]
    assert found.models[1].baselines[0].cost == found.models[1].baselines[0].cost_high


def test_a_provider_without_a_price_yet_is_compared_from_its_first_day():
    """Saved is told for the requests that it could have served, against what those cost."""
    prices = catalogue(price("plain", "0.50 - 1.50"), price("near", "1.00 0.10 2", START + timedelta(seconds=30)))
    found = report(request(1, 0, "plain", FIRST), request(2, 60, "plain", {7: 500}), prices=prices)
    near = baseline(found, "near")
    assert (near.requests, near.actual) == (1, usd("0.0004"))


def test_a_price_row_that_is_gone_teaches_nothing():
    """A request that was charged at a row nobody knows any more is compared, and no bill to learn from."""
    found = report(request(1, 0, "near", FIRST, price_id="near/old@2020"))
    assert only(found).saved_by_caches == ZERO
    assert not baseline(found, "near").is_measured


def test_an_estimated_usage_warms_the_cache_and_teaches_nothing():
    """A hang-up leaves a warm cache behind; what it was billed is our own estimate."""
    turns = [request(1, 0, "near", FIRST, is_told=False), request(2, 60, "near", SECOND, cached=1_000)]
    near = baseline(report(*turns), "near")
    assert near.accuracy is not None
    assert near.accuracy.requests == 1
    assert near.accuracy.cached_tokens_predicted == 950  # the prior: no other group of conversations has a bill
    assert near.cost_low < near.actual


def test_every_account_has_a_cache_of_its_own():
    """What one account was sent says nothing of another: a cold answer there is not held against the provider."""
    turns = [request(1, 0, "near", FIRST), request(2, 60, "near", SECOND, account="other")]
    near = baseline(report(*turns), "near")
    assert near.accuracy is not None
    assert near.accuracy.cached_tokens_predicted == 0
    assert near.cost == usd("0.0034") - usd("0.000855")


# -- the index ---------------------------------------------------------------------------------------------------------


def segments(index: Index, boundaries: dict[int, int], at: float) -> list[tuple[int, float]]:
    return [tuple(each) for each in index.segments(tuple(boundaries), tuple(boundaries.values()), at)]


def test_a_younger_deep_boundary_keeps_its_prefix_young():
    """What leads to a boundary was used whenever that was, whether it was named or not."""
    index = Index()
    index.use((1, 2), 0.0)
    index.use((2,), 50.0)
    assert segments(index, {1: 100, 2: 250, 3: 400}, 60.0) == [(100, 10.0), (150, 10.0), (150, float("inf"))]
    index.use((1,), 60.0)
    assert segments(index, {1: 100, 2: 250}, 70.0) == [(100, 10.0), (150, 20.0)]


def test_what_is_sent_in_one_moment_is_not_there_yet():
    """Two equal requests at once both find what was there before."""
    index = Index()
    index.use((1,), 0.0)
    assert segments(index, {1: 10}, 5.0) == [(10, 5.0)]
    index.use((1,), 5.0)
    assert segments(index, {1: 10}, 5.0) == [(10, 5.0)]
    assert segments(index, {1: 10}, 6.0) == [(10, 1.0)]


def test_the_index_is_bounded():
    """The least recently used goes first."""
    index = Index(boundaries_max=2)
    for at, digest in enumerate((1, 2, 1, 3)):
        index.use((digest,), float(at))
    assert segments(index, {2: 10}, 9.0) == [(10, float("inf"))]
    assert segments(index, {1: 10}, 9.0) == [(10, 7.0)]
    assert len(index) == 2


def test_a_prompt_is_brought_to_what_was_billed():
    """Counts of the estimate stretch; those that a provider had told do not; none exceeds the whole."""
    prompt = Prompt((1, 2, 3), (100, 200, 400), 0, 100)
    assert brought_to(prompt, 700) == (100, 300, 700)
    assert brought_to(prompt, 400) == (100, 200, 400)
    assert brought_to(prompt, 250) == (100, 150, 250)
    assert brought_to(prompt, 40) == (10, 20, 40)
    assert brought_to(Prompt((1, 2), (0, 0)), 5) == (0, 0)


def test_a_conversation_stays_in_one_group():
    """The application's own prefix does not decide, the first of the conversation does."""
    turns = [Prompt((9, 1), (5, 10), 9), Prompt((9, 1, 2, 3), (5, 10, 20, 30), 9)]
    assert group_of(turns[0]) == group_of(turns[1])
    assert len({group_of(Prompt((9, first), (5, 10), 9)) for first in range(1_000)}) == 32


# -- against the truth -------------------------------------------------------------------------------------------------


def traffic(seed: int, conversations: int = 800) -> list[tuple[float, int, list[int]]]:
    """Moments, conversations and turns: blocks of 500 tokens, five more with every turn."""
    chance = random.Random(seed)
    turns = []
    for number in range(conversations):
        at, blocks = chance.uniform(0, 7_200), [1]
        for turn in range(chance.choice((1, 1, 1, 2, 4, 8, 16))):
            blocks = blocks + [1_000 * (number + 1) + 10 * turn + each for each in range(5)]
            turns.append((at, number, blocks))
            at += chance.expovariate(1 / 100)
    return sorted(turns)


class Cache:
    """A provider's cache in blocks, which expire."""

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.used: dict[int, float] = {}

    def ask(self, blocks: list[int], at: float) -> int:
        """Tokens that are cached, as providers count them."""
        count = 0
        while count < len(blocks) and at - self.used.get(blocks[count], -1e9) <= self.ttl:
            count += 1
        self.used |= dict.fromkeys(blocks, at)
        return count * 500


@pytest.mark.parametrize(("ttl", "ignored", "percent"), [(600.0, 0.05, 3.0), (300.0, 0.2, 3.0), (1_800.0, 0.0, 0.2)])
def test_the_truth_is_near(ttl: float, ignored: float, percent: float):
    """Conversations are split over two providers, which now and then ignore their caches. What all of them would have
    cost at one of them is in the 95 % band (but for one time in twenty: once in four is unlucky enough), and on
    average near the figure; the naive figure is far away."""
    errors: list[float] = []
    inside = 0
    for seed in range(4):
        near, truth, naive = divided(seed, ttl, ignored)
        inside += near.cost_low <= truth <= near.cost_high
        assert naive.pico > 2 * truth.pico
        errors.append(100 * (near.cost.pico / truth.pico - 1))
        assert near.accuracy is not None
        assert abs(near.accuracy.error_percent) < 1
        assert near.accuracy.cached_tokens_predicted == pytest.approx(near.accuracy.cached_tokens, rel=0.02)
    assert inside >= len(errors) - 1
    assert abs(sum(errors) / len(errors)) < percent


def divided(seed: int, ttl: float, ignored: float) -> tuple[Baseline, Money, Money]:
    """All to one of the two, as it is predicted and in truth, and at its list price without cache."""
    caches = {name: Cache(ttl) for name in ("near", "far", "alone")}
    chance = random.Random(seed)
    shadow, truth, naive = Shadow(catalogue()), ZERO, ZERO
    for number, (at, conversation, blocks) in enumerate(traffic(seed)):
        provider = "near" if conversation % 3 == 0 else "far"
        boundaries = {digest: 500 * depth for depth, digest in enumerate(blocks, 1) if depth % 5 == 1}
        prompt = Prompt(tuple(boundaries), tuple(boundaries.values()), family=1)
        cached = caches[provider].ask(blocks, at) * (chance.random() >= ignored)
        shadow.add(request(number, at, provider, boundaries, cached=cached, prompt=prompt))
        expected = round(caches["alone"].ask(blocks, at) * (1 - ignored))
        truth += request(number, at, "near", boundaries, cached=expected).cost
        naive += request(number, at, "near", boundaries).cost
    return baseline(savings(shadow), "near"), truth, naive
