"""A charge is tokens times the row in force, line by line, to the last pico-dollar."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.core.money import ZERO, Money, UnitPrice
from gateway.core.pricing import Price, PriceTable, rate
from gateway.core.usage import Meter, Usage


def usd(text: str) -> UnitPrice:
    return UnitPrice.from_usd_per_million(text)


MOONSHOT = Price(
    provider="moonshot",
    model="kimi-k2-thinking",
    effective_from=datetime(2025, 11, 6, tzinfo=UTC),
    input=usd("0.60"),
    cached_input=usd("0.15"),
    output=usd("2.50"),
)
COMETAPI = replace(MOONSHOT, provider="cometapi", input=usd("1.10"), cached_input=None, output=usd("4.40"))
EVOLINK = replace(MOONSHOT, provider="evolink", input=usd("0.556"), cached_input=usd("0.139"), output=usd("2.222"))
K3 = replace(
    MOONSHOT,
    model="kimi-k3",
    input=usd("3.00"),
    cached_input=usd("0.30"),
    output=usd("15.00"),
    cache_write={"5m": usd("3.00"), "1h": usd("6.00")},
)

# A warm prefix of 100,000 tokens, 2,345 new ones and an answer of 1,789.
TURN = Usage.from_wire(prompt=102_345, completion=1_789, cached=100_000, reasoning=1_500)


@pytest.mark.parametrize(
    ("price", "lines", "cost"),
    [
        # 2,345 x 0.60 + 100,000 x 0.15 + 1,789 x 2.50, each per million
        (MOONSHOT, ("0.001407", "0.015", "0", "0.0044725"), "0.0208795"),
        # no hit price: cached tokens cost what the others cost
        (COMETAPI, ("0.0025795", "0.11", "0", "0.0078716"), "0.1204511"),
        # 2,345 x 0.556 = 1,303.82; 100,000 x 0.139 = 13,900; 1,789 x 2.222 = 3,975.158
        (EVOLINK, ("0.00130382", "0.0139", "0", "0.003975158"), "0.019178978"),
    ],
    ids=["moonshot", "cometapi", "evolink"],
)
def test_a_turn_worked_by_hand(price: Price, lines: tuple[str, ...], cost: str) -> None:
    """Every line of the bill and its sum."""
    charge = rate(TURN, price)
    assert tuple(str(line.cost) for line in charge.lines) == lines
    assert str(charge.cost) == cost
    assert [line.tokens for line in charge.lines] == [2_345, 100_000, 0, 1_789]
    assert charge.price_id == price.price_id
    assert charge.fee == ZERO


@pytest.mark.parametrize(("ttl", "written"), [("5m", "0.09"), ("1h", "0.18"), ("24h", "0.09")])
def test_a_written_token_costs_by_the_lifetime_asked_for(ttl: str, written: str) -> None:
    """30,000 written tokens of kimi-k3; a lifetime that the row does not price costs what input costs."""
    usage = Usage.from_wire(prompt=50_000, completion=10, cached=15_000, cache_write=30_000)
    charge = rate(usage, K3, cache_ttl=ttl)
    assert str(charge.cost_of(Meter.CACHE_WRITE)) == written
    assert str(charge.cost_of(Meter.INPUT)) == "0.015"
    assert str(charge.cost_of(Meter.CACHE_READ)) == "0.0045"
    assert charge.cost == Money.from_usd(written) + Money.from_usd("0.01965")


def test_a_fee_is_added_once() -> None:
    """One web search on top of the tokens."""
    charge = rate(TURN, MOONSHOT, fee=Money.from_usd("0.005"))
    assert str(charge.cost) == "0.0258795"
    assert charge.cost == Money.total(line.cost for line in charge.lines) + charge.fee


def test_a_single_token_is_not_rounded_away() -> None:
    """A tenth of a millionth of a dollar is still owed."""
    assert str(rate(Usage(input=0, cache_read=1, output=0), EVOLINK).cost) == "0.000000139"


NEXT = replace(MOONSHOT, effective_from=datetime(2026, 1, 1, tzinfo=UTC), input=usd("0.50"))
TABLE = PriceTable([NEXT, EVOLINK, MOONSHOT])


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2025, 11, 5, 23, 59, 59, 999_999, tzinfo=UTC), None),
        (datetime(2025, 11, 6, tzinfo=UTC), MOONSHOT),
        (datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), MOONSHOT),
        (datetime(2026, 1, 1, tzinfo=UTC), NEXT),
        (datetime(2026, 1, 1, 7, tzinfo=timezone(timedelta(hours=8))), MOONSHOT),
        (datetime(2030, 1, 1, tzinfo=UTC), NEXT),
    ],
)
def test_a_row_holds_until_the_next(at: datetime, expected: Price | None) -> None:
    """From its first moment, in any time zone, and nothing is priced before the first row."""
    assert TABLE.in_force("moonshot", "kimi-k2-thinking", at) is expected


def test_unpriced_is_not_free() -> None:
    """Another model or provider has no row at all."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert TABLE.in_force("evolink", "kimi-k2-thinking-turbo", now) is None
    assert TABLE.in_force("nobody", "kimi-k2-thinking", now) is None
    assert PriceTable([]).rows() == ()


def test_rows_are_ordered_and_found_by_id() -> None:
    """By provider, model and date, whatever the order of the file."""
    assert TABLE.rows() == (EVOLINK, MOONSHOT, NEXT)
    assert TABLE.by_id(NEXT.price_id) is NEXT
    assert TABLE.by_id("moonshot/kimi-k2-thinking@2025-11-06T00:00:00Z#00000000") is None


def test_two_rows_of_one_moment_cannot_be_a_table() -> None:
    """Also when one of them writes the moment in another zone."""
    elsewhere = MOONSHOT.effective_from.astimezone(timezone(timedelta(hours=-5)))
    with pytest.raises(AssertionError):
        PriceTable([MOONSHOT, replace(NEXT, effective_from=elsewhere)])
    with pytest.raises(AssertionError):
        replace(MOONSHOT, effective_from=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_price_id_is_stable() -> None:
    """It stands in the ledger forever: the pair, the moment in UTC and a digest of the amounts."""
    assert MOONSHOT.price_id == "moonshot/kimi-k2-thinking@2025-11-06T00:00:00Z#09b2abe8"
    elsewhere = replace(MOONSHOT, effective_from=MOONSHOT.effective_from.astimezone(timezone(timedelta(hours=8))))
    assert elsewhere.price_id == MOONSHOT.price_id
    assert replace(MOONSHOT, source="another page").price_id == MOONSHOT.price_id


@pytest.mark.parametrize(
    "edited",
    [
        replace(MOONSHOT, input=usd("0.61")),
        replace(MOONSHOT, cached_input=None),
        replace(MOONSHOT, cached_input=usd("0.60")),
        replace(MOONSHOT, output=usd("2.51")),
        replace(MOONSHOT, cache_write={"5m": usd("0.60")}),
        replace(MOONSHOT, cache_write={"1h": usd("0.60")}),
        NEXT,
        EVOLINK,
        replace(MOONSHOT, model="kimi-k2-thinking-turbo"),
    ],
)
def test_an_edited_row_is_another_row(edited: Price) -> None:
    """Any amount, moment or name."""
    assert edited.price_id != MOONSHOT.price_id
