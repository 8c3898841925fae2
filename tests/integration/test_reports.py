"""The ledger and its reports as they come out of the database: order, names, zones, and what a request is made of."""

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

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.shipper import Shipper
from gateway.adapters.postgres.tables import LEDGER_COLUMNS, LEDGER_TYPES
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import Record
from gateway.core.money import Money
from gateway.core.spend import MEASURES, Condition, Selection, SpendQuery
from gateway.core.usage import NO_USAGE, UsageSource
from gateway.http.books import LEDGER_FIELDS, report_pieces
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


def spend(
    url: str,
    start: datetime,
    end: datetime,
    *groups: str,
    tz: str = "UTC",
    where: tuple[Condition, ...] = (),
    detail: bool = False,
) -> dict[str, Any]:
    """The report as JSON has it."""
    query = SpendQuery(
        selection=Selection(start=start, end=end, timezone=tz, where=where), groups=groups, detail=detail
    )

    async def document(reports: Reports) -> dict[str, Any]:
        pieces = [piece async for piece in report_pieces(query, reports.spend(query), "json")]
        found: dict[str, Any] = msgspec.json.decode(b"".join(pieces))
        return found

    return ask(url, document)


def listed(url: str, selection: Selection) -> list[dict[str, Any]]:
    """The rows of the ledger."""

    async def rows(reports: Reports) -> list[dict[str, Any]]:
        return [row async for row in reports.ledger(selection)]

    return ask(url, rows)


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


def test_the_ledger_is_streamed_in_order_under_the_interface_s_names(database_url: str, tmp_path: Path) -> None:
    """INTERFACE §4: fields, order of fields, decimal strings, RFC 3339; more rows than one fetch."""
    count = 2_300
    entries = [entry(number, started_at=T0 + timedelta(seconds=number // 2)) for number in reversed(range(count))]
    ship(database_url, tmp_path, *entries)

    found = listed(database_url, Selection(start=T0, end=T0 + timedelta(seconds=count // 2 - 1)))
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

    (row,) = listed(database_url, Selection(start=T0, end=T0 + DAY))
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
