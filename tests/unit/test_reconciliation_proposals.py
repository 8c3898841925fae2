"""What is proposed for a finding leaves the ledger as the statement says, and proposes nothing more after that."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.corrections import InForce
from gateway.core.ledger import LedgerEntry
from gateway.core.money import ZERO, Money
from gateway.core.pricing import rate
from gateway.core.reconciliation import (
    ClassTotal,
    Finding,
    FindingClass,
    Terms,
    Tokens,
    Totals,
    Unproposed,
    booked_before,
    proposed,
)
from gateway.core.usage import Usage, UsageSource
from tests.integration.samples import PRICE, T0, entry

TERMS = Terms(
    correction_id="cor_1",
    provider="evolink",
    account="main",
    accounts=frozenset({"main"}),
    public_models={"kimi-k2-thinking-upstream": "kimi-k2-thinking"},
    booked_at=T0,
    quantum_pico=5_000,
    closed_until=None,
)


def in_force(row: LedgerEntry, *, adjusted: int = 0, revision: int = 0) -> InForce:
    return InForce(entry=row, original_started_at=row.started_at, adjusted=Money(adjusted), revision=revision)


def finding(kind: FindingClass, row: LedgerEntry | None = None, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "kind": kind, "line": 2, "line_name": "r-1", "attempt_id": None, "matched_by": "request id",
        "request_id": "r-1", "account": "main", "model": "kimi-k2-thinking", "at": T0, "started_at": T0,
        "status": "succeeded", "usage_source": "provider", "price_id": None, "is_unattributed": False, "revision": 0,
        "theirs": Tokens(), "ours": Tokens(), "amount": None, "cost": None,
    }  # fmt: skip
    if row is not None:
        values |= {
            "attempt_id": row.attempt_id,
            "usage_source": row.usage_source,
            "price_id": row.price_id,
            "cost": Money(row.cost_pico),
        }
    return Finding(**values | changes)


def cost_of(usage: Usage) -> Money:
    return rate(usage, PRICE).cost


def rows(made: tuple[LedgerEntry, ...] | Unproposed) -> tuple[LedgerEntry, ...]:
    assert isinstance(made, tuple)
    return made


def test_tokens_are_replaced_by_the_provider_s_at_our_price() -> None:
    """What it does not tell stays ours; an amount that agrees within its rounding needs no adjustment."""
    row = entry(used=Usage.from_wire(prompt=1_000, completion=200, cached=600, reasoning=50))
    right = Usage.from_wire(prompt=1_000, completion=230, cached=600, reasoning=50)
    off = finding(
        FindingClass.TOKENS, row, theirs=Tokens(input=1_000, output=230), amount=cost_of(right) + Money(5_000)
    )
    reversal, replacement = rows(proposed(off, in_force(row), PRICE, TERMS))
    assert (reversal.output_tokens, reversal.cost_pico) == (-200, -row.cost_pico)
    assert (replacement.output_tokens, replacement.cached_tokens, replacement.reasoning_tokens) == (230, 600, 50)
    assert (replacement.cost_pico, replacement.usage_source) == (cost_of(right).pico, "provider")


def test_what_is_beyond_the_tokens_is_an_adjustment() -> None:
    """Tokens and price are both off: the two rows of the tokens, and the rest as an amount."""
    row = entry()
    off = finding(FindingClass.TOKENS, row, theirs=Tokens(output=300), amount=Money(10**9))
    made = rows(proposed(off, in_force(row, adjusted=7_000, revision=2), PRICE, TERMS))
    assert [each.attempt_id for each in made] == [f"{row.attempt_id}~3{sign}" for sign in "-+="]
    assert row.cost_pico + 7_000 + sum(each.cost_pico for each in made) == 10**9


def test_without_the_price_row_only_the_amount_is_put_right() -> None:
    """Nobody can rate tokens by a price that is gone."""
    row = entry()
    off = finding(FindingClass.TOKENS, row, theirs=Tokens(output=300), amount=Money(10**9))
    (only,) = rows(proposed(off, in_force(row), None, TERMS))
    assert (only.fee_pico, only.output_tokens) == (10**9 - row.cost_pico, 0)


def test_another_amount_for_the_same_tokens_is_an_adjustment_of_what_counts_now() -> None:
    """Also where somebody has corrected the attempt since it was compared."""
    row = entry()
    off = finding(FindingClass.PRICE, row, amount=Money(row.cost_pico // 2))
    (only,) = rows(proposed(off, in_force(row, adjusted=-1_000, revision=1), PRICE, TERMS))
    assert only.cost_pico == row.cost_pico // 2 - row.cost_pico + 1_000
    assert rows(proposed(off, in_force(row, adjusted=row.cost_pico // 2 - row.cost_pico), PRICE, TERMS)) == ()


def test_an_estimate_that_nobody_bills_goes_to_nothing() -> None:
    """With the adjustments that it had; what the provider itself told is left to a person."""
    row = entry(source=UsageSource.ESTIMATED)
    off = finding(FindingClass.MISSING_THERE, row)
    made = rows(proposed(off, in_force(row, adjusted=9_000_000), PRICE, TERMS))
    assert row.cost_pico + 9_000_000 + sum(each.cost_pico for each in made) == 0
    told = entry()
    assert proposed(finding(FindingClass.MISSING_THERE, told), in_force(told), PRICE, TERMS) is (
        Unproposed.TOLD_BY_PROVIDER
    )
    elsewhere = finding(FindingClass.MISSING_THERE, row, account="spare")
    assert proposed(elsewhere, in_force(row), PRICE, TERMS) is Unproposed.ANOTHER_ACCOUNT


def test_a_line_that_nobody_knows_is_booked_without_an_attempt() -> None:
    """Under the model's public name, on the account, named once and for all."""
    off = finding(FindingClass.MISSING_HERE, model="kimi-k2-thinking-UPSTREAM", amount=Money(123))
    (booked,) = rows(proposed(off, None, None, TERMS))
    assert (booked.corrects, booked.model, booked.cost_pico) == ("evolink/main/r-1", "kimi-k2-thinking", 123)
    assert (booked.upstream_request_id, booked.key_id) == ("r-1", "unattributed")
    anywhere = msgspec.structs.replace(TERMS, account=None)
    assert proposed(off, None, None, anywhere) is Unproposed.NO_ACCOUNT


def test_a_booked_line_that_was_restated_is_adjusted_by_the_difference() -> None:
    """Its next number, and nothing where it says the same."""
    off = finding(
        FindingClass.PRICE, attempt_id="evolink/main/r-1", is_unattributed=True, revision=1, amount=Money(150),
        cost=Money(123),
    )  # fmt: skip
    (only,) = rows(proposed(off, booked_before(off, TERMS), None, TERMS))
    assert (only.attempt_id, only.corrects, only.cost_pico) == ("evolink/main/r-1~2=", "evolink/main/r-1", 27)


def test_a_line_there_twice_is_left_to_a_person() -> None:
    """The provider owes it back; nothing is booked before it says so."""
    assert proposed(finding(FindingClass.DUPLICATE, amount=Money(1)), None, None, TERMS) is Unproposed.DUPLICATE


def test_in_a_closed_month_it_counts_in_the_first_open_one() -> None:
    """And says when that happened which it restates."""
    row, later = entry(), datetime(2026, 1, 1, tzinfo=UTC)
    closed = msgspec.structs.replace(TERMS, closed_until=later)
    off = finding(FindingClass.PRICE, row, amount=Money(1))
    (only,) = rows(proposed(off, in_force(row), PRICE, closed))
    assert (only.started_at, only.restates) == (later, row.started_at)


@given(
    theirs=st.tuples(st.integers(0, 9_000), st.integers(0, 9_000), st.integers(0, 9_000)),
    tells=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    amount=st.integers(0, 10**11),
    adjusted=st.integers(-(10**9), 10**9),
    source=st.sampled_from(UsageSource),
)
def test_afterwards_the_attempt_costs_what_the_statement_says(
    theirs: tuple[int, int, int], tells: tuple[bool, bool, bool], amount: int, adjusted: int, source: UsageSource
) -> None:
    """Within the rounding of its amount, whatever was told, and tokens that were told are counted."""
    used = Usage(input=0, output=0) if source is UsageSource.NONE else None
    row = entry(source=source, used=used)
    prompt, cached, output = (value if told else None for value, told in zip(theirs, tells, strict=True))
    off = finding(
        FindingClass.TOKENS, row, amount=Money(amount), theirs=Tokens(input=prompt, cached=cached, output=output)
    )
    made = rows(proposed(off, in_force(row, adjusted=adjusted), PRICE, TERMS))
    assert abs(row.cost_pico + adjusted + sum(each.cost_pico for each in made) - amount) <= TERMS.quantum_pico
    if output is not None:
        assert row.output_tokens + sum(each.output_tokens for each in made) == output


def test_every_step_from_the_ledger_to_the_statement_is_known() -> None:
    """The classes' differences, the attempts on one side only, and rounding: nothing is left."""
    totals = Totals(
        classes={
            FindingClass.MATCHED: ClassTotal(
                count=2, amount=Money(100), cost=Money(99), outside=1, outside_cost=Money(40)
            ),
            FindingClass.TOKENS: ClassTotal(count=1, amount=Money(7), cost=Money(5)),
            FindingClass.MISSING_THERE: ClassTotal(count=1, cost=Money(11)),
            FindingClass.MISSING_HERE: ClassTotal(count=1, amount=Money(13)),
            FindingClass.DUPLICATE: ClassTotal(count=1, amount=Money(17)),
            FindingClass.AT_EDGE: ClassTotal(count=1, cost=Money(19)),
        },
        ledger=Money(99 - 40 + 5 + 11 + 19),
    )
    assert totals.statement == Money(137)
    assert totals.steps() == {
        "started_outside_of_the_period": Money(40), "lines_at_the_edge": Money(-19), "missing_there": Money(-11),
        "missing_here": Money(13), "duplicate": Money(17), "tokens": Money(2), "price": ZERO, "rounding": Money(1),
    }  # fmt: skip
    assert (totals.residual, totals.findings) == (ZERO, 4)


@pytest.mark.parametrize("kind", [FindingClass.TOKENS, FindingClass.PRICE])
def test_an_attempt_has_to_be_in_force_for_that(kind: FindingClass) -> None:
    """A pair whose attempt is gone is a mistake of the caller."""
    with pytest.raises(AssertionError):
        proposed(finding(kind, entry(), amount=ZERO), None, PRICE, TERMS)
