"""Rows of archived months answer with those in the database: what a question needs of them is brought before it.

Whoever asks names periods or a request first. What is archived of these is read from files into temporary tables of
the transaction, and statements read it under the names `ledger` and `exchanges` (``sql/archived_rows.sql``). Where
nothing is, that costs two short statements. A file that is missing raises; a sum is never silently smaller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
from psycopg import sql

from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.facts import Part
from gateway.adapters.postgres.sql import statement
from gateway.core.archive import ArchivedFile, ArchivedMonth
from gateway.core.closing import month_end
from gateway.pipeline.ports import ArchiveUnavailableError

T = TypeVar("T")
# Until the transaction ends no month leaves for files or comes back: both need the table alone.
_HOLD: Final = "LOCK TABLE ledger IN ACCESS SHARE MODE"
_MONTHS: Final = "SELECT month, archive FROM ledger_closings WHERE archived_at IS NOT NULL ORDER BY month"


class Archive(Protocol):
    """The files of archived months; what cannot be read raises ArchiveUnavailableError. Blocking."""

    def columns(self, table: str, file: ArchivedFile) -> list[str]:
        """The columns of its rows."""
        ...

    def cuts(self, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> list[datetime]:
        """Moments between which a period may be read in pieces that fit into memory."""
        ...

    def between(self, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> Iterator[bytes]:
        """The rows of a period as CSV for COPY."""
        ...

    def having(self, table: str, file: ArchivedFile, column: str, value: str) -> Iterator[bytes]:
        """The rows whose text is this as CSV for COPY."""
        ...


class Period(NamedTuple):
    """``begins`` inclusive, ``ends`` exclusive."""

    begins: datetime
    ends: datetime


class OnFile(NamedTuple):
    """An archived month."""

    begins: datetime
    ends: datetime
    files: ArchivedMonth

    def file(self, table: str) -> ArchivedFile:
        return self.files.ledger if table == "ledger" else self.files.exchanges

    def common(self, period: Period) -> Period:
        """What a period has of the month; nothing where it ends before it begins."""
        return Period(max(self.begins, period.begins), min(self.ends, period.ends))


class ArchivedMonths:
    """Brings archived rows into the transactions of those who ask."""

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive

    async def bring(self, db: Connection, periods: Sequence[Period], *, around: timedelta | None = None) -> None:
        """The ledger rows of these periods and, ``around`` them, the exchanges: once in a transaction, and before
        whatever it asks."""
        if not periods:
            return
        months = await archived_months(db)
        wanted = [(month, common) for month in months for common in map(month.common, periods) if _is_some(common)]
        wide = [] if around is None else [Period(later(a, -around), later(b, around)) for a, b in periods]
        plans = [(month, common) for month in months for common in map(month.common, wide) if _is_some(common)]
        if not wanted and not plans:
            return
        archive = self._present()
        await db.execute(statement("archived_rows"))
        for month, common in wanted:
            file = month.file("ledger")
            await _copy(db, "ledger", archive, file, archive.between("ledger", file, *common))
        for month, common in plans:
            file = month.file("exchanges")
            await _copy(db, "exchanges", archive, file, archive.between("exchanges", file, *common))

    async def bring_having(
        self, db: Connection, column: str, value: str, *, tables: Sequence[str] = ("ledger",)
    ) -> None:
        """What archived months have with such a text, a request's id for one: once in a transaction, and before
        whatever it asks."""
        months = await archived_months(db)
        if not months:
            return
        archive = self._present()
        await db.execute(statement("archived_rows"))
        for month in months:
            for table in tables:
                file = month.file(table)
                await _copy(db, table, archive, file, archive.having(table, file, column, value))

    async def slices(
        self, connections: Connections, start: datetime, end: datetime, *, step: timedelta = timedelta()
    ) -> list[Period]:
        """A period in parts that follow each other, of which each may be brought; what is in the database is not cut,
        and nothing into parts shorter than ``step``. Raises ArchiveUnavailableError where a file is missing that the
        period needs."""
        whole = Period(start, end)
        async with connections.transaction() as db:
            months = await archived_months(db)
        edges = [start]
        for month in months:
            common = month.common(whole)
            if _is_some(common):
                cuts = await asyncio.to_thread(self._present().cuts, "ledger", month.file("ledger"), *common)
                for cut in (common.begins, *cuts):
                    if cut - edges[-1] >= step:
                        edges.append(cut)
                edges.append(common.ends)
        return [Period(*edge) for edge in pairwise([*edges, end]) if edge[0] < edge[1]]

    def _present(self) -> Archive:
        if self._archive is None:
            raise ArchiveUnavailableError(
                "A month of these is archived, and nobody said where: set GATEWAY_ARCHIVE_DIR."
            )
        return self._archive


def ragged(covered: Iterable[Part]) -> list[Period]:
    """Of the parts of a period those that are rows."""
    return [Period(part.begins, part.ends) for part in covered if part.grain is None]


def on_file(row: Mapping[str, Any]) -> OnFile:
    """A month of `ledger_closings` that is archived."""
    begins = datetime(row["month"].year, row["month"].month, 1, tzinfo=UTC)
    return OnFile(begins, month_end(begins), msgspec.convert(row["archive"], ArchivedMonth))


async def copy_rows(db: Connection, table: str, columns: Sequence[str], pieces: Iterator[bytes]) -> None:
    """Copies CSV into a table, reading it beside the event loop. Raises what reading raises."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(sql.Identifier(table), names)
    async with db.cursor() as cursor, cursor.copy(query) as copy:
        async for piece in beside(pieces):
            await copy.write(piece)


async def beside(pieces: Iterator[T]) -> AsyncIterator[T]:
    """What a blocking iterator yields, each waited for in a thread."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


async def archived_months(db: Connection) -> list[OnFile]:
    """Those on record, oldest first; they stay so until the transaction ends."""
    await db.execute(_HOLD)
    return [on_file(row) for row in await (await db.execute(_MONTHS)).fetchall()]


async def _copy(db: Connection, table: str, archive: Archive, file: ArchivedFile, pieces: Iterator[bytes]) -> None:
    """The first piece is waited for, so that nothing is copied where nothing is found."""
    first = await asyncio.to_thread(next, pieces, None)
    if first is not None:
        columns = await asyncio.to_thread(archive.columns, table, file)
        await copy_rows(db, f"archived_{table}", columns, chain([first], pieces))


def _is_some(period: Period) -> bool:
    return period.begins < period.ends


def later(moment: datetime, by: timedelta) -> datetime:
    """A moment that much later, or earlier; the edge of time is as far as it goes."""
    try:
        return moment + by
    except OverflowError:
        return (datetime.min if by < timedelta() else datetime.max).replace(tzinfo=UTC)  # noqa: DTZ901
