"""A balance's fall against the ledger, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.core.balance_drift import BalanceDrift, Reading, Spent, drifted, spans
from gateway.core.money import ZERO, Money

START = datetime(2026, 10, 12, tzinfo=UTC)
ONE = Decimal(1)


def reading(hours: int, available: str, used: str | None = None) -> Reading:
    told = None if used is None else Decimal(used)
    return Reading(at=START + timedelta(hours=hours), available=Decimal(available), used=told, unit="USD")


def usd(amount: str) -> Money:
    return Money.from_usd(amount)


def drift_of(charged: str, ledger: str, *, before: str = "0", after: str = "0") -> BalanceDrift:
    (span,) = spans([reading(0, "50.00000"), reading(1, str(Decimal("50.00000") - Decimal(charged)))], ONE)
    return drifted([(span, Spent(cost=usd(ledger), under_way_before=usd(before), under_way_after=usd(after)))])


def test_what_agrees_within_the_rounding_has_not_drifted() -> None:
    """Two readings to five decimals may be off by one of the fifth together."""
    found = drift_of("1.25001", "1.25")
    assert (found.amount, found.percent, found.is_within(Decimal(0))) == (ZERO, Decimal(0), True)
    assert (found.least, found.most) == (usd("1.24999"), usd("1.25001"))


@pytest.mark.parametrize(
    ("charged", "drift", "percent"), [("1.5", "0.24999", "19.999"), ("0.5", "-0.74999", "-59.999")]
)
def test_what_is_beyond_the_band_has_drifted(charged: str, drift: str, percent: str) -> None:
    """In dollars and in percent of the ledger, with its sign."""
    found = drift_of(charged, "1.25")
    assert (found.amount, found.percent) == (usd(drift), Decimal(percent))
    assert found.is_within(Decimal(60)) and not found.is_within(Decimal(5))


def test_what_was_under_way_at_a_reading_may_be_in_it_or_not() -> None:
    """Begun before the first: maybe charged before. Not ended at the last: maybe charged already."""
    assert drift_of("1.0", "1.25", before="0.25").amount == ZERO
    assert drift_of("1.5", "1.25", after="0.25").amount == ZERO
    assert drift_of("1.5", "1.25", before="0.25").amount != ZERO


def test_a_charge_where_the_ledger_has_nothing_is_no_percentage() -> None:
    """It is beyond any tolerance."""
    found = drift_of("1.5", "0")
    assert found.percent is None and not found.is_within(Decimal(10**6))


def test_a_rise_hides_what_was_charged() -> None:
    """That time is left out; the others tell."""
    readings = [reading(0, "10"), reading(1, "9.5"), reading(2, "59.25"), reading(3, "59")]
    told = spans(readings, ONE)
    assert [each.charged for each in told] == [usd("0.5"), None, usd("0.25")]
    found = drifted([(each, Spent(cost=usd("0.25"))) for each in told])
    assert (found.charged, found.ledger, found.untold, found.topped_up) == (usd("0.75"), usd("0.5"), 1, ZERO)


def test_with_a_counter_of_what_was_used_a_top_up_does_not_matter() -> None:
    """And how much was paid in is known."""
    (span,) = spans([reading(0, "10", "3"), reading(1, "59.25", "3.75")], ONE)
    assert (span.charged, span.topped_up) == (usd("0.75"), usd("50"))


def test_a_counter_that_began_anew_is_not_believed() -> None:
    """Then it is the balance that tells."""
    (span,) = spans([reading(0, "10", "3"), reading(1, "9.5", "0.1")], ONE)
    assert (span.charged, span.topped_up) == (usd("0.5"), ZERO)


def test_readings_are_rounded_to_the_most_decimals_that_any_of_them_has() -> None:
    """A number that happens to be short is no coarser, and a unit has its rate."""
    told = spans([reading(0, "50"), reading(1, "49.9"), reading(2, "49.87655")], Decimal("0.5"))
    assert [each.rounding for each in told] == [usd("0.000005")] * 2
    assert [each.charged for each in told] == [usd("0.05"), usd("0.011725")]
