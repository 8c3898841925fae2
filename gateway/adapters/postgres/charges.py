"""Charges come hour by hour in one order, out of one snapshot, however many there are.

A day is summed and sorted at a time: the first rows come at once, and neither side holds more than a day of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from psycopg import sql
from psycopg.rows import tuple_row

from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.facts import bounds, next_month, parts
from gateway.adapters.postgres.sql import statement
from gateway.core.focus import BillingAccount, ChargeFact

FETCH_ROWS: Final = 1_000
DAY: Final = timedelta(days=1)
_DAYS: Final = """
    SELECT DISTINCT bucket FROM spend_rollup
    WHERE grain = 'day' AND bucket > %(start)s::timestamptz - interval '1 day' AND bucket < %(end)s ORDER BY bucket
"""
_ACCOUNT: Final = "SELECT organisation_id, name FROM organisation"
_CLOSING: Final = "SELECT closed_at, organisation_name, focus_sha256 FROM ledger_closings WHERE month = %s"


def is_month(start: datetime, end: datetime) -> bool:
    """Whether the period is one calendar month, in UTC."""
    begins = start.astimezone(UTC)
    return begins == begins.replace(day=1, hour=0, minute=0, second=0, microsecond=0) and end == next_month(begins)


async def charges(
    connections: Connections, start: datetime, end: datetime, *, team: str | None = None
) -> AsyncIterator[ChargeFact]:
    """Every charge of a period, of one team where it is named. Raises StoreUnavailableError."""
    query = sql.SQL(statement("charges").decode()).format(facts=sql.SQL(statement("facts").decode()))
    async with connections.transaction() as db:
        await db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        days = await (await db.execute(_DAYS, {"start": start, "end": end})).fetchall()
        for day in days:
            begins = day["bucket"].astimezone(UTC)
            covered = parts(max(start, begins), min(end, begins + DAY), coarsest="quarter")
            async for fact in _of_a_day(db, query, {"team": team, **bounds(covered)}):
                yield fact


async def _of_a_day(db: Connection, query: sql.Composed, asked: Mapping[str, Any]) -> AsyncIterator[ChargeFact]:
    async with db.cursor(name="charges", row_factory=tuple_row) as cursor:
        await cursor.execute(query, asked)
        while found := await cursor.fetchmany(FETCH_ROWS):
            for row in found:
                yield _fact(row)


def _fact(row: Sequence[Any]) -> ChargeFact:
    *dimensions, unit, tokens, pico, estimated, failed, requests, reasoning = row
    dimensions[4] = _tags(dimensions[4])
    unit_pico = None if unit is None else int(unit)
    measures = (unit_pico, tokens, int(pico), estimated or 0, int(failed or 0), requests, reasoning)
    return ChargeFact._make((*dimensions, *measures))


@lru_cache(maxsize=10_000)
def _tags(text: str) -> Mapping[str, str]:
    tags: Mapping[str, str] = json.loads(text)
    return tags


class Closing(NamedTuple):
    """When a month was closed, under which name, and what its FOCUS file was then."""

    closed_at: datetime
    organisation_name: str
    focus_sha256: bytes


async def closing_of(connections: Connections, month: datetime) -> Closing | None:
    """The closing of the month that begins then; None while it is open. Raises StoreUnavailableError."""
    async with connections.transaction() as db:
        row = await (await db.execute(_CLOSING, (month.astimezone(UTC).date(),))).fetchone()
    if row is None:
        return None
    return Closing(row["closed_at"], row["organisation_name"], bytes(row["focus_sha256"]))


async def billing_account(connections: Connections, start: datetime, end: datetime) -> BillingAccount:
    """The organisation: as it was called when the month was closed if that is the period, else as it is called now.
    Raises StoreUnavailableError."""
    async with connections.transaction() as db:
        row = await (await db.execute(_ACCOUNT)).fetchone()
    assert row is not None  # the migration makes it, and it is the only one
    closing = await closing_of(connections, start) if is_month(start, end) else None
    return BillingAccount(row["organisation_id"], row["name"] if closing is None else closing.organisation_name)
