"""Beliefs are a fold: the same happenings, the same beliefs; and what a score says holds for any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import RoutingTerms
from gateway.core.continuation import Turn
from gateway.core.happenings import Answered, Ended, Happening, Sent
from gateway.core.limits import RateLimits
from gateway.core.prefix import Prompt
from gateway.core.pricing import Units
from gateway.core.scoring import Offer, Scored, scored

PROVIDERS = ("alpha", "beta")
ACCOUNTS = ("one", "two")
CHAINS = tuple(tuple(range(start, start + 6)) for start in (1, 3, 100))
"""Conversations, the first two with boundaries in common."""


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    digests = draw(st.sampled_from(CHAINS))[: draw(st.integers(1, 6))]
    steps = draw(st.lists(st.integers(1, 30_000), min_size=len(digests), max_size=len(digests)))
    tokens, total = [], 0
    for step in steps:
        total += step
        tokens.append(total)
    return Prompt(digests=digests, tokens=tuple(tokens), family=digests[0])


@st.composite
def histories(draw: st.DrawFn, *, answers: bool = True) -> list[Happening]:
    happened: list[Happening] = []
    at, known = 1_000.0, Beliefs()
    for number in range(draw(st.integers(0, 12))):
        at += draw(st.sampled_from((0.0, 1.0, 20.0, 400.0)))
        prompt = draw(prompts())
        turn = known.turn(prompt, tenant="t")
        attempt_id = str(number)
        happened.append(
            Sent(
                attempt_id=attempt_id,
                provider=draw(st.sampled_from(PROVIDERS)),
                account=draw(st.sampled_from(ACCOUNTS)),
                model="m",
                tenant="t",
                at=at,
                digests=prompt.digests,
                tokens=prompt.tokens,
                family=prompt.family,
                turn=turn.number,
                follows=turn.follows,
                output_tokens=draw(st.integers(0, 1_000)),
                matched_tokens=draw(st.sampled_from((0, prompt.tokens[0]))),
                matched_age=draw(st.sampled_from((3.0, 50.0, 700.0))),
            )
        )
        known.apply(happened[-1])
        match draw(st.integers(0 if answers else 1, 3)):
            case 0:
                happened.append(
                    Answered(attempt_id, at + 5, prompt.input_tokens + 7, draw(st.integers(0, 9_000)), 100, 5.0)
                )
            case 1:
                happened.append(Ended(attempt_id, at + 1, draw(st.booleans())))
            case 2:
                happened.append(Ended("nobody's", at + 1, is_warm=True))
            case _:
                continue
        known.apply(happened[-1])
    return happened


@st.composite
def offered(draw: st.DrawFn) -> Offer:
    cached = draw(st.integers(0, 1_000_000))
    return Offer(
        (draw(st.sampled_from(PROVIDERS)), draw(st.sampled_from(ACCOUNTS)), "m"),
        Units(draw(st.integers(cached, 2_000_000)), cached, draw(st.integers(0, 5_000_000))),
        RateLimits(scope="s", name="n", tpm=draw(st.sampled_from((None, 20_000, 1_000_000)))),
        draw(st.integers(1, 4_000)),
        draw(st.booleans()),
        draw(st.floats(0, 1)),
        draw(st.floats(0, 1)),
    )


@dataclass(frozen=True)
class Moment:
    """All that scores depend on."""

    happened: Sequence[Happening]
    prompt: Prompt

    @property
    def now(self) -> float:
        return max((each.at for each in self.happened), default=1_000.0) + 10.0

    def beliefs(self, *more: Happening) -> Beliefs:
        beliefs = Beliefs()
        for each in (*self.happened, *more):
            beliefs.apply(each)
        return beliefs

    def scores(self, offers: Sequence[Offer], *more: Happening) -> list[Scored]:
        beliefs = self.beliefs(*more)
        return scored(offers, self.prompt, Turn(0, 0), beliefs, tenant="t", terms=RoutingTerms(), now=self.now)


moments = st.builds(Moment, happened=histories(), prompt=prompts())


@given(moments, st.lists(offered(), min_size=1, max_size=5))
def test_the_same_happenings_make_the_same_scores_and_asking_changes_nothing(
    moment: Moment, offers: list[Offer]
) -> None:
    """Folded again, and asked twice of the same beliefs."""
    beliefs = moment.beliefs()
    arguments = {"tenant": "t", "terms": RoutingTerms(), "now": moment.now}
    first = scored(offers, moment.prompt, Turn(0, 0), beliefs, **arguments)
    assert scored(offers, moment.prompt, Turn(0, 0), beliefs, **arguments) == first
    assert moment.scores(offers) == first


@given(moments, st.lists(offered(), min_size=1, max_size=5))
def test_scores_are_finite_and_never_negative(moment: Moment, offers: list[Offer]) -> None:
    """Every part of them; and no more is expected to be cached than was sent."""
    for score, cost_pico in moment.scores(offers):
        parts = (score.request_usd, score.failure_usd, score.future_usd, score.quota_usd, score.total_usd)
        assert all(isfinite(each) and each >= 0 for each in parts)
        assert cost_pico >= 0
        assert 0 <= score.hit_probability <= 1
        assert 0 <= score.next_turn_probability < 1
        assert 0 <= score.expected_cached_tokens <= score.matched_tokens <= moment.prompt.input_tokens


@given(moments, st.lists(offered(), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_offers_changes_no_score(moment: Moment, offers: list[Offer], chance: object) -> None:
    """Each offer has the same score wherever it stands."""
    order = list(range(len(offers)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    shuffled = moment.scores([offers[each] for each in order])
    assert shuffled == [moment.scores(offers)[each] for each in order]


@given(moments, offered(), offered(), st.integers(1, 500_000))
def test_what_is_dearer_in_everything_never_wins(moment: Moment, offer: Offer, other: Offer, more: int) -> None:
    """Same account and load, every price higher: its score is not lower."""
    dearer = offer._replace(units=Units(*(each + more for each in offer.units)))
    mine, theirs, _ = moment.scores([offer, dearer, other])
    assert mine.score.total_usd <= theirs.score.total_usd * (1 + 1e-12)


@given(st.builds(Moment, happened=histories(answers=False), prompt=prompts()), offered())
def test_a_warmer_cache_never_costs_more(moment: Moment, offer: Offer) -> None:
    """Until a provider has shown otherwise, one that was sent this very prompt is not dearer for it."""
    provider, account, model = offer.cache
    at = moment.now - 10.0
    more = Sent("more", provider, account, model, "t", at, moment.prompt.digests, moment.prompt.tokens, 0, 0, 0, 0)
    assert moment.scores([offer], more)[0].cost_pico <= moment.scores([offer])[0].cost_pico


@given(st.lists(prompts(), max_size=60), st.integers(1, 5))
def test_memory_is_bounded(sent_prompts: list[Prompt], boundaries_max: int) -> None:
    """However much was sent: no cache remembers more boundaries than it may."""
    beliefs = Beliefs(boundaries_max=boundaries_max)
    for number, prompt in enumerate(sent_prompts):
        tokens = prompt.tokens
        beliefs.apply(Sent(str(number), "p", "a", "m", "t", float(number), prompt.digests, tokens, 0, 0, 0, 1))
    assert all(len(each) <= boundaries_max for each in beliefs._warm.values())


@given(moments)
def test_an_anchor_is_what_a_provider_told_of_the_deepest_boundary(moment: Moment) -> None:
    """The last answer about the deepest prompt that begins this one."""
    told = {}
    whole = {each.attempt_id: each.digests[-1] for each in moment.happened if isinstance(each, Sent)}
    for each in moment.happened:
        if isinstance(each, Answered):
            told[whole[each.attempt_id]] = each.input_tokens
    known = [index for index, digest in enumerate(moment.prompt.digests) if digest in told]
    expected = (known[-1], told[moment.prompt.digests[known[-1]]]) if known else None
    assert moment.beliefs().anchors(moment.prompt.digests, "m") == expected
