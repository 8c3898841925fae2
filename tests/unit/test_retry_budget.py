"""Retries are a fifth of traffic, with a reserve that is paid back."""

from __future__ import annotations

import pytest

from gateway.core.retry_budget import RESERVE_RETRIES, RetryBudget


def retries_of(requests: int, *, wanted_each: int = 1) -> int:
    """How many retries so many requests get if every one of them wants some."""
    budget = RetryBudget()
    retries = 0
    for _ in range(requests):
        budget = budget.earn()
        for _ in range(wanted_each):
            following = budget.spend()
            if following is not None:
                budget = following
                retries += 1
    return retries


@pytest.mark.parametrize("wanted_each", [1, 3])
@pytest.mark.parametrize("requests", [500, 501, 1_000, 10_000])
def test_at_most_a_fifth(requests: int, wanted_each: int) -> None:
    """However many are wanted, amplification is 1.2 at the most, from the first request on (L9)."""
    assert retries_of(requests, wanted_each=wanted_each) == requests // 5


def test_a_burst_may_use_the_reserve_at_once() -> None:
    """A provider that falls under load costs its first callers nothing but time."""
    assert retries_of(50) == 50
    assert retries_of(200) == RESERVE_RETRIES


def test_quiet_does_not_add_up_for_ever() -> None:
    """A million good requests earn the reserve, not a storm."""
    budget = RetryBudget(advanced=0)
    for _ in range(10_000):
        budget = budget.earn()
    spent = 0
    while (following := budget.spend()) is not None:
        budget, spent = following, spent + 1
    assert spent == RESERVE_RETRIES


def test_an_empty_budget_gives_nothing() -> None:
    """Four requests are not enough for a retry, five are."""
    budget = RetryBudget(fifths=0, advanced=0)
    for _ in range(4):
        budget = budget.earn()
        assert budget.spend() is None
    after = budget.earn().spend()
    assert after is not None
    assert after.fifths == 0
