"""Corrections are written where entries always are, under a batch that says who and why; none is written twice.

A batch may be long: it is committed in parts, each whole attempts, and what was cut off is found again by asking what
is in force. An attempt that somebody else has corrected since it was read is refused, never corrected by both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from gateway.adapters.postgres.changes import Change, Store
from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.entries import HOLD_OPEN, add_entries
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import LEDGER_COLUMNS
from gateway.core.corrections import (
    ArchivedError,
    CorrectedMeanwhileError,
    CorrectionBatch,
    InForce,
    correction_place,
    placed,
)
from gateway.core.grants import Administrator
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money
from gateway.core.pricing import PriceTable
from gateway.pipeline.ports import Clock

CONNECTIONS_MAX: Final = 3
FETCH_ROWS: Final = 1_000
CHUNK_ENTRIES: Final = 1_000
"""At least so many entries are committed at once, if there are as many."""
_INSTANT: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(days=1)
_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)

_CLOSED_UNTIL: Final = "SELECT nullif(closed_until(), '-infinity') AS closed_until"
_ARCHIVED_UNTIL: Final = "SELECT nullif(archived_until(), '-infinity') AS until"
_DAYS: Final = """
SELECT bucket AS day FROM spend_rollup
WHERE grain = 'day' AND bucket > %(start)s::timestamptz - interval '1 day' AND bucket < %(end)s
UNION
SELECT date_trunc('day', started_at, 'UTC') FROM late_attempts WHERE started_at >= %(start)s AND started_at < %(end)s
ORDER BY day
"""
_HAPPENED: Final = """
SELECT coalesce(restates, started_at) AS at FROM {rows} AS l WHERE attempt_id = %s AND corrects IS NULL
"""
_WRITTEN: Final = """
SELECT corrects, attempt_id, correction_id FROM ledger WHERE corrects = ANY (%s)
"""
_BATCH: Final = """
INSERT INTO corrections (correction_id, kind, actor, reason, made_at, facts) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""
_LEDGER: Final = sql.SQL("ledger")


class PostgresCorrections(Store):
    """What is in force, and batches that change it."""

    def __init__(self, database_url: str, *, clock: Clock) -> None:
        super().__init__(Connections(database_url, connections_max=CONNECTIONS_MAX), clock=clock)

    async def closed_until(self) -> datetime | None:
        """The end of the last closed month. Raises StoreUnavailableError."""
        async with self._connections.transaction() as db:
            return await _closed_until(db)

    async def refuse_archived(self, start: datetime) -> None:
        """Raises ArchivedError for a period that begins in an archived month: its rows are not here to be corrected."""
        async with self._connections.transaction() as db:
            row = await (await db.execute(_ARCHIVED_UNTIL)).fetchone()
        if row is not None and row["until"] is not None and start < row["until"]:
            raise ArchivedError(row["until"])

    async def attempt(self, attempt_id: str) -> InForce | None:
        """One attempt as it counts now. Raises StoreUnavailableError."""
        async with self._connections.transaction() as db:
            happened = sql.SQL(_HAPPENED).format(rows=_LEDGER)
            found = await (await db.execute(happened, (attempt_id,))).fetchone()
        if found is None:
            return None
        async with aclosing(self.in_force(found["at"], found["at"] + _INSTANT, attempt_id=attempt_id)) as only:
            return await anext(only, None)

    async def in_force_by_day(
        self, start: datetime, end: datetime, *, but_priced_by: PriceTable, **which: str | None
    ) -> AsyncGenerator[InForce, None]:
        """The same day after day, each out of a snapshot of its own: whoever corrects meanwhile a whole month would
        hold off the cleaning of the roll-ups that this rewrites, and become slower and slower."""
        async with self._connections.transaction() as db:
            rows = await (await db.execute(_DAYS, {"start": start, "end": end})).fetchall()
        for row in rows:
            day = row["day"].astimezone(UTC)
            begins, ends = max(start, day), min(end, day + _DAY)
            async with aclosing(self.in_force(begins, ends, but_priced_by=but_priced_by, **which)) as found:
                async for now in found:
                    yield now

    async def in_force(
        self,
        start: datetime,
        end: datetime,
        *,
        provider: str | None = None,
        account: str | None = None,
        model: str | None = None,
        attempt_id: str | None = None,
        but_priced_by: PriceTable | None = None,
    ) -> AsyncGenerator[InForce, None]:
        """Attempts that happened in a period as they count now, in no particular order; with ``but_priced_by`` only
        those that were metered and whose price is not that table's. Raises StoreUnavailableError."""
        which = {"provider": provider, "account": account, "model": model, "attempt_id": attempt_id}
        asked = {"start": start, "end": end, **which, **_spans(but_priced_by)}
        query = sql.SQL(statement("in_force").decode()).format(
            rows=_LEDGER, columns=sql.SQL(", ").join(map(sql.Identifier, LEDGER_COLUMNS))
        )
        async with self._connections.transaction() as db, db.cursor(name="in_force") as cursor:
            cursor.itersize = FETCH_ROWS
            await cursor.execute(query, asked)
            async for row in cursor:
                yield _in_force(row)

    async def write(self, batch: CorrectionBatch, entries: Sequence[LedgerEntry], *, by: Administrator) -> int:
        """How many of the entries were new; every one of them counts where months are open now. May be called again
        for more of the same batch. Raises CorrectedMeanwhileError, StoreUnavailableError."""
        added = 0
        for chunk in _chunks(entries):
            async with self._change(by) as change:
                added += await _write(change, batch, chunk)
        return added

    async def close(self) -> None:
        await self._connections.close()


async def _write(change: Change, batch: CorrectionBatch, entries: Sequence[LedgerEntry]) -> int:
    """One part of a batch; the lock of changes keeps every other correction out meanwhile."""
    db = change.db
    await db.execute(statement("session"))
    await db.execute(HOLD_OPEN)
    closed_until = await _closed_until(db)
    new = [placed(entry, closed_until) for entry in await _not_written(db, entries)]
    if not new:
        return 0
    values = (batch.correction_id, batch.kind, change.by.actor, batch.reason, change.now, Jsonb(batch.facts))
    if (await db.execute(_BATCH, values)).rowcount:
        facts = {"kind": batch.kind, "reason": batch.reason, **batch.facts}
        await change.record("ledger.correct", batch.correction_id, before=None, after=facts)
    for moment in {(each.started_at.year, each.started_at.month): each.started_at for each in new}.values():
        await db.execute("SELECT ensure_month(%s)", (moment,))
    async with db.cursor(row_factory=tuple_row) as cursor:
        added = await add_entries(cursor, new, batch.correction_id)
    assert added == len(new), "what was not written before is new"
    return added


async def _not_written(db: Connection, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """Those that are not there yet. Raises CorrectedMeanwhileError for one whose number somebody else has taken."""
    rows = await (await db.execute(_WRITTEN, ([entry.corrects for entry in entries],))).fetchall()
    written = {row["attempt_id"]: row["correction_id"] for row in rows}
    last: dict[str, int] = {}
    for row in rows:
        place = correction_place(row["attempt_id"])
        if place is not None:
            last[row["corrects"]] = max(place[0], last.get(row["corrects"], 0))
    new = []
    for entry in entries:
        place = correction_place(entry.attempt_id)
        assert entry.corrects is not None and place is not None
        if written.get(entry.attempt_id) == entry.correction_id:
            continue
        if place[0] <= last.get(entry.corrects, 0):
            raise CorrectedMeanwhileError(entry.corrects)
        new.append(entry)
    return new


async def _closed_until(db: Connection) -> datetime | None:
    row = await (await db.execute(_CLOSED_UNTIL)).fetchone()
    assert row is not None
    moment: datetime | None = row["closed_until"]
    return moment


def _chunks(entries: Sequence[LedgerEntry]) -> Iterator[Sequence[LedgerEntry]]:
    """Parts that no attempt is divided between."""
    begin = 0
    for number in range(1, len(entries) + 1):
        is_end = number == len(entries)
        if is_end or (number - begin >= CHUNK_ENTRIES and entries[number].corrects != entries[number - 1].corrects):
            yield entries[begin:number]
            begin = number


def _spans(prices: PriceTable | None) -> dict[str, Any]:
    """From when until when each row of a table holds, as ``in_force.sql`` names it."""
    if prices is None:
        return {"price_ids": None, "price_begins": None, "price_ends": None}
    rows = prices.rows()
    ends = [
        following.effective_from
        if following is not None and (following.provider, following.model) == (row.provider, row.model)
        else _END_OF_TIME
        for row, following in zip(rows, [*rows[1:], None], strict=False)
    ]
    return {
        "price_ids": [row.price_id for row in rows],
        "price_begins": [row.effective_from for row in rows],
        "price_ends": ends,
    }


def _in_force(row: Mapping[str, Any]) -> InForce:
    return InForce(
        entry=LedgerEntry(**{name: row[name] for name in LEDGER_COLUMNS}),
        original_started_at=row["original_started_at"],
        adjusted=Money(row["adjusted_pico"]),
        revision=row["revision"],
    )
