"""Whether to wait for a full account, worked by hand."""

from __future__ import annotations

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Policy, RoutingTerms
from gateway.core.continuation import Turn
from gateway.core.exchange import Candidate, Plan, Score
from gateway.core.happenings import Sent
from gateway.core.hold import worth_holding
from gateway.core.money import ZERO
from gateway.core.policies import order_of
from tests.pipeline.virtual_time import START
from tests.pipeline.world import MODEL, deployment, price

TERMS = RoutingTerms(hold_usd_per_second=0.001, hold_seconds_max=10.0)


def candidate(provider: str, total_usd: float, *, quota_usd: float = 0.0, usd: str = "1") -> Candidate:
    return Candidate(
        provider=provider,
        account="main",
        deployment=deployment(provider),
        price=price(provider, usd=(usd, None, usd)),
        expected_cost=ZERO,
        score=Score(total_usd=total_usd, quota_usd=quota_usd),
    )


def made(*candidates: Candidate) -> Plan:
    return Plan(model=MODEL, input_tokens_estimate=1, output_tokens_estimate=1, candidates=candidates, made_at=START)


FULL = ("full", "main")


def test_a_wait_is_worth_what_it_saves() -> None:
    """It saves 0.005: four seconds cost 0.004, six cost 0.006."""
    planned = made(candidate("full", 0.010), candidate("open", 0.015))
    found = worth_holding(planned, {FULL: 4.0}, TERMS)
    assert found is not None
    assert (found.candidate.provider, found.seconds) == ("full", 4.0)
    assert round(found.saves_usd, 9) == 0.005
    assert worth_holding(planned, {FULL: 6.0}, TERMS) is None


def test_nobody_waits_longer_than_the_limit_or_without_being_asked_to() -> None:
    """What was waited already counts; 0 dollars a second is off; nothing to compare with is no reason either."""
    planned = made(candidate("full", 0.010), candidate("open", 0.095))
    assert worth_holding(planned, {FULL: 4.0}, TERMS, waited_seconds=6.0) is not None
    assert worth_holding(planned, {FULL: 4.0}, TERMS, waited_seconds=6.1) is None
    assert worth_holding(planned, {FULL: 4.0}, RoutingTerms()) is None
    assert worth_holding(planned, {FULL: 4.0, ("open", "main"): 4.0}, TERMS) is None


def test_the_quota_is_left_out_and_the_best_gain_wins() -> None:
    """A full account's quota is dear by nature; of two the one that gains more after its wait."""
    planned = made(candidate("open", 0.015), candidate("later", 0.009), candidate("full", 0.030, quota_usd=0.020))
    found = worth_holding(planned, {FULL: 1.0, ("later", "main"): 3.0}, TERMS)
    assert found is not None
    assert found.candidate.provider == "full"
    found = worth_holding(planned, {FULL: 4.0, ("later", "main"): 2.0}, TERMS)
    assert found is not None
    assert found.candidate.provider == "later"


def test_each_policy_has_its_order() -> None:
    """By score, by list price, by whose turn it is, by who served the conversation last."""
    beliefs = Beliefs()
    for number, provider in enumerate(("b", "a")):
        beliefs.apply(
            Sent(str(number), provider, "main", MODEL, "t", 10.0 * number + 1, (number + 1,), (9,), 0, 0, 0, 1)
        )
    offered = [candidate("a", 3.0, usd="1"), candidate("b", 1.0, usd="3"), candidate("c", 2.0, usd="2")]

    def names(policy: Policy, turn: Turn) -> str:
        return "".join(each.provider for each in sorted(offered, key=order_of(policy, beliefs, turn)))

    new, second = Turn(0, 0), Turn(1, 1)
    assert names(Policy.EXPECTED_COST, new) == "bca"
    assert names(Policy.LIST_PRICE, second) == "acb"
    assert names(Policy.ROUND_ROBIN, new) == "cba"
    assert names(Policy.STICKY, new) == "acb"
    assert names(Policy.STICKY, second) == "bac"
