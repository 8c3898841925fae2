"""A statement against the ledger: what was planted is found, nothing else is, and sums agree to the pico-dollar."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.adapters.postgres.reconciliation import Reconciliation, reconciling
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money
from gateway.core.reconciliation import FINDINGS, Finding, FindingClass, Totals
from gateway.core.statement import StatementLine
from gateway.core.usage import Usage, UsageSource
from tests.integration.samples import T0
from tests.integration.statements import EIGHT_DECIMALS, attempt, line, numbered, store

pytestmark = pytest.mark.integration

START, END = T0, T0 + timedelta(hours=1)
QUANTUM = EIGHT_DECIMALS // 2


def compared(
    database_url: str,
    lines: Iterable[StatementLine],
    *,
    start: datetime = START,
    end: datetime = END,
    account: str | None = None,
    quantum: int = QUANTUM,
) -> tuple[Totals, list[Finding]]:
    with reconciling(database_url) as found:
        totals = compare(found, lines, start=start, end=end, account=account, quantum=quantum)
        return totals, list(found.findings())


def compare(found: Reconciliation, lines: Iterable[StatementLine], **changes: Any) -> Totals:
    values = {"start": START, "end": END, "account": None, "quantum": QUANTUM} | changes
    found.take(lines)
    totals = found.compare(
        values["start"],
        values["end"],
        provider="evolink",
        account=values["account"],
        quantum_pico=values["quantum"],
        resolution=timedelta(microseconds=1),
    )
    assert totals.residual == Money(0)
    return totals


def counts(totals: Totals) -> dict[str, int]:
    return {kind.value: each.count for kind, each in totals.classes.items()}


def test_what_agrees_is_matched_whatever_the_rounding(database_url: str) -> None:
    """A hundred lines, each rounded to its fifth decimal, are no finding; the rounding is a step of its own."""
    rows = [attempt(number) for number in range(1, 101)]
    store(database_url, rows)
    step = 10_000_000
    totals, findings = compared(database_url, numbered([line(0, row, step=step) for row in rows]), quantum=step // 2)
    assert (counts(totals), findings) == ({"matched": 100}, [])
    assert totals.ledger == Money(sum(row.cost_pico for row in rows))
    assert totals.statement - totals.ledger == totals.steps()["rounding"] != Money(0)


def test_each_kind_of_fault_is_found_and_named(database_url: str) -> None:
    """Tokens, price, missing on either side and a line there twice, each with its ids and what it explains."""
    rows = [attempt(number) for number in range(1, 21)]
    store(database_url, rows)
    lines = [line(0, row) for row in rows]
    dearer = lines[4].amount_pico + 7 * 2_222_000
    lines[4] = msgspec.structs.replace(lines[4], output_tokens=rows[4].output_tokens + 7, amount_pico=dearer)
    lines[9] = msgspec.structs.replace(lines[9], amount_pico=lines[9].amount_pico - 1_000_000)
    extra = msgspec.structs.replace(lines[2], request_id="r-nobody", amount_pico=5_000_000)
    free = msgspec.structs.replace(lines[2], request_id="r-free", amount_pico=0)
    lines = numbered([*lines[:14], *lines[15:], lines[7], extra, free])
    totals, findings = compared(database_url, lines)
    assert counts(totals) == {
        "matched": 17,
        **dict.fromkeys(("tokens", "price", "missing_there", "missing_here", "duplicate", "free"), 1),
    }
    assert [(each.kind, each.line, each.attempt_id, each.request_id) for each in findings] == [
        (FindingClass.TOKENS, 6, rows[4].attempt_id, "r-5"),
        (FindingClass.PRICE, 11, rows[9].attempt_id, "r-10"),
        (FindingClass.MISSING_THERE, None, rows[14].attempt_id, "r-15"),
        (FindingClass.MISSING_HERE, 22, None, "r-nobody"),
        (FindingClass.DUPLICATE, 21, None, "r-8"),
    ]
    assert findings[0].theirs.output == rows[4].output_tokens + 7 and findings[0].ours.output == rows[4].output_tokens
    assert totals.steps()["missing_there"] == Money(-rows[14].cost_pico)
    assert totals.steps()["missing_here"] == Money(5_000_000)


def test_what_a_statement_does_not_tell_is_not_compared(database_url: str) -> None:
    """Without a column for cached tokens, and with quota for an amount, nothing is found in what agrees."""
    rows = [attempt(number) for number in range(1, 30)]
    store(database_url, rows)
    step = 2_000_000
    lines = numbered([line(0, row, step=step, cached_tokens=None) for row in rows])
    totals, _ = compared(database_url, lines, quantum=step // 2)
    assert counts(totals) == {"matched": 29}


def test_an_attempt_counts_with_all_that_corrects_it_whenever_that_was(database_url: str) -> None:
    """A replacement, an adjustment and a later month: the sum is compared, and the tokens in force."""
    row = attempt(1)
    later = datetime.fromisoformat("2026-02-01T00:00:00Z")
    negated = {
        name: -getattr(row, name)
        for name in ("input_tokens", "cached_tokens", "output_tokens", "input_pico", "cached_pico", "output_pico")
    }
    reversal = msgspec.structs.replace(
        row, **negated, cost_pico=-row.cost_pico, list_pico=-row.cost_pico, reasoning_tokens=None,
        reasoning_source="none", attempt_id=f"{row.attempt_id}~1-", corrects=row.attempt_id, started_at=later,
        restates=row.started_at, is_final=False,
    )  # fmt: skip
    more = attempt(1, used=Usage.from_wire(prompt=1_500, completion=400, cached=0))
    replacement = msgspec.structs.replace(
        more, attempt_id=f"{row.attempt_id}~1+", corrects=row.attempt_id, started_at=later, restates=row.started_at,
        is_final=False,
    )  # fmt: skip
    fee = msgspec.structs.replace(
        reversal, **dict.fromkeys(negated, 0), fee_pico=3_000_000, cost_pico=3_000_000, list_pico=3_000_000,
        attempt_id=f"{row.attempt_id}~2=",
    )  # fmt: skip
    store(database_url, [row, reversal, replacement, fee])
    right = line(2, more, amount_pico=more.cost_pico + 3_000_000)
    totals, _ = compared(database_url, [right])
    assert counts(totals) == {"matched": 1}
    totals, (found,) = compared(database_url, [line(2, row)])
    assert (found.kind, found.cost) == (FindingClass.TOKENS, Money(more.cost_pico + 3_000_000))


def test_an_attempt_that_came_late_belongs_to_when_it_happened(database_url: str) -> None:
    """Its month was closed when it arrived, so it counts later; the statement has it where it was."""
    happened = attempt(1)
    counted = datetime.fromisoformat("2026-01-01T00:00:00Z")
    store(database_url, [msgspec.structs.replace(happened, started_at=counted, restates=happened.started_at)])
    totals, findings = compared(database_url, [line(2, happened)])
    assert (counts(totals), findings, totals.ledger) == ({"matched": 1}, [], Money(happened.cost_pico))


def test_at_the_edges_of_a_period_nothing_is_invented(database_url: str) -> None:
    """An attempt from just before is matched all the same; one under way at the end may stand in the next statement."""
    before = attempt(1, started_at=START - timedelta(seconds=3))
    rows = [before, attempt(2), attempt(3, started_at=END - timedelta(milliseconds=10))]
    gone = attempt(4, started_at=END - timedelta(minutes=5))
    store(database_url, [*rows, gone])
    lines = numbered([line(0, before, at=START + timedelta(seconds=1)), line(0, rows[1])])
    totals, findings = compared(database_url, lines)
    assert counts(totals) == {"matched": 2, "at_edge": 1, "missing_there": 1}
    assert [each.attempt_id for each in findings] == [gone.attempt_id]
    assert totals.of(FindingClass.MATCHED).outside == 1
    assert totals.steps()["started_outside_of_the_period"] == Money(before.cost_pico)


def test_lines_outside_of_the_period_are_left_alone(database_url: str) -> None:
    """A statement of a day, compared for one of its hours."""
    rows = [attempt(number, started_at=START + timedelta(minutes=40 * number)) for number in range(-2, 4)]
    store(database_url, rows)
    totals, findings = compared(database_url, numbered([line(0, row) for row in rows]))
    assert (counts(totals), findings) == ({"matched": 2}, [])


def test_lines_without_a_request_id_are_told_by_tokens_and_time(database_url: str) -> None:
    """Also where many calls are alike: as many stand for each other as there are."""
    same = Usage.from_wire(prompt=100, completion=10, cached=0)
    rows = [attempt(number, used=same if number % 2 else None) for number in range(1, 41)]
    store(database_url, rows)
    lines = [line(0, row, request_id=None) for row in rows]
    totals, _ = compared(database_url, numbered(lines))
    assert counts(totals) == {"matched": 40}
    totals, findings = compared(database_url, numbered([*lines[:10], *lines[11:]]))
    assert counts(totals) == {"matched": 39, "missing_there": 1}
    assert findings[0].cost == Money(rows[10].cost_pico)


def test_an_estimate_without_a_request_id_finds_its_line(database_url: str) -> None:
    """The only line of its model and time that nobody else stands for; of two it would not know which."""
    rows = [attempt(number) for number in range(1, 10)]
    crashed = attempt(20, request_id=None, source=UsageSource.ESTIMATED)
    store(database_url, [*rows, crashed])
    theirs = line(0, crashed, request_id="r-unknown", output_tokens=900, amount_pico=10**9)
    lines = [line(0, row) for row in rows]
    totals, (found,) = compared(database_url, numbered([*lines, theirs]))
    assert counts(totals) == {"matched": 9, "tokens": 1}
    assert (found.attempt_id, found.matched_by, found.usage_source) == (
        crashed.attempt_id,
        "model and time",
        "estimated",
    )
    assert totals.of(FindingClass.TOKENS).estimates == 1
    other = msgspec.structs.replace(theirs, request_id="r-other")
    totals, _ = compared(database_url, numbered([*lines, theirs, other]))
    assert counts(totals) == {"matched": 9, "missing_there": 1, "missing_here": 2}


def test_an_account_is_compared_alone_and_others_are_told(database_url: str) -> None:
    """A statement of one account says nothing about the attempts of another."""
    rows = [attempt(number, account="main" if number % 2 else "spare") for number in range(1, 11)]
    store(database_url, rows)
    lines = numbered([line(0, row) for row in rows if row.account == "main"])
    totals, _ = compared(database_url, lines, account="main")
    assert counts(totals) == {"matched": 5}
    with reconciling(database_url) as found:
        compare(found, lines)
        assert [(each.account, each.attempts, each.paired) for each in found.accounts()] == [
            ("main", 5, 5),
            ("spare", 5, 0),
        ]


def test_a_price_since_a_moment_is_one_finding_above_its_lines(database_url: str) -> None:
    """Half the price for the second half: solved, dated and held against every line."""
    rows = [attempt(number) for number in range(1, 61)]
    store(database_url, rows)
    lines = [
        line(
            0, row, amount_pico=row.cost_pico // 2 // EIGHT_DECIMALS * EIGHT_DECIMALS if number >= 30 else row.cost_pico
        )
        for number, row in enumerate(rows)
    ]
    lines[45] = msgspec.structs.replace(lines[45], amount_pico=9_999_990_000)
    with reconciling(database_url) as found:
        compare(found, numbered(lines), quantum=EIGHT_DECIMALS)
        (price,) = found.prices(EIGHT_DECIMALS)
    assert (price.model, price.price_id) == ("kimi-k2-thinking", rows[0].price_id)
    assert (price.hypothesis.factor, price.drifted, price.lines) == (1 / 2, 30, 29)
    assert price.run.first_at == rows[30].started_at + timedelta(milliseconds=20) and not price.run.is_over


FAULTS = ("none", "none", "none", "tokens", "cached", "price", "missing_there", "missing_here", "duplicate", "outside")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=30),
    step=st.sampled_from([1, 10_000, 2_000_000]),
    tells_cached=st.booleans(),
    seed=st.randoms(use_true_random=False),
)
def test_found_is_what_was_planted(
    module_database_url: str, faults: list[str], step: int, tells_cached: bool, seed: Any
) -> None:
    """Whatever faults lie among whatever calls, each is found under its own name, and no other."""
    rows: list[LedgerEntry] = []
    lines: list[StatementLine] = []
    planted: list[tuple[str, str]] = []
    for number, fault in enumerate(faults, start=1):
        used = Usage.from_wire(
            prompt=seed.randint(200, 5_000), completion=seed.randint(1, 5_000), cached=seed.randint(0, 199)
        )
        at = START - timedelta(milliseconds=10) if fault == "outside" else START + timedelta(seconds=number)
        source = UsageSource.ESTIMATED if seed.random() < 0.2 else UsageSource.PROVIDER
        row = attempt(number, used=used, started_at=at, source=source)
        said = line(0, row, step=step, **({} if tells_cached else {"cached_tokens": None}))
        if fault == "cached" and not tells_cached:
            fault = "none"
        match fault:
            case "tokens":
                said = msgspec.structs.replace(said, output_tokens=row.output_tokens + seed.choice((-1, 1)))
            case "cached":
                said = msgspec.structs.replace(said, cached_tokens=row.cached_tokens + 1)
            case "price":
                off = seed.choice((-1, 1)) * (step // 2 + seed.randint(1, 10**7))
                said = msgspec.structs.replace(said, amount_pico=row.cost_pico + off)
        if fault != "missing_here":
            rows.append(row)
        if fault != "missing_there":
            lines.append(said)
        if fault == "duplicate":
            lines.append(said)
        if fault not in ("none", "outside"):
            planted.append(("tokens" if fault == "cached" else fault, f"r-{number}"))
    with psycopg.connect(module_database_url) as db:
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        db.execute("DELETE FROM ledger")
    store(module_database_url, rows)
    seed.shuffle(lines)
    totals, findings = compared(module_database_url, numbered(lines), quantum=step // 2)
    assert sorted((each.kind.value, str(each.request_id)) for each in findings) == sorted(planted)
    assert totals.findings == len(planted)
    assert totals.ledger + Money.total(totals.steps().values()) == Money(sum(each.amount_pico for each in lines))
    assert set(FINDINGS) >= {each.kind for each in findings}
