"""The ledger and its sums as finance sees them: exact, in a fixed order, streamed where they may be long.

Sums come from the roll-ups of months, days and quarter hours, which are kept in the ledger's own transaction (law L5),
and from the ledger itself for the ragged ends of a period that does not begin or end on a quarter hour.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from psycopg import sql
from psycopg.rows import tuple_row

from gateway.adapters.postgres.archived import Archive, ArchivedMonths, ragged
from gateway.adapters.postgres.charges import Closing, billing_account, charges, closing_of
from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.facts import Grain, bounds, parts
from gateway.adapters.postgres.past import past, past_rows
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import ledger_row_json, moment_text
from gateway.core.focus import BillingAccount, ChargeFact
from gateway.core.money import decimal_text
from gateway.core.shadow import PastRequest
from gateway.replay.rows import Row

FETCH_ROWS: Final = 1_000
TOKENS: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
COUNTS: Final = ("requests", "attempts")
AMOUNTS: Final = ("cost", "estimated_cost")
MEASURES: Final = (*COUNTS, *TOKENS, *AMOUNTS)

_GROUPS: Final = {
    "key": (("key", "key_name"), ("key_id", "key_id")),
    "team": (("team", "team"),),
    "model": (("model", "model"),),
    "provider": (("provider", "provider"),),
    "account": (("provider", "provider"), ("account", "account")),
}
_TIMES: Final = {"month": "YYYY-MM", "day": "YYYY-MM-DD", "hour": 'YYYY-MM-DD"T"HH24:00'}
_TAG: Final = re.compile(r"tag:(.{1,64})", re.DOTALL)
_LINES: Final = (
    ("input", "input_pico"),
    ("cached_input", "cached_pico"),
    ("cache_write", "cache_write_pico"),
    ("output", "output_pico"),
)


class Reports:
    """Implements the MoneyReports port."""

    def __init__(self, database_url: str, archive: Archive | None = None) -> None:
        """``archive`` has the months that are not in the database any more."""
        self._connections = Connections(database_url, connections_max=3)
        self._archived = ArchivedMonths(archive)

    def columns(self, group_by: Sequence[str]) -> list[str]:
        return [name for name, _ in _columns(group_by)[0]]

    async def spend(
        self, start: datetime, end: datetime, *, group_by: Sequence[str], timezone: str, team: str | None = None
    ) -> dict[str, object]:
        zone = _zone(timezone)
        columns, tags = _columns(group_by)
        coarsest: Grain = "quarter" if not {"hour", "day", "month"}.isdisjoint(group_by) else "month"
        covered = parts(start, end, coarsest=coarsest)
        asked = {"tz": timezone, "team": team, **bounds(covered), **tags}
        query = sql.SQL(statement("spend").decode()).format(
            facts=sql.SQL(statement("facts").decode()),
            groups=sql.SQL(", ").join([*(expression for _, expression in columns), sql.SQL("true")]),
            order=sql.SQL(", ").join(sql.SQL(str(number + 1)) for number in range(len(columns) + 1)),
        )
        async with self._connections.transaction() as db:
            await self._archived.bring(db, ragged(covered))
            cursor = db.cursor(row_factory=tuple_row)
            found = await (await cursor.execute(query, asked)).fetchall()
        names = [name for name, _ in columns]
        rows = [_spend_row(dict(zip(names, values, strict=False)), values[len(names) + 1 :]) for values in found]
        sums = [values[len(names) + 1 :] for values in found]
        return {
            "from": _in_zone(start, zone),
            "to": _in_zone(end, zone),
            "rows": rows,
            "total": _spend_row(
                {}, [sum(map(int, column)) for column in zip(*sums, strict=True)] or [0] * len(MEASURES)
            ),
        }

    async def ledger(
        self, start: datetime, end: datetime, *, team: str | None = None
    ) -> AsyncIterator[dict[str, object]]:
        for part in await self._archived.slices(self._connections, start, end):
            async with self._connections.transaction() as db, db.cursor(name="ledger") as cursor:
                await self._archived.bring(db, [part])
                cursor.itersize = FETCH_ROWS
                await cursor.execute(statement("ledger"), {"start": part.begins, "end": part.ends, "team": team})
                async for row in cursor:
                    yield ledger_row_json(row)

    async def explain(self, request_id: str, *, team: str | None = None) -> dict[str, object] | None:
        asked = {"request_id": request_id, "team": team}
        async with self._connections.transaction() as db:
            await self._archived.bring_having(db, "request_id", request_id, tables=("ledger", "exchanges"))
            plan = await (await db.execute(statement("explain_plan"), asked)).fetchone()
            rows = await (await db.execute(statement("explain_attempts"), asked)).fetchall()
        if plan is None and not rows:
            return None
        planned = {} if plan is None else json.loads(plan["plan"], parse_float=Decimal)
        attempts = [
            {**ledger_row_json(row), "flags": row["flags"], "correction": _correction(row), "lines": _lines(row)}
            for row in rows
        ]
        return {
            "request_id": request_id,
            "model": planned.get("model"),
            "input_tokens_estimate": planned.get("input_tokens_estimate"),
            "policy": planned.get("policy", "expected_cost"),
            "turn": planned.get("turn"),
            "candidates": planned.get("candidates", []),
            "attempts": attempts,
            "cost": decimal_text(sum(row["cost_pico"] for row in rows)),
        }

    def charges(self, start: datetime, end: datetime, *, team: str | None = None) -> AsyncIterator[ChargeFact]:
        return charges(self._connections, self._archived, start, end, team=team)

    async def billing_account(self, start: datetime, end: datetime) -> BillingAccount:
        return await billing_account(self._connections, start, end)

    async def closing(self, month: datetime) -> Closing | None:
        """How the month that begins then was closed; None while it is open. Raises StoreUnavailableError."""
        return await closing_of(self._connections, month)

    async def find_upstream(self, upstream_request_id: str, start: datetime, end: datetime) -> str | None:
        """The request of a period behind a provider's own id; None where there is none."""
        asked = {"upstream": upstream_request_id, "start": start, "end": end}
        async with self._connections.transaction() as db:
            await self._archived.bring_having(db, "upstream_request_id", upstream_request_id)
            row = await (await db.execute(statement("find_upstream"), asked)).fetchone()
        return None if row is None else row["request_id"]

    def past(
        self, start: datetime, end: datetime, *, model: str | None = None, team: str | None = None
    ) -> AsyncGenerator[PastRequest, None]:
        return past(self._connections, self._archived, start, end, model=model, team=team)

    def past_rows(self, start: datetime, end: datetime, *, model: str | None = None) -> AsyncIterator[Row]:
        """The past as rows to replay. Raises StoreUnavailableError."""
        return past_rows(self._connections, self._archived, start, end, model=model)

    async def journal_offsets(self) -> dict[str, tuple[int, int]]:
        """How far each journal has been shipped: segment and byte offset by journal id."""
        async with self._connections.transaction() as db:
            found = await db.execute("SELECT journal_id, segment, byte_offset FROM journal_offsets")
            rows = await found.fetchall()
        return {row["journal_id"]: (row["segment"], row["byte_offset"]) for row in rows}

    async def close(self) -> None:
        await self._connections.close()


def _columns(group_by: Sequence[str]) -> tuple[list[tuple[str, sql.Composable]], dict[str, str]]:
    """Name and expression of each group column, and the parameters of those. Raises ValueError for a group that does
    not exist."""
    columns: dict[str, sql.Composable] = {}
    tags: dict[str, str] = {}
    for group in group_by:
        tag = _TAG.fullmatch(group)
        if group in _GROUPS:
            columns.update((name, sql.Identifier(column)) for name, column in _GROUPS[group])
        elif group in _TIMES:
            pattern = sql.Literal(_TIMES[group])
            columns[group] = sql.SQL("to_char(at AT TIME ZONE %(tz)s, {})").format(pattern)
        elif tag is not None and "\0" not in group:
            parameter = f"tag_{len(tags)}"  # a parameter: a name may hold anything, also what psycopg would expand
            tags[parameter] = tag[1]
            columns[group] = sql.SQL("tags ->> {}::text").format(sql.Placeholder(parameter))
        else:
            known = ", ".join((*_GROUPS, *_TIMES, "tag:NAME"))
            raise ValueError(f"{group!r} is not something to group by; choose from {known}")
    return list(columns.items()), tags


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone such as Europe/Berlin") from None


def _in_zone(moment: datetime, zone: ZoneInfo) -> str:
    """A moment as it is called in the zone; one at the very edge of time has no other name than that in UTC."""
    try:
        return moment_text(moment) if zone.key == "UTC" else moment.astimezone(zone).isoformat()
    except OverflowError:
        return moment_text(moment)


def _spend_row(groups: dict[str, object], sums: Sequence[Any]) -> dict[str, object]:
    """A row of the report: its groups, then the measures; amounts are exact decimal strings."""
    measures = zip(MEASURES, sums, strict=True)
    return groups | {name: decimal_text(int(value)) if name in AMOUNTS else int(value) for name, value in measures}


def _correction(row: dict[str, Any]) -> dict[str, object] | None:
    """Who has corrected, why and when; ``restates`` is when that happened which a row of a later month puts right."""
    if row["correction_id"] is None:
        return None
    restates = row["restates"]
    return {
        "correction_id": row["correction_id"],
        "kind": row["correction_kind"],
        "actor": row["correction_actor"],
        "reason": row["correction_reason"],
        "made_at": moment_text(row["correction_made_at"]),
        "restates": None if restates is None else moment_text(restates),
    }


def _lines(row: dict[str, Any]) -> list[dict[str, object]]:
    """The token classes of one attempt at their unit prices, which add up to its cost; a class that is nothing has no
    line, and one that a correction changed by an amount alone has no unit price."""
    uncached = row["input_tokens"] - (row["cached_tokens"] or 0) - row["cache_write_tokens"]
    tokens = (uncached, row["cached_tokens"] or 0, row["cache_write_tokens"], row["output_tokens"])
    lines: list[dict[str, object]] = []
    for (name, column), count in zip(_LINES, tokens, strict=True):
        if row["usage_source"] == "none" or not (count or row[column]):
            continue
        pico_per_token, rest = divmod(row[column], count) if count else (0, row[column])
        price = None if rest else decimal_text(pico_per_token, decimals=6)
        lines.append({"class": name, "tokens": count, "usd_per_million": price, "cost": decimal_text(row[column])})
    if row["fee_pico"]:
        lines.append({"class": "fee", "tokens": 0, "usd_per_million": "0", "cost": decimal_text(row["fee_pico"])})
    return lines
