"""Demands, clocks and workers for tests of allowances: small to write, and the same for every implementation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from gateway.core.allowance import BudgetClaim, Demand, Posting
from gateway.core.budget import Budget, BudgetMode, BudgetWindow, OnOutage, Period, day_of, window_of
from gateway.core.limits import RateLimits
from gateway.core.money import PICO_PER_USD, Money

T0: Final = datetime(2026, 3, 2, 12, 0, 0, 250_000, tzinfo=UTC)
KEY, TEAM, EVERYBODY = "key:k1", "team:t1", "organisation"
PROVIDER: Final = RateLimits(scope="account:p/a", name="p/a", rpm=1_000, concurrency=100)


class SteppedClock:
    """A clock that stands still until it is moved, back too."""

    def __init__(self) -> None:
        self.at = self._latest = T0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        self._latest = max(self._latest, self.at)
        return (self._latest - T0).total_seconds()

    def now_ms(self) -> int:
        return int(self.at.timestamp() * 1000)

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


def usd(amount: str) -> Money:
    return Money.from_usd(amount)


def whole_usd(dollars: int) -> Money:
    return Money(dollars * PICO_PER_USD)


def limits(scope: str = KEY, **of: int) -> RateLimits:
    return RateLimits(scope=scope, name=scope, **of)


def budget(
    limit: Money,
    *,
    scope: str = KEY,
    period: Period = Period.MONTH,
    mode: BudgetMode = BudgetMode.STRICT,
    on_outage: OnOutage = OnOutage.REFUSE,
) -> Budget:
    return Budget(
        budget_id=f"{scope}-{period}-{mode}",
        scope=scope,
        name=scope,
        period=period,
        limit=limit,
        mode=mode,
        on_outage=on_outage,
    )


def claim(of: Budget, at: datetime = T0) -> BudgetClaim:
    return BudgetClaim(of, window_of(of.scope, of.period, at))


def month(scope: str = KEY, at: datetime = T0) -> BudgetWindow:
    return window_of(scope, Period.MONTH, at)


_numbers = itertools.count(1)
ONE: Final = whole_usd(1)
LEAST: Final = Money(1)


def demand(
    amount: Money = ONE,
    *,
    hold_id: str | None = None,
    tokens: int = 100,
    amount_min: Money = LEAST,
    limits: Sequence[RateLimits] = (),
    budgets: Sequence[BudgetClaim] = (),
    accounts: Sequence[RateLimits] = (),
) -> Demand:
    return Demand(
        hold_id=hold_id or f"req_{next(_numbers)}",
        tokens=tokens,
        amount=amount,
        amount_min=amount_min,
        limits=tuple(limits),
        budgets=tuple(budgets),
        accounts=tuple(accounts),
    )


def posting(hold_id: str, cost: Money, scopes: Sequence[str] = (KEY,), at: datetime = T0) -> Posting:
    return Posting(hold_id, tuple(scopes), day_of(at, "UTC"), cost)
