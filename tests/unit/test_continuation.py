"""Whether a conversation goes on: worked by hand."""

from __future__ import annotations

import pytest

from gateway.core.continuation import (
    FIRST_TURN,
    GROUPS_MAX,
    PATIENCE_SECONDS,
    Continuation,
    Turn,
)
from gateway.core.happenings import Sent
from gateway.core.prefix import Prompt


def sent(at: float, *digests: int, follows: int = 0, turn: int = 0, tenant: str = "t", family: int = 0) -> Sent:
    return Sent(
        attempt_id="a",
        provider="p",
        account="a",
        model="m",
        tenant=tenant,
        at=at,
        digests=digests,
        tokens=tuple(1_000 * each for each in range(1, len(digests) + 1)),
        family=family,
        turn=turn,
        follows=follows,
        output_tokens=100,
    )


def prompt(*digests: int, family: int = 0) -> Prompt:
    return Prompt(digests=digests, tokens=tuple(1_000 * each for each in range(1, len(digests) + 1)), family=family)


def test_a_turn_continues_the_longest_prompt_that_it_extends() -> None:
    """One more than that, the same when it repeats it; not another tenant's, and not tools and system message alone."""
    known = Continuation()
    known.apply(sent(0.0, 7, family=7))
    known.apply(sent(0.0, 7, 1, family=7))
    known.apply(sent(9.0, 7, 1, 2, family=7, follows=1, turn=1))
    assert known.turn(prompt(7, 1, 2, 3, family=7), "t") == Turn(2, 2)
    assert known.turn(prompt(7, 1, 4, family=7), "t") == Turn(1, 1)
    assert known.turn(prompt(7, 1, family=7), "t") == Turn(0, 1)
    assert known.turn(prompt(7, 5, family=7), "t") == FIRST_TURN
    assert known.turn(prompt(7, 1, 2, 3, family=7), "other") == FIRST_TURN


def test_before_anything_is_known_who_went_on_goes_on() -> None:
    """One in two, then two in three, then three in four."""
    outlook = Continuation().outlook(FIRST_TURN, 1_000, "t", 7)
    assert outlook.chances[:3] == (1 / 2, 2 / 3, 3 / 4)
    assert Continuation().outlook(Turn(2, 1), 1_000, "t", 7).chances[0] == 3 / 4
    assert sum(outlook.gaps) == pytest.approx(1.0)


def test_what_may_still_be_followed_counts_for_half() -> None:
    """Sent: half a trial. Five minutes later: a whole one. Followed after all: credited."""
    known = Continuation()

    def everybody() -> float:
        return known.outlook(FIRST_TURN, 1_000, "nobody", 9).chances[0]

    known.apply(sent(0.0, 1))
    assert everybody() == pytest.approx((4 * 0.5) / 4.5)
    known.apply(sent(PATIENCE_SECONDS + 1, 50, 51, 52, 53, 54, turn=3))
    assert everybody() == pytest.approx((4 * 0.5) / 5)
    known.apply(sent(400.0, 1, 2, follows=1, turn=1))
    assert everybody() == pytest.approx((4 * 0.5 + 1) / 5)
    known.apply(sent(401.0, 1, 2, follows=1, turn=1))
    assert everybody() == pytest.approx((4 * 0.5 + 1) / 5)


def test_an_application_is_like_its_tenant_until_it_has_shown_otherwise() -> None:
    """Everybody, the tenant and its application saw the same turn; each counts its parent for four."""
    known = Continuation()
    known.apply(sent(0.0, 7, 1, family=7))
    known.apply(sent(10.0, 7, 1, 2, family=7, follows=1, turn=1))
    everybody = (4 * 0.5 + 1) / 5
    tenant = (4 * everybody + 1) / 5
    assert known.outlook(FIRST_TURN, 2_000, "u", 7).chances[0] == pytest.approx(everybody)
    assert known.outlook(FIRST_TURN, 2_000, "t", 8).chances[0] == pytest.approx(tenant)
    own = known.outlook(FIRST_TURN, 2_000, "t", 7)
    assert own.chances[0] == pytest.approx((4 * tenant + 1) / 5)
    everybody = (4 * 800 + 1_000) / 5
    tenant = (4 * everybody + 1_000) / 5
    assert own.growth_tokens == pytest.approx((4 * tenant + 1_000) / 5)


def test_applications_are_bounded() -> None:
    """Whoever makes up a new application for every request is forgotten, least recently used first."""
    known = Continuation()
    for number in range(GROUPS_MAX + 10):
        known.apply(sent(float(number), number + 1, 10_000_000 + number, family=number + 1))
    assert len(known._groups) == GROUPS_MAX
