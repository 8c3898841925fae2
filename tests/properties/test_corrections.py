"""A correction takes back exactly what was counted, whatever was corrected before, and counts tokens times price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.corrections import (
    UNATTRIBUTED,
    CorrectionBatch,
    InForce,
    adjusted,
    cache_ttl_of,
    correction_place,
    counting,
    new_correction_id,
    placed,
    rewritten,
    unattributed,
    usage_of,
)
from gateway.core.ledger import LedgerEntry
from gateway.core.money import ZERO, Money, UnitPrice
from gateway.core.pricing import Price, rate
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from tests.integration.samples import T0, entry

SUMMED = (
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("input_pico", "cached_pico", "cache_write_pico", "output_pico", "fee_pico", "cost_pico", "list_pico"),
)
COUNTS = st.integers(0, 10**7)
UNITS = st.integers(0, 10**8).map(UnitPrice)
SOURCES = st.sampled_from([UsageSource.PROVIDER, UsageSource.ESTIMATED])
AMOUNTS = st.integers(-(10**15), 10**15).map(Money)
DECEMBER = datetime(2025, 12, 1, tzinfo=UTC)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(COUNTS), draw(COUNTS)
    return Usage.from_wire(
        prompt=prompt,
        completion=completion,
        cached=draw(st.none() | st.integers(0, prompt)),
        cache_write=draw(st.integers(0, prompt)),
        reasoning=draw(st.none() | st.integers(0, completion)),
    )


@st.composite
def prices(draw: st.DrawFn) -> Price:
    return Price(
        provider="evolink",
        model="kimi-k2-thinking",
        effective_from=datetime(2025, 11, draw(st.integers(1, 28)), tzinfo=UTC),
        input=draw(UNITS),
        output=draw(UNITS),
        cached_input=draw(st.none() | UNITS),
        cache_write=draw(st.none() | st.fixed_dictionaries({"5m": UNITS, "1h": UNITS})),
    )


def original(made: LedgerEntry) -> InForce:
    return InForce(entry=made, original_started_at=made.started_at, adjusted=ZERO, revision=0)


def sums(*rows: LedgerEntry) -> dict[str, int]:
    return {name: sum(getattr(row, name) or 0 for row in rows) for name in SUMMED}


def is_priced(row: LedgerEntry, price: Price, ttl: str) -> bool:
    """Whether every class of a row is its tokens at that price; either may be taken back."""
    sign = -1 if (row.input_tokens, row.output_tokens) < (0, 0) else 1
    positive = msgspec.structs.replace(
        row,
        **{name: None if getattr(row, name) is None else sign * getattr(row, name) for name in SUMMED},
    )
    charge = rate(usage_of(positive), price, cache_ttl=ttl, fee=Money(positive.fee_pico))
    return charge.price_id == row.price_id and charge.cost.pico == positive.cost_pico


@given(st.lists(st.tuples(usages(), prices(), st.sampled_from(["5m", "1h"]), SOURCES), min_size=1, max_size=4))
def test_a_chain_of_corrections(steps: list[tuple[Usage, Price, str, UsageSource]]):
    """However often an attempt is corrected, its rows come to its last replacement, and each row to tokens × price."""
    made = entry(1)
    now, rows = original(made), [made]
    for number, (used, price, ttl, source) in enumerate(steps, start=1):
        before = now.entry
        reversal, replacement = rewritten(
            now,
            correction_id="cor_1",
            usage=used,
            usage_source=source,
            price=price,
            cache_ttl=ttl,
            closed_until=None,
        )
        assert sums(before, reversal) == sums()
        assert (reversal.price_id, reversal.usage_source) == (before.price_id, before.usage_source)
        assert is_priced(replacement, price, ttl)
        assert (reversal.attempt_id, replacement.attempt_id) == (f"att_00000001~{number}-", f"att_00000001~{number}+")
        for row in (reversal, replacement):
            assert (row.corrects, row.correction_id, row.is_final) == ("att_00000001", "cor_1", False)
            assert (row.started_at, row.restates) == (made.started_at, None)
            assert (row.key_id, row.team, row.tags, row.status) == (made.key_id, made.team, made.tags, made.status)
        rows += [reversal, replacement]
        now = InForce(entry=replacement, original_started_at=made.started_at, adjusted=ZERO, revision=number)
    assert sums(*rows) == sums(now.entry)
    assert usage_of(now.entry) == msgspec.structs.replace(steps[-1][0], flags=())


@given(AMOUNTS, st.sampled_from(list(UsageSource)))
def test_an_amount_alone(amount: Money, source: UsageSource):
    """An adjustment has no tokens, costs its amount, and says where the attempt's figures came from if they cost."""
    made = entry(1, used=NO_USAGE if source is UsageSource.NONE else None, source=source)
    row = adjusted(original(made), correction_id="cor_1", amount=amount, closed_until=DECEMBER)
    assert sums(row) == sums() | dict.fromkeys(("fee_pico", "cost_pico", "list_pico"), amount.pico)
    assert (row.cached_tokens, row.reasoning_tokens) == (None, None)
    assert row.usage_source == ("provider" if source is UsageSource.NONE else source.value)
    assert (row.attempt_id, row.started_at, row.restates) == ("att_00000001~1=", DECEMBER, made.started_at)
    assert row.admitted_at == made.started_at


def test_what_costs_now():
    """What an attempt costs is its row in force and its adjustments."""
    made = entry(1)
    now = InForce(entry=made, original_started_at=made.started_at, adjusted=Money(-5), revision=1)
    assert now.cost == Money(made.cost_pico - 5)
    assert now.attempt_id == made.attempt_id


def test_a_fee_is_kept_by_a_new_price():
    """A replacement keeps the fee that stands in the row itself."""
    made = msgspec.structs.replace(entry(1), fee_pico=7, cost_pico=entry(1).cost_pico + 7)
    price = Price(
        provider="evolink", model="m", effective_from=T0, input=UnitPrice(1), output=UnitPrice(1), cached_input=None
    )
    reversal, replacement = rewritten(
        original(made),
        correction_id="cor_1",
        usage=usage_of(made),
        usage_source=UsageSource.PROVIDER,
        price=price,
        closed_until=None,
    )
    assert (reversal.fee_pico, replacement.fee_pico, replacement.cost_pico) == (-7, 7, 1200 + 7)


@pytest.mark.parametrize(
    ("until", "expected"),
    [(None, (T0, None)), (T0, (T0, None)), (T0 + timedelta(microseconds=1), (T0 + timedelta(microseconds=1), T0))],
)
def test_when_it_counts(until: datetime | None, expected: tuple[datetime, datetime | None]):
    """In an open month a correction counts with its attempt; else when the first open one begins, and says for when."""
    assert counting(T0, until) == expected


def test_months_may_be_closed_in_between():
    """A correction is moved to where months are open when it is written, wherever it was meant to count."""
    row = adjusted(original(entry(1)), correction_id="cor_1", amount=Money(1), closed_until=None)
    assert placed(row, None) is row
    later = placed(placed(row, DECEMBER), DECEMBER + timedelta(days=31))
    assert (later.started_at, later.restates) == (DECEMBER + timedelta(days=31), row.started_at)


def test_a_line_of_nobodys():
    """An amount without an attempt has a name of its own, always the same, and nobody's key."""
    row = unattributed(
        correction_id="cor_1",
        provider="evolink",
        account="main",
        model="kimi-k2-thinking",
        line="17",
        at=T0,
        amount=Money(-3),
        closed_until=DECEMBER,
        upstream_request_id="up_1",
    )
    assert (row.attempt_id, row.corrects, row.key_id) == ("evolink/main/17~1=", "evolink/main/17", UNATTRIBUTED)
    assert (row.cost_pico, row.fee_pico, row.input_tokens, row.team) == (-3, -3, 0, None)
    assert (row.started_at, row.restates, row.admitted_at) == (DECEMBER, T0, T0)


def test_names():
    """A correction's id tells its number and its kind; an attempt's own tells neither."""
    assert correction_place("att~12+") == (12, "+")
    assert correction_place("a~1-~2=") == (2, "=")
    assert correction_place("att_1") is None
    assert correction_place("att~0+") is None
    assert new_correction_id(T0, b"\x1f\x3a\x5c\x7e") == "cor_20251122T100000Z-1f3a5c7e"
    with pytest.raises(AssertionError):
        CorrectionBatch(correction_id="cor_1", kind="refund", reason=" ", facts={})


def test_for_how_long_a_cache_was_written():
    """The lifetime is told by what a written token cost; the usual one where two cost the same or nothing says."""
    price = Price(
        provider="evolink",
        model="kimi-k3",
        effective_from=T0,
        input=UnitPrice(3),
        output=UnitPrice(15),
        cache_write={"5m": UnitPrice(3), "1h": UnitPrice(6)},
    )
    used = Usage.from_wire(prompt=100, completion=1, cache_write=50)
    made = entry(1, used=used)
    for ttl in ("5m", "1h"):
        _, row = rewritten(
            original(made),
            correction_id="cor_1",
            usage=used,
            usage_source=UsageSource.PROVIDER,
            price=price,
            cache_ttl=ttl,
            closed_until=None,
        )
        assert cache_ttl_of(row, price) == ttl
    assert cache_ttl_of(made, None) == "5m"
    assert cache_ttl_of(made, price) == "5m"
