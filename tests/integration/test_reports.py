"""Reports equal the entries they are made of, to the pico-dollar, for any period and any grouping (laws L1, L5)."""

from __future__ import annotations

import asyncio
import zoneinfo
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.reports import MEASURES, Reports
from gateway.adapters.postgres.shipper import Shipper
from gateway.adapters.postgres.tables import LEDGER_COLUMNS, LEDGER_TYPES
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry, Record
from gateway.core.money import Money, decimal_text
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from gateway.http.books import LEDGER_FIELDS
from tests.integration.samples import T0, entry, plan, usage

pytestmark = pytest.mark.integration

T = TypeVar("T")
TAG = 'a 50% tag\'s "name"'
DAY = timedelta(days=1)


def ship(url: str, data_dir: Path, *records: Record) -> None:
    """Takes the records the whole way: journal, disk, shipper, ledger and roll-up."""

    async def scenario() -> None:
        writer = JournalWriter.open(data_dir, "j1")
        for record in records:
            writer.append(record)
        writer.close()
        shipper = Shipper(url, Outbox(data_dir), clock=SystemClock(), chance=lambda: 0.5)
        await shipper.ship()
        await shipper.close()

    asyncio.run(scenario())


def ask(url: str, question: Callable[[Reports], Awaitable[T]]) -> T:
    async def scenario() -> T:
        reports = Reports(url)
        try:
            return await question(reports)
        finally:
            await reports.close()

    return asyncio.run(scenario())


def spend(url: str, start: datetime, end: datetime, *groups: str, tz: str = "UTC") -> dict[str, Any]:
    return ask(url, lambda reports: reports.spend(start, end, group_by=groups, timezone=tz))


def summed(entries: list[LedgerEntry]) -> dict[str, object]:
    """The measures of a report, in Python integers."""
    return {
        "requests": sum(each.is_final for each in entries),
        "attempts": sum(each.corrects is None for each in entries),
        "input_tokens": sum(each.input_tokens for each in entries),
        "cached_tokens": sum(each.cached_tokens or 0 for each in entries),
        "cache_write_tokens": sum(each.cache_write_tokens for each in entries),
        "output_tokens": sum(each.output_tokens for each in entries),
        "reasoning_tokens": sum(each.reasoning_tokens or 0 for each in entries),
        "cost": decimal_text(sum(each.cost_pico for each in entries)),
        "estimated_cost": decimal_text(sum(each.cost_pico for each in entries if each.usage_source == "estimated")),
    }


GROUPINGS: dict[str, tuple[tuple[str, ...], Callable[[LedgerEntry], tuple[object, ...]]]] = {
    "nothing": ((), lambda each: ()),
    "key": (("key", "key_id"), lambda each: (each.key_name, each.key_id)),
    "team": (("team",), lambda each: (each.team,)),
    "account": (("provider", "account"), lambda each: (each.provider, each.account)),
    f"tag:{TAG}": ((f"tag:{TAG}",), lambda each: (each.tags.get(TAG),)),
    "day": (("day",), lambda each: (f"{each.started_at:%Y-%m-%d}",)),
    "month": (("month",), lambda each: (f"{each.started_at:%Y-%m}",)),
    "hour": (("hour",), lambda each: (f"{each.started_at:%Y-%m-%dT%H:00}",)),
}


@st.composite
def ledger_entries(draw: st.DrawFn) -> list[LedgerEntry]:
    count = draw(st.integers(0, 12))
    entries = []
    for number in range(count):
        source = draw(st.sampled_from(UsageSource))
        prompt, completion = draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31))
        cached = draw(st.none() | st.integers(0, prompt))
        used = Usage.from_wire(prompt=prompt, completion=completion, cached=cached)
        made = entry(
            number,
            used=NO_USAGE if source is UsageSource.NONE else used,
            source=source,
            status=draw(st.sampled_from(AttemptStatus)),
            is_final=draw(st.booleans()),
            key_id=draw(st.sampled_from(["k1", "k2"])),
            team=draw(st.sampled_from([None, "blue", "red"])),
            account=draw(st.sampled_from(["main", "spare"])),
            tags=draw(st.sampled_from([{}, {TAG: "x"}, {TAG: "y", "b": "ü"}])),
            started_at=T0 + timedelta(microseconds=draw(st.integers(-4 * 10**9, 4 * 10**9))),
        )
        if source is not UsageSource.NONE and draw(st.booleans()):
            made = msgspec.structs.replace(made, fee_pico=7, cost_pico=made.cost_pico + 7)
        entries.append(made)
    return entries


@settings(max_examples=50, deadline=None)
@given(
    entries=ledger_entries(),
    begin=st.integers(-5 * 10**9, 5 * 10**9),
    length=st.one_of(st.integers(0, 2 * 10**9), st.just(10**10)),
    group=st.sampled_from(sorted(GROUPINGS)),
)
def test_a_report_is_the_sum_of_its_entries(
    module_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[LedgerEntry],
    begin: int,
    length: int,
    group: str,
) -> None:
    """L1, L5: for any bounds, ragged or not, each row and the total equal a sum over the entries in Python."""
    with psycopg.connect(module_database_url, autocommit=True) as db, db.transaction():
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        db.execute("TRUNCATE ledger, spend_rollup, spend_groups, journal_offsets")
    ship(module_database_url, tmp_path_factory.mktemp("journals"), *entries)
    start = T0 + timedelta(microseconds=begin)
    end = start + timedelta(microseconds=length)
    within = [each for each in entries if start <= each.started_at < end]
    names, key_of = GROUPINGS[group]
    found = spend(module_database_url, start, end, *([] if group == "nothing" else [group]))
    expected = {key_of(each): summed([other for other in within if key_of(other) == key_of(each)]) for each in within}
    assert {tuple(row.pop(name) for name in names): row for row in found["rows"]} == expected
    assert found["total"] == summed(within)
    assert tuple(found["total"]) == MEASURES


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_days_and_hours_are_those_of_the_zone(database_url: str, tmp_path: Path) -> None:
    """A day in Kathmandu begins at 18:15 UTC, which is a quarter hour and no whole one."""
    late = datetime(2025, 11, 22, 18, 15, tzinfo=UTC)
    ship(database_url, tmp_path, entry(1, started_at=late - timedelta(seconds=1)), entry(2, started_at=late))
    found = spend(database_url, T0 - DAY, T0 + DAY, "day", tz="Asia/Kathmandu")
    assert [(row["day"], row["attempts"]) for row in found["rows"]] == [("2025-11-22", 1), ("2025-11-23", 1)]
    zone = zoneinfo.ZoneInfo("Asia/Kathmandu")
    begins = datetime(2025, 11, 23, tzinfo=zone)
    assert spend(database_url, begins, begins + DAY, tz="Asia/Kathmandu")["total"]["attempts"] == 1


def test_rows_come_in_a_fixed_order_and_dates_as_asked(database_url: str, tmp_path: Path) -> None:
    """Two groups sort by the first and then the second; what has no team comes last."""
    teams = ["red", None, "blue", "red"]
    ship(database_url, tmp_path, *(entry(n, team=team, model=f"m{n % 2}") for n, team in enumerate(teams)))
    found = spend(database_url, T0, T0 + DAY, "team", "model")
    assert [(row["team"], row["model"]) for row in found["rows"]] == [
        ("blue", "m0"),
        ("red", "m0"),
        ("red", "m1"),
        (None, "m1"),
    ]
    assert (found["from"], found["to"]) == ("2025-11-22T10:00:00Z", "2025-11-23T10:00:00Z")
    assert list(found["rows"][0])[2:] == list(MEASURES)


@pytest.mark.parametrize("group", ["", "keys", "tag:", "tag:a\0b", "key; DROP TABLE ledger"])
def test_an_unknown_group_is_a_value_error(database_url: str, group: str) -> None:
    """The words of the operator never become SQL."""
    with pytest.raises(ValueError, match="choose from"):
        spend(database_url, T0, T0 + DAY, group)


def test_an_unknown_zone_is_a_value_error(database_url: str) -> None:
    """A zone that Python does not know is refused before the database is asked."""
    with pytest.raises(ValueError, match="time zone"):
        spend(database_url, T0, T0 + DAY, tz="Mars/Olympus")


def test_the_ledger_is_streamed_in_order_under_the_interface_s_names(database_url: str, tmp_path: Path) -> None:
    """INTERFACE §4: fields, order of fields, decimal strings, RFC 3339; more rows than one fetch."""
    count = 2_300
    entries = [entry(number, started_at=T0 + timedelta(seconds=number // 2)) for number in reversed(range(count))]
    ship(database_url, tmp_path, *entries)

    async def rows(reports: Reports) -> list[dict[str, object]]:
        return [row async for row in reports.ledger(T0, T0 + timedelta(seconds=count // 2 - 1))]

    found = ask(database_url, rows)
    assert [row["attempt_id"] for row in found] == [f"att_{number:08d}" for number in range(count - 2)]
    first = found[0]
    assert tuple(first) == LEDGER_FIELDS
    assert (first["started_at"], first["finished_at"]) == ("2025-11-22T10:00:00Z", "2025-11-22T10:00:02Z")
    parts = ("input_cost", "cached_cost", "cache_write_cost", "output_cost", "fee_cost")
    assert sum(Money.from_usd(str(first[part])).pico for part in parts) == Money.from_usd(str(first["cost"])).pico
    # 400 uncached at 0.556, 600 cached at 0.139, 200 of output at 2.222 USD per million
    assert (first["input_cost"], first["cached_cost"], first["output_cost"]) == ("0.0002224", "0.0000834", "0.0004444")
    assert first["cost"] == "0.0007502"
    assert first["tags"] == {"env": "test"}
    assert first["cached_tokens"] == 600


def test_what_was_not_told_stays_absent(database_url: str, tmp_path: Path) -> None:
    """L14: no cached tokens and no reasoning reported are null in a row, not zero."""
    ship(database_url, tmp_path, entry(1, used=usage(cached=None, reasoning=None)))

    async def rows(reports: Reports) -> list[dict[str, object]]:
        return [row async for row in reports.ledger(T0, T0 + DAY)]

    (row,) = ask(database_url, rows)
    assert (row["cached_tokens"], row["reasoning_tokens"], row["reasoning_source"]) == (None, None, "none")


def test_the_table_has_the_columns_of_the_entry(db: psycopg.Connection) -> None:
    """A field that is added to the entry needs a migration, and a column a field; types are those that COPY sends."""
    columns = """
        SELECT attname, atttypid::regtype::text FROM pg_attribute
        WHERE attrelid = 'ledger'::regclass AND attnum > 0 ORDER BY attnum
    """
    types = "SELECT name::regtype::text FROM unnest(%s::text[]) WITH ORDINALITY AS sent (name, n) ORDER BY n"
    sent = [name for (name,) in db.execute(types, [[*LEDGER_TYPES, "timestamptz"]])]
    found = db.execute(columns).fetchall()
    assert sorted(found) == sorted(zip((*LEDGER_COLUMNS, "recorded_at"), sent, strict=True))


def test_a_request_is_explained_to_the_last_digit(database_url: str, tmp_path: Path) -> None:
    """Every attempt's lines add up to its cost, and the attempts to the request's."""
    failed = entry(
        1,
        request_id="r",
        used=NO_USAGE,
        source=UsageSource.NONE,
        status=AttemptStatus.FAILED,
        is_final=False,
        attempt_id="a1",
    )
    answered = entry(2, request_id="r", attempt=2, attempt_id="a2")
    text = b'{"model":"m","candidates":[{"provider":"p","expected_cost_usd":0.10000000000000001}]}'
    ship(database_url, tmp_path, plan(1, request_id="r", plan=msgspec.Raw(text)), failed, answered)
    found: dict[str, Any] | None = ask(database_url, lambda reports: reports.explain("r"))
    assert found is not None
    assert found["cost"] == "0.0007502"
    assert found["candidates"][0]["expected_cost_usd"] == Decimal("0.10000000000000001")
    assert [(each["attempt_id"], each["cost"], len(each["lines"])) for each in found["attempts"]] == [
        ("a1", "0", 0),
        ("a2", "0.0007502", 3),
    ]
    assert found["attempts"][1]["lines"] == [
        {"class": "input", "tokens": 400, "usd_per_million": "0.556", "cost": "0.0002224"},
        {"class": "cached_input", "tokens": 600, "usd_per_million": "0.139", "cost": "0.0000834"},
        {"class": "output", "tokens": 200, "usd_per_million": "2.222", "cost": "0.0004444"},
    ]
    assert ask(database_url, lambda reports: reports.explain("nothing")) is None


def test_a_correction_is_explained_by_its_amount(database_url: str, tmp_path: Path) -> None:
    """A correction without tokens has a line too, so that the lines add up to the cost."""
    corrected = msgspec.structs.replace(
        entry(2, request_id="r", used=NO_USAGE, is_final=False),
        output_pico=-5,
        cost_pico=-5,
        list_pico=-5,
        corrects="att_00000001",
    )
    ship(database_url, tmp_path, entry(1, request_id="r"), corrected)
    found: dict[str, Any] | None = ask(database_url, lambda reports: reports.explain("r"))
    assert found is not None
    assert found["attempts"][1]["lines"] == [
        {"class": "output", "tokens": 0, "usd_per_million": None, "cost": "-0.000000000005"}
    ]
    assert found["cost"] == "0.000750199995"
    assert spend(database_url, T0, T0 + DAY)["total"]["attempts"] == 1
