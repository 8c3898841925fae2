"""What an account's balance fell by, against what the ledger says was spent meanwhile.

A reading is what the provider said was left, and used where it says that too, in its own unit. A rise is a top-up:
with a counter of what was used it does not matter, without one nothing can be said of that time. Attempts that were
under way at a reading may be in it or not: they are a band within which nothing has drifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from gateway.core.money import PICO_PER_USD, ZERO, Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A balance at a moment, in the provider's unit."""

    at: datetime
    available: Decimal
    used: Decimal | None
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the ledger has between two readings: ``cost`` of attempts that ended between them, and how much was under
    way at the first reading, and at the last."""

    cost: Money
    under_way_before: Money = ZERO
    under_way_after: Money = ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Two readings that follow on each other. ``charged`` is None where a top-up hides it; ``topped_up`` is how much
    was paid in, as far as that is known; ``rounding`` how far both readings together may be from the truth."""

    first: Reading
    last: Reading
    charged: Money | None
    topped_up: Money | None
    rounding: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceDrift:
    """All spans that tell something, together; ``untold`` are hidden by a top-up. Between ``least`` and ``most``
    nothing has drifted."""

    charged: Money
    ledger: Money
    least: Money
    most: Money
    topped_up: Money
    untold: int

    @property
    def amount(self) -> Money:
        """What was charged beyond the ledger, outside of the band; negative where it was less."""
        if self.charged.pico > self.most.pico:
            return self.charged - self.most
        if self.charged.pico < self.least.pico:
            return self.charged - self.least
        return ZERO

    @property
    def percent(self) -> Decimal | None:
        """Of what the ledger has; None where that is nothing and something was charged."""
        if not self.amount.pico:
            return Decimal(0)
        if not self.ledger.pico:
            return None
        return (100 * self.amount.usd() / abs(self.ledger.usd())).quantize(Decimal("0.001"))

    def is_within(self, tolerance_percent: Decimal) -> bool:
        """Whether nobody has to look."""
        percent = self.percent
        return percent is not None and abs(percent) <= tolerance_percent


def spans(readings: Sequence[Reading], usd_per_unit: Decimal) -> list[Span]:
    """What happened between each reading and the next, of one unit, in order of time. They are rounded to the most
    decimals that any of them has."""
    assert len({each.unit for each in readings}) <= 1
    amounts = [amount for each in readings for amount in (each.available, each.used) if amount is not None]
    step = Decimal(1).scaleb(min((_exponent(amount) for amount in amounts), default=0))
    rounding = _usd(step, usd_per_unit)
    return [_span(first, last, usd_per_unit, rounding) for first, last in pairwise(readings)]


def _span(first: Reading, last: Reading, usd_per_unit: Decimal, rounding: Money) -> Span:
    fell = first.available - last.available
    used = None if first.used is None or last.used is None or last.used < first.used else last.used - first.used
    charged: Money | None = _usd(fell if used is None else used, usd_per_unit)
    topped_up: Money | None = _usd(Decimal(0) if used is None else used - fell, usd_per_unit)
    if used is None and fell < 0:
        charged = topped_up = None
    return Span(first=first, last=last, charged=charged, topped_up=topped_up, rounding=rounding)


def drifted(told: Sequence[tuple[Span, Spent]]) -> BalanceDrift:
    """Every span with what the ledger has of it."""
    charged = ledger = least = most = topped_up = ZERO
    untold = 0
    for each, spent in told:
        if each.charged is None:
            untold += 1
            continue
        charged, ledger = charged + each.charged, ledger + spent.cost
        topped_up = topped_up + (each.topped_up or ZERO)
        least = least + spent.cost - spent.under_way_before - each.rounding
        most = most + spent.cost + spent.under_way_after + each.rounding
    return BalanceDrift(charged=charged, ledger=ledger, least=least, most=most, topped_up=topped_up, untold=untold)


def _usd(amount: Decimal, usd_per_unit: Decimal) -> Money:
    """To the nearest pico-dollar: a provider's float may have more digits than money has."""
    return Money(int((amount * usd_per_unit * PICO_PER_USD).to_integral_value()))


def _exponent(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int), "a balance is a number"
    return min(exponent, 0)
