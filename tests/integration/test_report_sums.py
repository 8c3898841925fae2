"""Reports equal the entries they are made of, to the pico-dollar, whatever is asked for (laws L1, L5)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import combinations
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.adapters.postgres.reports import FETCH_ROWS, Reports
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money, decimal_text
from gateway.core.spend import COLUMNS, DETAIL, MEASURES, Condition, Selection, SpendQuery, parse_conditions
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from gateway.http.books import report_pieces
from tests.integration.samples import T0, entry
from tests.integration.test_reports import listed, ship, spend

pytestmark = pytest.mark.integration

TAG = 'a 50% tag\'s "name"'
GROUPS = (*COLUMNS, f"tag:{TAG}", "tag:b")
ZONES = ("UTC", "Europe/Berlin", "Europe/London", "Asia/Kathmandu", "America/Havana", "Australia/Lord_Howe")
EDGES = (
    T0,
    datetime(2025, 10, 26, 1, 0, tzinfo=UTC),  # clocks go back in Europe
    datetime(2025, 10, 31, 23, 0, tzinfo=UTC),  # November begins in Berlin
    datetime(2025, 11, 1, 0, 0, tzinfo=UTC),
    datetime(2025, 11, 2, 5, 0, tzinfo=UTC),  # clocks go back in Havana
    datetime(2026, 4, 4, 15, 0, tzinfo=UTC),  # clocks go back half an hour on Lord Howe
)
SECOND = 10**6
ALL_OF_TIME = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))


# -- the same in Python ------------------------------------------------------------------------------------------------


def value_of(entry_: LedgerEntry, column: str, zone: ZoneInfo) -> str | None:
    """What an entry has in a column of a report."""
    at = entry_.started_at.astimezone(zone)
    match column:
        case "month":
            return f"{at:%Y-%m}"
        case "day":
            return f"{at:%Y-%m-%d}"
        case "hour":
            return f"{at:%Y-%m-%dT%H:00}"
        case _ if column.startswith("tag:"):
            return entry_.tags.get(column.removeprefix("tag:"))
        case _:
            name = {"key": "key_name", "price": "price_id", "source": "usage_source"}.get(column, column)
            found: str | None = getattr(entry_, name)
            return found


def share(numerator: int, denominator: int) -> str | None:
    if denominator <= 0:
        return None
    rounded = (Decimal(numerator) / Decimal(denominator)).quantize(Decimal("1e-6"), ROUND_HALF_EVEN)
    return f"{rounded + 0:f}".rstrip("0").rstrip(".")  # + 0: there is no negative nothing


def summed(entries: list[LedgerEntry]) -> dict[str, object]:
    """The measures of a report, in Python integers."""
    attempts = [each for each in entries if each.corrects is None]
    failed, aborted = ("failed", "abandoned"), ("aborted",)
    pico: dict[str, int] = {
        "cost": sum(each.cost_pico for each in entries),
        "estimated_cost": sum(each.cost_pico for each in entries if each.usage_source == "estimated"),
        "failed_cost": sum(each.cost_pico for each in entries if each.status in failed),
        "aborted_cost": sum(each.cost_pico for each in entries if each.status in aborted),
        "restated_cost": sum(each.cost_pico for each in entries if each.restates is not None),
        **{
            f"{name}_cost": sum(getattr(each, f"{name}_pico") for each in entries)
            for name in ("input", "cached", "cache_write", "output", "fee")
        },
    }
    numbers: dict[str, int] = {
        "requests": sum(each.is_final for each in attempts),
        "attempts": len(attempts),
        "input_tokens": sum(each.input_tokens for each in entries),
        "cached_tokens": sum(each.cached_tokens or 0 for each in entries),
        "cache_write_tokens": sum(each.cache_write_tokens for each in entries),
        "output_tokens": sum(each.output_tokens for each in entries),
        "reasoning_tokens": sum(each.reasoning_tokens or 0 for each in entries),
        "failed_attempts": sum(each.status in failed for each in attempts),
        "aborted_attempts": sum(each.status in aborted for each in attempts),
    }
    tokens = numbers["input_tokens"] + numbers["output_tokens"]
    ratios = {
        "estimated_share": share(pico["estimated_cost"], pico["cost"]),
        "cache_hit_rate": share(numbers["cached_tokens"], numbers["input_tokens"]),
        "usd_per_million": share(pico["cost"], tokens * 10**6),
    }
    return {**numbers, **{name: decimal_text(amount) for name, amount in pico.items()}, **ratios}


def is_selected(entry_: LedgerEntry, selection: Selection) -> bool:
    zone = ZoneInfo(selection.timezone)
    return selection.start <= entry_.started_at < selection.end and all(
        value_of(entry_, condition.group, zone) in condition.values for condition in selection.where
    )


def cells(
    entries: list[LedgerEntry], columns: tuple[str, ...], timezone: str
) -> dict[tuple[str | None, ...], dict[str, object]]:
    """The rows of a report by what they are grouped by."""
    zone = ZoneInfo(timezone)
    grouped: defaultdict[tuple[str | None, ...], list[LedgerEntry]] = defaultdict(list)
    for each in entries:
        grouped[tuple(value_of(each, column, zone) for column in columns)].append(each)
    return {values: summed(those) for values, those in grouped.items()}


def in_order(values: tuple[str | None, ...]) -> list[tuple[bool, bytes]]:
    """As bytes, and what there is none of last."""
    return [(value is None, (value or "").encode()) for value in values]


def emptied(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db, db.transaction():
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        db.execute("TRUNCATE ledger, spend_rollup, spend_groups, journal_offsets")


# -- what may be in a ledger -------------------------------------------------------------------------------------------


def negated(now: LedgerEntry, **changes: Any) -> LedgerEntry:
    """The row that takes another one back."""
    amounts = {name: -getattr(now, name) for name in now.__struct_fields__ if name.endswith("_pico") and name[0] != "h"}
    tokens = {name: -(getattr(now, name) or 0) for name in now.__struct_fields__ if name.endswith("_tokens")}
    taken_back = {"is_final": False, "corrects": now.attempt_id, "correction_id": "c1"}
    return msgspec.structs.replace(now, **{**amounts, **tokens, **taken_back, **changes})


@st.composite
def ledger_entries(draw: st.DrawFn) -> list[LedgerEntry]:
    entries = []
    for number in range(draw(st.integers(0, 10))):
        source = draw(st.sampled_from(UsageSource))
        prompt, completion = draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31))
        used = Usage.from_wire(prompt=prompt, completion=completion, cached=draw(st.none() | st.integers(0, prompt)))
        edge = draw(st.sampled_from(EDGES))
        made = entry(
            number,
            used=NO_USAGE if source is UsageSource.NONE else used,
            source=source,
            status=draw(st.sampled_from(AttemptStatus)),
            is_final=draw(st.booleans()),
            key_id=draw(st.sampled_from(["k1", "k2"])),
            key_name=draw(st.sampled_from(["one", "Zwei"])),
            team=draw(st.sampled_from([None, "blue", "red"])),
            account=draw(st.sampled_from(["main", "spare"])),
            tags=draw(st.sampled_from([{}, {TAG: "x"}, {TAG: "y", "b": "ü"}, {"b": ""}])),
            started_at=edge + timedelta(microseconds=draw(st.integers(-7_200 * SECOND, 7_200 * SECOND))),
        )
        if source is not UsageSource.NONE and draw(st.booleans()):
            made = msgspec.structs.replace(made, fee_pico=7, cost_pico=made.cost_pico + 7)
        entries.append(made)
        if draw(st.integers(0, 3)) == 0:
            late = {"restates": made.started_at, "started_at": draw(st.sampled_from(EDGES))}
            changes: dict[str, Any] = late if draw(st.booleans()) else {}
            entries.append(negated(made, attempt_id=f"{made.attempt_id}~1-", **changes))
    return entries


@st.composite
def questions(draw: st.DrawFn, entries: list[LedgerEntry]) -> SpendQuery:
    timezone = draw(st.sampled_from(ZONES))
    start = draw(st.sampled_from(EDGES)) + timedelta(microseconds=draw(st.integers(-9_000 * SECOND, 9_000 * SECOND)))
    end = start + draw(st.timedeltas(timedelta(0), timedelta(hours=3)) | st.just(timedelta(days=200)))
    if draw(st.booleans()):
        start, end = draw(st.sampled_from([ALL_OF_TIME, (EDGES[1], EDGES[3]), (EDGES[2], EDGES[4])]))
    where = []
    for group in draw(st.lists(st.sampled_from(GROUPS), max_size=2, unique=True)) if entries else []:
        there = [value_of(each, group, ZoneInfo(timezone)) for each in entries]
        values = draw(st.lists(st.sampled_from(there), min_size=1, max_size=2))
        where.append(Condition(group, tuple(values)))
    return SpendQuery(
        selection=Selection(start=start, end=end, timezone=timezone, where=tuple(where)),
        groups=tuple(draw(st.lists(st.sampled_from(GROUPS), max_size=4))),
        detail=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_report_is_the_sum_of_its_entries(
    module_database_url: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """L1, L5: for any bounds, zone, mix of groups and conditions, each row, the total and the rows listed are exact."""
    entries = data.draw(ledger_entries())
    query = data.draw(questions(entries))
    emptied(module_database_url)
    ship(module_database_url, tmp_path_factory.mktemp("journals"), *entries)
    selection = query.selection
    period = {"tz": selection.timezone, "where": selection.where, "detail": query.detail}
    found = spend(module_database_url, selection.start, selection.end, *query.groups, **period)  # type: ignore[arg-type]

    within = [each for each in entries if is_selected(each, selection)]
    names = (*MEASURES, *DETAIL) if query.detail else MEASURES
    expected = cells(within, query.columns, selection.timezone)
    rows = [(*query.columns, *names)] * len(found["rows"])
    assert [tuple(row) for row in found["rows"]] == rows
    assert [tuple(row[name] for name in query.columns) for row in found["rows"]] == sorted(expected, key=in_order)
    for row in found["rows"]:
        sums = expected[tuple(row[name] for name in query.columns)]
        assert {name: row[name] for name in names} == {name: sums[name] for name in names}
    whole = summed(within)
    assert found["total"] == {name: whole[name] for name in names}
    assert tuple(found["total"]) == names
    rows_listed = listed(module_database_url, selection)
    assert sorted(str(row["attempt_id"]) for row in rows_listed) == sorted(each.attempt_id for each in within)


# -- a cell and its rows -----------------------------------------------------------------------------------------------


def traffic() -> list[LedgerEntry]:
    """Attempts that differ in everything that a report may be grouped by, and one that is taken back."""
    made = [
        entry(
            number,
            status=list(AttemptStatus)[number % 4],
            source=UsageSource.ESTIMATED if number % 3 == 0 else UsageSource.PROVIDER,
            key_id=f"k{number % 3}",
            key_name=f"name {number % 2}",
            team=[None, "blue"][number % 2],
            model=f"m{number % 2}",
            provider=f"p{number % 3}",
            account=f"a{number % 2}",
            tags=[{}, {TAG: "x"}, {TAG: ""}, {TAG: "x", "b": "="}][number % 4],
            started_at=EDGES[number % 5] + timedelta(minutes=29 * number),
        )
        for number in range(24)
    ]
    return [*made, negated(made[5], attempt_id="taken back", started_at=EDGES[4], restates=made[5].started_at)]


@pytest.fixture
def booked(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    emptied(module_database_url)
    ship(module_database_url, tmp_path_factory.mktemp("journals"), *traffic())
    return module_database_url


def spelled(column: str, value: str | None) -> str:
    """The condition that a value of a cell is picked by."""
    return f"{column}=" + ("" if value is None else value or '""')


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("groups", [(), *((group,) for group in GROUPS), *combinations(("key", "day", "tag:b"), 2)])
def test_the_rows_behind_every_cell(booked: str, groups: tuple[str, ...], timezone: str) -> None:
    """The ledger listed by the values of a cell costs what the cell costs, and all cells together list every row."""
    start, end = EDGES[1] - timedelta(days=1), T0 + timedelta(days=3)
    query = SpendQuery(selection=Selection(start=start, end=end, timezone=timezone), groups=groups)
    report = spend(booked, start, end, *groups, tz=timezone)
    count = 0
    for row in report["rows"]:
        where = parse_conditions([spelled(name, row[name]) for name in query.columns])
        rows = listed(booked, msgspec.structs.replace(query.selection, where=where))
        assert decimal_text(sum(Money.from_usd(each["cost"]).pico for each in rows)) == row["cost"]
        assert sum(each["corrects"] is None for each in rows) == row["attempts"]
        count += len(rows)
        narrowed = spend(booked, start, end, *groups, tz=timezone, where=where)
        assert narrowed["rows"] == [row]
    assert count == len(traffic())


def test_an_hour_that_there_is_twice(booked: str, database_url: str, tmp_path: Path) -> None:
    """When clocks go back, both hours of one name are in one row, and its condition lists them both."""
    twice = [entry(number, started_at=datetime(2025, 10, 26, number, 30, tzinfo=UTC)) for number in (0, 1, 2)]
    ship(database_url, tmp_path, *twice)
    day = datetime(2025, 10, 26, tzinfo=ZoneInfo("Europe/Berlin"))
    report = spend(database_url, day, day + timedelta(days=1), "hour", tz="Europe/Berlin")
    attempts = [(row["hour"], row["attempts"]) for row in report["rows"]]
    assert attempts == [("2025-10-26T02:00", 2), ("2025-10-26T03:00", 1)]
    where = parse_conditions(["hour=2025-10-26T02:00"])
    selection = Selection(start=day, end=day + timedelta(days=1), timezone="Europe/Berlin", where=where)
    assert len(listed(database_url, selection)) == 2


def test_another_team_s_rows_are_not_there(booked: str) -> None:
    """A team sees its own rows only, whatever it asks for."""
    start, end = ALL_OF_TIME
    where = parse_conditions(["team="])
    assert listed(booked, Selection(start=start, end=end, team="blue", where=where)) == []
    assert {row["team"] for row in listed(booked, Selection(start=start, end=end, team="blue"))} == {"blue"}


# -- size --------------------------------------------------------------------------------------------------------------


def test_a_long_report_is_streamed(database_url: str) -> None:
    """Rows come before all of them are there to be sent, and those that nobody has read yet are not held here."""
    count = 5 * FETCH_ROWS
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(LONG_GROUPS, {"count": count})
        db.execute(LONG_ROLLUP)
    query = SpendQuery(selection=Selection(start=T0 - timedelta(days=90), end=T0 + timedelta(days=90)), groups=("key",))

    async def scenario() -> tuple[list[int], bytes]:
        reports = Reports(database_url)
        taken, sizes = 0, []

        async def counted() -> Any:
            nonlocal taken
            async for row in reports.spend(query):
                taken += 1
                yield row

        pieces = []
        async for piece in report_pieces(query, counted(), "jsonl"):
            pieces.append(piece)
            sizes.append(taken)
        await reports.close()
        return sizes, b"".join(pieces)

    sizes, text = asyncio.run(scenario())
    assert len(text.splitlines()) == count
    assert sizes[0] < FETCH_ROWS
    assert len(sizes) >= count // FETCH_ROWS


LONG_GROUPS = """
INSERT INTO spend_groups (group_id, key_id, key_name, tags, model, provider, account, price_id)
SELECT gen_random_uuid(), 'key_' || n, 'name', '{}', 'm', 'p', 'a', 'price' FROM generate_series(1, %(count)s) AS n
"""
LONG_ROLLUP = """
INSERT INTO spend_rollup
SELECT
    'month', '2025-11-01 00:00Z', group_id, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 2, 2, 0, 0, 0, 0 FROM spend_groups
"""
