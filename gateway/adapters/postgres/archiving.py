"""A closed month leaves the database for files that were read back and found the same, or it stays where it is.

In order: the files are written and take their names; every row is read back, compared with the database in every
column, and the month's checksum worked out of what was read; then the partitions go and the month is on record as
archived, in one transaction. Whoever is killed in between has changed nothing, and the next run does all of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, Protocol

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from gateway.adapters.postgres.archived import Archive, OnFile, archived_months, copy_rows
from gateway.adapters.postgres.changes import Store
from gateway.adapters.postgres.closings import refuse_rows
from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.entries import HOLD_TO_CLOSE
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import ledger_row_json
from gateway.core.archive import ArchivedFile, ArchivedMonth, NotArchivedError, archivable_from
from gateway.core.closing import month_end, month_text
from gateway.core.grants import Administrator
from gateway.pipeline.ports import Clock

PIECE_BYTES: Final = 8 * 2**20
"""A piece of a file is made of so much CSV."""
FETCH_ROWS: Final = 1_000
LOCK_SECONDS: Final = 2
"""Everybody who reads or writes the ledger waits for so long, at the most, while a month is about to leave."""
LOCK_ATTEMPTS: Final = 5
ORDERS: Final[Mapping[str, tuple[str, str]]] = {
    "ledger": ("started_at", "attempt_id"),
    "exchanges": ("made_at", "request_id"),
}

_ALONE: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('gateway.archive', 0)) AS is_alone"
_MONTHS: Final = "SELECT * FROM ledger_closings ORDER BY month"
_COLUMNS: Final = """
SELECT attname AS name, format_type(atttypid, NULL) AS kind
FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_ARCHIVED: Final = "UPDATE ledger_closings SET archived_at = %s, archive = %s WHERE month = %s"

Told = Callable[[str, int, int], None]
"""What is being done, how many rows of it, and how many there are."""


class Draft(Protocol):
    """A file that is being written. Blocking."""

    def write(self, text: bytes) -> None: ...
    def finish(self) -> ArchivedFile: ...
    def give_up(self) -> None: ...


class ArchiveFiles(Archive, Protocol):
    """Where archived months are kept. Blocking; raises OSError for what cannot be written."""

    def writer(self, month: str, table: str, columns: Mapping[str, str]) -> Draft: ...
    def seal(self, month: str, archived: ArchivedMonth) -> None: ...
    def check(self, file: ArchivedFile) -> None: ...


class PostgresArchiving(Store):
    """Takes closed months out of the database, and back."""

    def __init__(self, database_url: str, files: ArchiveFiles, *, clock: Clock, piece_bytes: int = PIECE_BYTES) -> None:
        super().__init__(Connections(database_url), clock=clock)
        self._files = files
        self._piece_bytes = piece_bytes

    async def archive(self, by: Administrator, month: datetime, *, told: Told) -> ArchivedMonth:
        """Raises NotArchivedError for a month that may not leave, ArchiveUnavailableError and OSError for files, and
        StoreUnavailableError."""
        async with self._alone() as db:
            closing = await self._next(db, month)
            written = {table: await self._write(month, table, told=told) for table in ORDERS}
            archived = ArchivedMonth(**written)
            await asyncio.to_thread(self._files.seal, month_text(month), archived)
            sha256 = await self._read_back(OnFile(month, month_end(month), archived), told=told)
            if sha256 != bytes(closing["ledger_sha256"]):
                raise NotArchivedError(
                    f"the rows of {month} are not those that it was closed with: their checksum is {sha256.hex()}, and "
                    f"{bytes(closing['ledger_sha256']).hex()} is on record. See `gateway ledger verify {month}`.",
                )
            await self._leave(by, month, archived)
        return archived

    async def restore(self, by: Administrator, month: datetime, *, told: Told) -> ArchivedMonth:
        """Takes the month that was archived last back into the database; its files stay. Raises what ``archive``
        does."""
        async with self._alone():
            async with self._connections.transaction() as db:
                kept = await self._last(db, month)
            for table in ORDERS:
                await asyncio.to_thread(self._files.check, kept.file(table))
            await self._put_back(by, kept, told=told)
        return kept.files

    async def close(self) -> None:
        await self._connections.close()

    # --- what may be done ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Connection]:
        """A transaction that holds off another archive, and no table."""
        async with self._connections.transaction() as db:
            row = await (await db.execute(_ALONE)).fetchone()
            if row is None or not row["is_alone"]:
                raise NotArchivedError("another run archives or restores a month just now; wait for its end.")
            yield db

    async def _next(self, db: Connection, month: datetime) -> dict[str, Any]:
        """The closing of a month that may be archived now. Raises NotArchivedError."""
        name = month_text(month)
        closings = await (await db.execute(_MONTHS)).fetchall()
        closing = next((each for each in closings if each["month"] == month.date()), None)
        if closing is None:
            raise NotArchivedError(f"{name} is not closed. Close it first: gateway ledger close {name}")
        if closing["archived_at"] is not None:
            raise NotArchivedError(f"{name} is archived already, since {closing['archived_at']:%Y-%m-%d}.")
        first = next(each for each in closings if each["archived_at"] is None)
        if first is not closing:
            raise NotArchivedError(f"{first['month']:%Y-%m} is older and leaves first.")
        allowed = archivable_from(month)
        if self._clock.now() < allowed:
            raise NotArchivedError(
                f"{name} may be archived from {allowed:%Y-%m-%d} on: until then journals may still bring rows of it."
            )
        return closing

    async def _last(self, db: Connection, month: datetime) -> OnFile:
        """The month that was archived last, if it is this one. Raises NotArchivedError."""
        archived = await archived_months(db)
        if not archived or archived[-1].begins != month:
            last = f"{month_text(archived[-1].begins)} is" if archived else "none is"
            raise NotArchivedError(f"months come back latest first, and {last} the latest that is archived.")
        return archived[-1]

    # --- files -----------------------------------------------------------------------------------------------------

    async def _write(self, month: datetime, table: str, *, told: Told) -> ArchivedFile:
        """Every row of a month, in order of time."""
        async with self._connections.transaction() as db:
            await db.execute("SET LOCAL statement_timeout = 0")
            found = await (await db.execute(_COLUMNS, [table])).fetchall()
            columns = {each["name"]: each["kind"] for each in found}
            total = await _counted(db, table, month)
            draft = await asyncio.to_thread(self._files.writer, month_text(month), table, columns)
            try:
                done, text = 0, bytearray()
                async with db.cursor() as cursor, cursor.copy(_copy(table, columns), [month, month_end(month)]) as copy:
                    async for line in copy:  # one row each, as the protocol has it
                        text += line
                        done += 1
                        if len(text) >= self._piece_bytes:
                            told(f"writing {table}", done, total)
                            await asyncio.to_thread(draft.write, bytes(text))
                            text.clear()
                if text:
                    await asyncio.to_thread(draft.write, bytes(text))
                return await asyncio.to_thread(draft.finish)
            finally:
                await asyncio.to_thread(draft.give_up)

    async def _read_back(self, month: OnFile, *, told: Told) -> bytes:
        """Compares what was written with what the database has, and answers the checksum of the ledger rows read."""
        digest = hashlib.sha256()
        for table in ORDERS:
            file = month.file(table)
            await asyncio.to_thread(self._files.check, file)
            cuts = await asyncio.to_thread(self._files.cuts, table, file, month.begins, month.ends)
            done = 0
            for begins, ends in pairwise([month.begins, *cuts, month.ends]):
                async with self._connections.transaction() as db:
                    await self._compare(db, table, file, begins, ends)
                    if table == "ledger":
                        done += await _hash_rows(db, digest)
                told(f"checking {table}", done, file.rows)
        return digest.digest()

    async def _compare(self, db: Connection, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> None:
        """Brings a part of a file beside the table. Raises NotArchivedError unless both have the same rows."""
        read = sql.Identifier(f"read_{table}")
        await db.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP").format(read, sql.Identifier(table))
        )
        columns = await asyncio.to_thread(self._files.columns, table, file)
        await copy_rows(db, f"read_{table}", columns, self._files.between(table, file, begins, ends))
        query = sql.SQL(statement("same_as_archived").decode()).format(
            kept=sql.Identifier(table), time=sql.Identifier(ORDERS[table][0]), read=read
        )
        row = await (await db.execute(query, {"begins": begins, "ends": ends})).fetchone()
        if row is None or not row["is_same"]:
            raise NotArchivedError(
                f"{file.name} read back is not what the database has between {begins} and {ends}. Nothing has left; "
                "run this again.",
            )

    # --- the moment it leaves, and comes back ----------------------------------------------------------------------

    async def _leave(self, by: Administrator, month: datetime, archived: ArchivedMonth) -> None:
        """The partitions go, and where the rows are is on record."""
        name = month_text(month)
        async with self._change(by) as change:
            await _take_alone(change.db)
            for table, file in (("ledger", archived.ledger), ("exchanges", archived.exchanges)):
                if await _counted(change.db, table, month) != file.rows:
                    raise NotArchivedError(
                        f"{table} of {name} has changed meanwhile. Nothing has left; run this again."
                    )
            for table in ORDERS:
                partition = sql.Identifier(f"{table}_{month:%Y_%m}")
                await change.db.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(partition))
                assert await _counted(change.db, table, month) == 0, "a month is one partition"
            facts = msgspec.to_builtins(archived)
            await change.db.execute(_ARCHIVED, [change.now, Jsonb(facts), month.date()])
            await change.record("ledger.archive", name, before=None, after=facts)

    async def _put_back(self, by: Administrator, kept: OnFile, *, told: Told) -> None:
        """Plans that a journal has brought again meanwhile stay as they are."""
        async with self._connections.transaction() as db:
            await db.execute("SELECT ensure_month(%s)", [kept.begins])
        async with self._connections.transaction() as db:
            await db.execute("SET LOCAL statement_timeout = 0")
            await db.execute("CREATE TEMPORARY TABLE read_exchanges (LIKE exchanges) ON COMMIT DROP")
            for table, target in (("ledger", "ledger"), ("exchanges", "read_exchanges")):
                file = kept.file(table)
                told(f"reading {table}", 0, file.rows)
                columns = await asyncio.to_thread(self._files.columns, table, file)
                await copy_rows(db, target, columns, self._files.between(table, file, kept.begins, kept.ends))
                told(f"reading {table}", file.rows, file.rows)
            await db.execute("INSERT INTO exchanges SELECT * FROM read_exchanges ON CONFLICT DO NOTHING")
            change = await self._change_in(db, by)
            await _take_alone(db)
            if await _counted(db, "ledger", kept.begins) != kept.files.ledger.rows:
                raise NotArchivedError(
                    f"{month_text(kept.begins)} has other rows in the database than in its file; look at them."
                )
            await refuse_rows(db, kept.begins)
            await db.execute(_ARCHIVED, [None, None, kept.begins.date()])
            before = msgspec.to_builtins(kept.files)
            await change.record("ledger.restore", month_text(kept.begins), before=before, after=None)


async def _take_alone(db: Connection) -> None:
    """Nobody reads or writes the ledger until the end of the transaction; waited for a little at a time, so that those
    who come meanwhile go on. Raises NotArchivedError where it is in use all the time."""
    await db.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            async with db.transaction():
                await db.execute(HOLD_TO_CLOSE)
                await db.execute("LOCK TABLE ledger, exchanges IN ACCESS EXCLUSIVE MODE")
            return
    raise NotArchivedError("the ledger is in use without a pause; run this again when no long report is under way.")


async def _counted(db: Connection, table: str, month: datetime) -> int:
    row = await (await db.execute(_count(table), [month, month_end(month)])).fetchone()
    return 0 if row is None else int(row["count"])


async def _hash_rows(db: Connection, digest: Any) -> int:
    """Adds what was read back to the checksum, as `GET /admin/ledger` exports it; how many rows."""
    done = 0
    async with db.cursor(name="read_back") as cursor:
        cursor.itersize = FETCH_ROWS
        await cursor.execute('SELECT * FROM read_ledger ORDER BY started_at, attempt_id COLLATE "C"')
        async for row in cursor:
            digest.update(msgspec.json.encode(ledger_row_json(row)) + b"\n")
            done += 1
    return done


def _count(table: str) -> sql.Composed:
    time = sql.Identifier(ORDERS[table][0])
    return sql.SQL("SELECT count(*) FROM {} WHERE {} >= %s AND {} < %s").format(sql.Identifier(table), time, time)


def _copy(table: str, columns: Mapping[str, str]) -> sql.Composed:
    """A month's rows as the files take them: moments in microseconds, arrays as JSON."""
    spelled = {
        "timestamp with time zone": "(extract(epoch FROM {}) * 1000000)::bigint",
        "text[]": "to_jsonb({})",
    }
    values = [sql.SQL(spelled.get(kind, "{}")).format(sql.Identifier(name)) for name, kind in columns.items()]
    order = [sql.Identifier(name) for name in ORDERS[table]]
    return sql.SQL(
        "COPY (SELECT {} FROM {} WHERE {} >= %s AND {} < %s ORDER BY {}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)"
    ).format(sql.SQL(", ").join(values), sql.Identifier(table), order[0], order[0], sql.SQL(", ").join(order))
