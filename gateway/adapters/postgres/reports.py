"""The ledger and its sums as finance sees them: exact, in a fixed order, streamed where they may be long.

Sums come from the roll-ups of months, days and quarter hours, which are kept in the ledger's own transaction (law L5),
and from the ledger itself for the ragged ends of a period that does not begin or end on a quarter hour.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, LiteralString, TypeVar

from msgspec.structs import replace
from psycopg.rows import AsyncRowFactory, dict_row, tuple_row

from gateway.adapters.postgres.archived import Archive, ArchivedMonths, Period
from gateway.adapters.postgres.charges import Closing, billing_account, charges, closing_of
from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.past import past, past_rows
from gateway.adapters.postgres.selecting import Question, ledger_question, spend_question
from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import ledger_row_json, moment_text
from gateway.core.focus import BillingAccount, ChargeFact
from gateway.core.money import decimal_text
from gateway.core.shadow import PastRequest
from gateway.core.spend import Selection, SpendQuery, SpendRow, selected_times
from gateway.replay.rows import Row

R = TypeVar("R")
FETCH_ROWS: Final = 1_000
_SUMMING: Final = """
    SELECT set_config('work_mem', '64MB', true), set_config('cursor_tuple_fraction', '1', true),
        set_config('jit', 'off', true), set_config('statement_timeout', '5min', true)
"""
"""Sums are made in memory, for all rows and not for the first ones soonest, and not compiled first, which would take
longer than they do. A year by hour and key is put in order for minutes before its first row comes."""
_STREAMING: Final = "SELECT set_config('jit', 'off', true), set_config('statement_timeout', '5min', true)"
"""Rows come in the order of an index from the first on; all of a month's would not fit into memory to be sorted."""

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

    async def spend(self, query: SpendQuery) -> AsyncIterator[SpendRow]:
        columns = len(query.columns)

        async def question(db: Connection) -> Question:
            asked = await spend_question(db, query)
            ends = map(Period, asked.parameters["row_begins"], asked.parameters["row_ends"])
            await self._archived.bring(db, list(ends))
            return asked

        async with aclosing(self._answered(question, tuple_row, _SUMMING)) as rows:
            async for row in rows:
                yield SpendRow(row[:columns], tuple(map(int, row[columns:])))

    async def ledger(self, selection: Selection) -> AsyncIterator[dict[str, object]]:
        for part in await self._archived.slices(self._connections, *selected_times(selection)):

            async def question(db: Connection, part: Period = part) -> Question:
                await self._archived.bring(db, [part])
                return await ledger_question(replace(selection, start=part.begins, end=part.ends))

            async with aclosing(self._answered(question, dict_row, _STREAMING)) as rows:
                async for row in rows:
                    yield ledger_row_json(row)

    async def _answered(
        self, question: Callable[[Connection], Awaitable[Question]], form: AsyncRowFactory[R], settings: LiteralString
    ) -> AsyncGenerator[R, None]:
        """The rows of an answer, so many at a time out of one snapshot. The connection is given back before the last of
        them are handed out, so that whoever reads a short answer slowly keeps nobody waiting."""
        async with self._connections.transaction() as db:
            await db.execute(settings)
            asked = await question(db)
            async with db.cursor(name="answer", row_factory=form) as cursor:
                await cursor.execute(asked.statement, asked.parameters)
                while len(found := await cursor.fetchmany(FETCH_ROWS)) == FETCH_ROWS:
                    for row in found:
                        yield row
        for row in found:
            yield row

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
