"""A month is closed in one short transaction that keeps everybody from adding rows, after its exports were digested.

Digesting takes as long as reading a month; whether a row came meanwhile is told by counting them again. Who is killed
before that transaction has changed nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from psycopg import sql
from psycopg.types.json import Jsonb

from gateway.adapters.postgres.changes import Change, Store
from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.entries import HOLD_TO_CLOSE
from gateway.adapters.postgres.sql import statement
from gateway.core.closing import (
    Closing,
    DayDigest,
    MonthDigest,
    MonthState,
    NotClosedError,
    Unready,
    closed_already,
    month_end,
    month_text,
)
from gateway.core.corrections import UNATTRIBUTED
from gateway.core.grants import Administrator
from gateway.core.money import Money, decimal_text
from gateway.core.pricing import Price
from gateway.pipeline.ports import Clock

CONNECTIONS_MAX: Final = 2
TRIES_MAX: Final = 3
"""Rows that came while a month was digested are digested with it, so many times at the most."""

_COUNT: Final = "SELECT count(*) AS rows FROM ledger WHERE started_at >= %s AND started_at < %s"
_NAME: Final = "SELECT name FROM organisation"
_ENSURE_MONTH: Final = "SELECT ensure_month(%s)"

Digest = Callable[[], Awaitable[tuple[MonthDigest, Money]]]
"""Digests both exports of a month; answers what its charges come to besides."""


class PostgresClosings(Store):
    """Months, how they were closed, and whether they still are what they were."""

    def __init__(self, database_url: str, *, clock: Clock) -> None:
        super().__init__(Connections(database_url, connections_max=CONNECTIONS_MAX), clock=clock)

    async def months(self) -> list[MonthState]:
        """Every month of the books, in order. Raises StoreUnavailableError."""
        async with self._connections.transaction() as db:
            return await _months(db, None)

    async def month(self, month: datetime) -> MonthState | None:
        """One of them; None where nothing counts in it. Raises StoreUnavailableError."""
        async with self._connections.transaction() as db:
            return await _month(db, month)

    async def unready(self, month: datetime, *, unshipped: int, left_behind: int) -> Unready:
        """What stands in the way of closing a month, with what the caller knows of its machine's journals. Raises
        StoreUnavailableError."""
        async with self._connections.transaction() as db:
            return await _unready(db, month, unshipped=unshipped, left_behind=left_behind)

    async def close_month(self, month: datetime, digest: Digest, *, reason: str, by: Administrator) -> Closing:
        """Closes a month with what ``digest`` says of its exports. Raises NotClosedError, StoreUnavailableError."""
        for _ in range(TRIES_MAX):
            async with self._connections.transaction() as db:
                name = await _organisation_name(db)
            found, charged = await digest()
            async with self._change(by) as change:
                await change.db.execute(HOLD_TO_CLOSE)
                await _refuse_out_of_order(change.db, month)
                count = await (await change.db.execute(_COUNT, (month, month_end(month)))).fetchone()
                assert count is not None
                if (count["rows"], await _organisation_name(change.db)) == (found.rows, name):
                    if charged != found.cost:
                        told = (
                            f"Rows come to {found.cost} USD and the roll-ups to {charged}. Run: gateway ledger verify"
                        )
                        raise NotClosedError([told])
                    return await _close(change, month, found, reason=reason, name=name)
        raise NotClosedError([f"Rows keep arriving in {month_text(month)}. Wait until its journals are shipped."])

    async def sums_differ(self, month: datetime, *, is_archived: bool) -> str | None:
        """The first roll-up that is not the sum of its rows, in words."""
        row = await self._first("verify_grains" if is_archived else "verify_sums", month, {})
        if row is None:
            return None
        return (
            f"the {row['grain']} of {row['bucket'].astimezone(UTC):%Y-%m-%dT%H:%MZ}, {row['key_name']}: rows come to "
            f"{row['attempts']} attempts and {decimal_text(int(row['cost_pico']))} USD, the roll-up says "
            f"{row['kept_attempts']} and {decimal_text(int(row['kept_pico']))} USD"
        )

    async def prices_differ(self, month: datetime, prices: Sequence[Price]) -> str | None:
        """The first row that does not cost its tokens times its price, in words; rows whose price nobody knows any more
        are compared with each other."""
        ids = [price.price_id for price in prices]
        row = await self._first("verify_prices", month, {"price_ids": ids, **_units(prices)})
        if row is not None:
            cost = decimal_text(int(row["cost_pico"]))
            return f"{row['attempt_id']} costs {cost} USD, which is not its tokens at {row['price_id']}"
        row = await self._first("verify_units", month, {"price_ids": ids})
        return None if row is None else f"tokens of {row['class']} at {row['price_id']} did not all cost the same"

    async def corrections_differ(self, month: datetime) -> str | None:
        """The first correction of nothing, or without a reason, in words."""
        row = await self._first("verify_corrections", month, {"unattributed": UNATTRIBUTED})
        if row is None:
            return None
        return f"{row['attempt_id']} corrects {row['corrects']} in {row['correction_id']}, and one of these is missing"

    async def close(self) -> None:
        await self._connections.close()

    async def _first(self, name: str, month: datetime, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
        async with self._connections.transaction() as db:
            await db.execute("SET LOCAL statement_timeout = 0")  # as long as it takes to read a month
            bounds = {"start": month, "end": month_end(month)}
            return await (await db.execute(statement(name), {**bounds, **asked})).fetchone()


async def _close(change: Change, month: datetime, found: MonthDigest, *, reason: str, name: str) -> Closing:
    """Writes the closing, and makes the month refuse rows; the one after it is there to take them."""
    closing = Closing(
        month=month,
        closed_at=change.now,
        closed_by=change.by.actor,
        reason=reason,
        organisation_name=name,
        digest=found,
    )
    values = {
        "month": month.date(),
        "closed_at": closing.closed_at,
        "closed_by": closing.closed_by,
        "reason": reason,
        "organisation_name": name,
        "rows": found.rows,
        "cost_pico": found.cost.pico,
        "ledger_sha256": found.ledger_sha256,
        "focus_sha256": found.focus_sha256,
        "days": Jsonb(msgspec.to_builtins(found.days)),
    }
    for moment in (month, month_end(month)):
        await change.db.execute(_ENSURE_MONTH, (moment,))
    await change.db.execute(
        sql.SQL(
            "CREATE TRIGGER month_is_closed BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION refuse_closed_month()"
        ).format(sql.Identifier(f"ledger_{month:%Y_%m}"))
    )
    await change.db.execute(statement("close_month"), values)
    facts = {
        "reason": reason,
        "rows": found.rows,
        "cost": str(found.cost),
        "ledger_sha256": found.ledger_sha256.hex(),
        "focus_sha256": found.focus_sha256.hex(),
    }
    await change.record("ledger.close", month_text(month), before=None, after=facts)
    return closing


async def _refuse_out_of_order(db: Connection, month: datetime) -> None:
    """Raises NotClosedError for a month that is closed already, or that follows an open one."""
    state = await _month(db, month)
    if state is not None and state.closing is not None:
        raise closed_already(state.closing)
    later = await (await db.execute("SELECT closed_until() > %s AS is_passed", (month,))).fetchone()
    if later is not None and later["is_passed"]:
        raise NotClosedError([f"A later month than {month_text(month)} is closed, which closed everything before it."])
    before = (await _unready(db, month, unshipped=0, left_behind=0)).open_before
    if before is not None:
        raise NotClosedError([f"{month_text(before)} has rows and is open. Close it first."])


async def _organisation_name(db: Connection) -> str:
    row = await (await db.execute(_NAME)).fetchone()
    assert row is not None  # the migration makes it, and it is the only one
    return str(row["name"])


async def _unready(db: Connection, month: datetime, *, unshipped: int, left_behind: int) -> Unready:
    row = await (await db.execute(statement("unready"), {"month": month})).fetchone()
    assert row is not None
    return Unready(
        open_before=row["open_before"],
        dead_letters=row["dead_letters"],
        unshipped=unshipped,
        left_behind=left_behind,
        absent=list(zip(row["absent"], row["absent_since"], strict=True)),
    )


async def _month(db: Connection, month: datetime) -> MonthState | None:
    found = await _months(db, month)
    return found[0] if found else None


async def _months(db: Connection, month: datetime | None) -> list[MonthState]:
    asked = {"month": None if month is None else month.date()}
    rows = await (await db.execute(statement("months"), asked)).fetchall()
    return [_state(row) for row in rows]


def _state(row: Mapping[str, Any]) -> MonthState:
    month = row["month"].astimezone(UTC)
    return MonthState(
        month=month,
        rows=row["rows"],
        cost=Money(int(row["cost_pico"])),
        estimated=Money(int(row["estimated_pico"])),
        restated=Money(int(row["restated_pico"])),
        closing=None if row["closed_at"] is None else _closing(month, row),
    )


def _closing(month: datetime, row: Mapping[str, Any]) -> Closing:
    return Closing(
        month=month,
        closed_at=row["closed_at"],
        closed_by=row["closed_by"],
        reason=row["reason"],
        organisation_name=row["organisation_name"],
        digest=MonthDigest(
            rows=row["rows"],
            cost=Money(int(row["closed_pico"])),
            ledger_sha256=bytes(row["ledger_sha256"]),
            focus_sha256=bytes(row["focus_sha256"]),
            days=msgspec.convert(row["days"], dict[str, DayDigest]),
        ),
        archived_at=row["archived_at"],
        archive=row["archive"],
    )


def _units(prices: Sequence[Price]) -> dict[str, Any]:
    """What a token of each class costs by each row, as ``verify_prices.sql`` names it; what is written to a cache by
    any of its lifetimes, or like other input."""
    writes = [{price.input, *(price.cache_write or {}).values()} for price in prices]
    return {
        "inputs": [price.usual_units.uncached for price in prices],
        "cached": [price.usual_units.cached for price in prices],
        "outputs": [price.usual_units.output for price in prices],
        "writes": [msgspec.json.encode(sorted(unit.pico_per_token for unit in units)).decode() for units in writes],
    }
