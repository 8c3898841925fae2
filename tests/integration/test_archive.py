"""A month that has left the database for files answers every question as before, or says that it cannot (L1, L5)."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.adapters.archive.folder import ArchiveFolder
from gateway.adapters.postgres.archived import ArchivedMonths, Period
from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.reports import Reports
from gateway.core.archive import NotArchivedError
from gateway.core.closing import month_end, parse_month
from gateway.core.grants import COMMAND_LINE
from gateway.core.spend import Selection
from gateway.pipeline.ports import ArchiveUnavailableError
from tests.integration.archives import (
    JULY,
    LATER,
    MAY,
    KilledError,
    MortalFolder,
    archive_month,
    archiving,
    asked,
    attempts,
    close_month,
    everything,
    ship,
    two_months,
)
from tests.integration.samples import plan

pytestmark = pytest.mark.integration

MONTHS = ("2025-05", "2025-06")
ALL = Selection(start=MAY, end=LATER)


@pytest.fixture
def closed(database_url: str, tmp_path: Path) -> str:
    """A database with two closed months and an open one."""
    ship(database_url, tmp_path, *two_months())
    for month in MONTHS:
        close_month(database_url, month)
    return database_url


def partitions(url: str) -> set[str]:
    with psycopg.connect(url) as db:
        return {name for (name,) in db.execute("SELECT inhrelid::regclass::text FROM pg_inherits").fetchall()}


async def listed(reports: Reports) -> list[dict[str, object]]:
    return [row async for row in reports.ledger(ALL)]


def test_every_answer_is_as_before(closed: str, tmp_path: Path):
    """Lists, sums of ragged periods, explanations and the past: odd texts, nulls and edges of months among them."""
    folder = tmp_path / "archive"

    async def scenario() -> None:
        reports = Reports(closed, ArchiveFolder(folder))
        before = await everything(reports)
        assert len(before["rows"]) > 70 and None not in before["explained"] and len(before["past"]) > 70
        for month in MONTHS:
            async with archiving(closed, folder) as archive:
                await archive.archive(COMMAND_LINE, parse_month(month), told=lambda *_: None)
            assert await everything(reports) == before
        assert {name for name in partitions(closed) if "2025_05" in name or "2025_06" in name} == set()
        await reports.close()

    asyncio.run(scenario())


def test_statements_that_were_prepared_for_the_table_see_the_files(closed: str, tmp_path: Path):
    """One connection is asked about rows of the database until it plans no more, then about the same and the files."""
    folder = tmp_path / "archive"

    async def scenario(reports: Reports) -> None:
        async def both() -> int:
            return await attempts(reports, JULY - timedelta(minutes=1), JULY + timedelta(minutes=1))

        async def later() -> int:
            return await attempts(reports, JULY, JULY + timedelta(minutes=1))

        before = await both()
        async with archiving(closed, folder) as archive:
            for month in MONTHS:
                await archive.archive(COMMAND_LINE, parse_month(month), told=lambda *_: None)
        assert await both() == before == 2
        assert [await later() for _ in range(12)] == [1] * 12
        assert await both() == before
        assert [await later() for _ in range(12)] == [1] * 12

    asyncio.run(asked(closed, folder, scenario))


def test_the_files_are_what_is_on_record(closed: str, tmp_path: Path):
    """Two files with their checksums beside them, of many pieces, and an entry in the audit."""
    folder = tmp_path / "archive"
    archived = archive_month(closed, folder, "2025-05")
    assert sorted(path.name for path in (folder / "2025-05").iterdir()) == [
        "SHA256SUMS",
        "exchanges.parquet",
        "ledger.parquet",
    ]
    for file in (archived.ledger, archived.exchanges):
        content = (folder / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert f"{file.sha256}  {Path(file.name).name}\n" in (folder / "2025-05" / "SHA256SUMS").read_text()
    cuts = ArchiveFolder(folder).cuts("ledger", archived.ledger, MAY, JULY)
    assert len(cuts) > 3
    with psycopg.connect(closed) as db:
        row = db.execute("SELECT actor, target, after FROM audit_entries WHERE action = 'ledger.archive'").fetchone()
    assert row is not None and row[:2] == ("cli", "2025-05")
    assert row[2]["ledger"] == {
        "name": "2025-05/ledger.parquet",
        "rows": archived.ledger.rows,
        "bytes": archived.ledger.bytes,
        "sha256": archived.ledger.sha256,
    }


@pytest.mark.parametrize(
    ("month", "days", "says"),
    [
        ("2025-06", 90, "2025-05 is older and leaves first"),
        ("2025-07", 90, "not closed"),
        ("2025-05", 6, "from 2025-06-08 on"),
    ],
)
def test_what_may_not_leave(closed: str, tmp_path: Path, month: str, days: int, says: str):
    """Only what is closed, the oldest first, and when journals have forgotten it; the refusal says which."""
    at = month_end(MAY) + timedelta(days=days)
    with pytest.raises(NotArchivedError, match=says):
        archive_month(closed, tmp_path / "archive", month, at=at)
    assert "ledger_2025_05" in partitions(closed)


def test_twice_is_once(closed: str, tmp_path: Path):
    """A month that is archived is left alone."""
    archive_month(closed, tmp_path / "archive", "2025-05")
    with pytest.raises(NotArchivedError, match="archived already"):
        archive_month(closed, tmp_path / "archive", "2025-05")


def test_rows_that_changed_since_the_closing_stay(closed: str, tmp_path: Path):
    """What is read back has the checksum that the month was closed with, or nothing leaves."""
    with psycopg.connect(closed) as db:
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        db.execute("UPDATE ledger SET key_name = 'somebody' WHERE attempt_id = 'att_00000101'")
    with pytest.raises(NotArchivedError, match="not those that it was closed with"):
        archive_month(closed, tmp_path / "archive", "2025-05")
    assert "ledger_2025_05" in partitions(closed)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET flags = '{late}' WHERE attempt_id = 'att_00000101'",
        "DELETE FROM ledger WHERE attempt_id = 'att_00000101'",
        """UPDATE exchanges SET plan = '{"a": 1.0}' WHERE request_id = 'req_00000101'""",
    ],
)
def test_every_column_is_compared(closed: str, tmp_path: Path, change: str):
    """What the files have and the database has not, or the other way round, is seen also where no export shows it."""
    with psycopg.connect(closed, autocommit=True) as db:
        db.execute("""UPDATE exchanges SET plan = '{"a": 1.00}' WHERE request_id = 'req_00000101'""")
    written: list[str] = []

    def told(what: str, done: int, of: int) -> None:
        if what == "checking ledger" and not written:
            written.append(change)
            with psycopg.connect(closed) as db:
                db.execute("SET LOCAL gateway.maintenance = 'on'")
                db.execute(change)

    async def scenario() -> None:
        async with archiving(closed, tmp_path / "archive") as archive:
            with pytest.raises(NotArchivedError, match="is not what the database has between"):
                await archive.archive(COMMAND_LINE, MAY, told=told)

    asyncio.run(scenario())
    assert "ledger_2025_05" in partitions(closed)


def test_a_month_without_rows_or_plans(database_url: str, tmp_path: Path):
    """It leaves like any other."""
    close_month(database_url, "2025-04")
    folder = tmp_path / "archive"
    archived = archive_month(database_url, folder, "2025-04")
    assert (archived.ledger.rows, archived.exchanges.rows) == (0, 0)
    assert asyncio.run(asked(database_url, folder, listed)) == []
    assert asyncio.run(asked(database_url, folder, lambda reports: reports.explain("req_1"))) is None


def test_a_file_that_is_missing_is_named(closed: str, tmp_path: Path):
    """Whoever needs a row of it is refused; a whole month is a sum of the roll-up and needs none."""
    folder = tmp_path / "archive"
    archived = archive_month(closed, folder, "2025-05")
    path = folder / archived.ledger.name
    path.rename(path.with_suffix(".away"))

    async def scenario(reports: Reports) -> None:
        with pytest.raises(ArchiveUnavailableError, match=str(path)):
            await anext(reports.ledger(ALL))
        with pytest.raises(ArchiveUnavailableError, match=str(path)):
            await attempts(reports, MAY + timedelta(seconds=1), LATER)
        with pytest.raises(ArchiveUnavailableError, match=str(path)):
            await reports.explain("req_00000203")
        assert [row async for row in reports.ledger(Selection(start=JULY, end=LATER))]
        assert await attempts(reports, MAY, LATER) > 70

    asyncio.run(asked(closed, folder, scenario))
    with pytest.raises(ArchiveUnavailableError, match="GATEWAY_ARCHIVE_DIR"):
        asyncio.run(asked(closed, None, lambda reports: reports.explain("req_00000203")))


@pytest.mark.parametrize("how", ["shorter", "flipped"])
def test_a_file_that_was_changed_is_named(closed: str, tmp_path: Path, how: str):
    """A file of another length, or with another bit, is not read as if it were the archive."""
    folder = tmp_path / "archive"
    archived = archive_month(closed, folder, "2025-05")
    path = folder / archived.ledger.name
    content = bytearray(path.read_bytes())
    if how == "shorter":
        del content[-1:]
    else:
        content[len(content) // 3] ^= 1
    path.write_bytes(content)

    async def scenario(reports: Reports) -> None:
        with pytest.raises(ArchiveUnavailableError, match=str(path)):
            assert [row async for row in reports.ledger(ALL)] == []

    asyncio.run(asked(closed, folder, scenario))
    with pytest.raises(ArchiveUnavailableError, match=str(path)):
        ArchiveFolder(folder).check(archived.ledger)


@pytest.mark.parametrize("is_after", [False, True])
def test_who_is_killed_has_changed_nothing(closed: str, tmp_path: Path, is_after: bool):
    """At every step that is taken with the files; the next run does all of it again, whatever was left lying about."""
    folder = tmp_path / "archive"
    before = asyncio.run(asked(closed, folder, listed))
    deaths = 0
    while True:
        mortal = MortalFolder(folder, dies_at=deaths + 1, is_after=is_after)
        try:
            archived = archive_month(closed, mortal, "2025-05", piece_bytes=20_000)
            break
        except KilledError:
            deaths += 1
        assert "ledger_2025_05" in partitions(closed)
        assert asyncio.run(asked(closed, folder, listed)) == before
    assert deaths == mortal.calls > 12
    assert "ledger_2025_05" not in partitions(closed)
    assert asyncio.run(asked(closed, folder, listed)) == before
    assert sorted(path.suffix for path in (folder / "2025-05").iterdir()) == ["", ".parquet", ".parquet"]
    ArchiveFolder(folder).check(archived.ledger)


def test_a_list_goes_on_while_a_month_leaves(closed: str, tmp_path: Path):
    """Who is in the middle of one reads it to its end, each row once, wherever the row is by then."""
    folder = tmp_path / "archive"

    async def scenario(reports: Reports) -> None:
        before = await listed(reports)
        async with archiving(closed, folder) as archive:
            await archive.archive(COMMAND_LINE, MAY, told=lambda *_: None)
            under_way = reports.ledger(ALL)
            first = await anext(under_way)
            await archive.archive(COMMAND_LINE, parse_month("2025-06"), told=lambda *_: None)
            assert [first, *[row async for row in under_way]] == before

    asyncio.run(asked(closed, folder, scenario))


def test_who_has_looked_what_is_archived_finds_it_so(closed: str, tmp_path: Path):
    """Between that look and the rows no month leaves, or a sum would be without it."""

    async def scenario() -> None:
        connections = Connections(closed)
        async with archiving(closed, tmp_path / "archive") as archive:
            async with connections.transaction() as db:
                await ArchivedMonths(None).bring(db, [Period(MAY, JULY)])
                with pytest.raises(NotArchivedError, match="in use without a pause"):
                    await archive.archive(COMMAND_LINE, MAY, told=lambda *_: None)
            await archive.archive(COMMAND_LINE, MAY, told=lambda *_: None)
        await connections.close()

    asyncio.run(scenario())


def test_two_do_not_archive_at_once(closed: str, tmp_path: Path):
    """The second is told to wait."""
    with psycopg.connect(closed) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('gateway.archive', 0))")
        with pytest.raises(NotArchivedError, match="another run"):
            archive_month(closed, tmp_path / "archive", "2025-05")


def test_a_plan_that_arrives_meanwhile_is_not_lost(closed: str, tmp_path: Path):
    """What the database has got since the files were checked keeps the month where it is, until the next run."""
    folder, late = tmp_path / "archive", plan(900, made_at=MAY + timedelta(hours=1))
    arrived = False

    def told(what: str, done: int, of: int) -> None:
        nonlocal arrived
        if what == "checking exchanges" and not arrived:
            arrived = True
            with psycopg.connect(closed) as db:
                db.execute(
                    "INSERT INTO exchanges (request_id, made_at, key_id, plan) VALUES (%s, %s, '', '{}')",
                    [late.request_id, MAY],
                )

    async def scenario() -> None:
        async with archiving(closed, folder, piece_bytes=10**9) as archive:
            with pytest.raises(NotArchivedError, match="exchanges of 2025-05 has changed meanwhile"):
                await archive.archive(COMMAND_LINE, MAY, told=told)
            await archive.archive(COMMAND_LINE, MAY, told=told)

    asyncio.run(scenario())
    assert asyncio.run(asked(closed, folder, lambda reports: reports.explain(late.request_id))) is not None


def test_a_month_comes_back(closed: str, tmp_path: Path):
    """Latest first, whole, and may leave again."""
    folder = tmp_path / "archive"
    before = asyncio.run(asked(closed, folder, everything))
    for month in MONTHS:
        archive_month(closed, folder, month)

    async def restore(month: str) -> None:
        async with archiving(closed, folder) as archive:
            await archive.restore(COMMAND_LINE, parse_month(month), told=lambda *_: None)

    with pytest.raises(NotArchivedError, match="2025-06 is the latest"):
        asyncio.run(restore("2025-05"))
    asyncio.run(restore("2025-06"))
    assert {"ledger_2025_06", "exchanges_2025_06"} <= partitions(closed)
    assert asyncio.run(asked(closed, folder, everything)) == before
    asyncio.run(restore("2025-05"))
    assert asyncio.run(asked(closed, None, everything)) == before
    with pytest.raises(NotArchivedError, match="none is the latest"):
        asyncio.run(restore("2025-05"))
    archive_month(closed, folder, "2025-05")
    assert asyncio.run(asked(closed, folder, everything)) == before
