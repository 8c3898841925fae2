"""The past is read from the ledger in order of time, a few rows at a time, and is the same whenever it is read again.

A request belongs to the period in which its first attempt started. What was cut off by a crash has been settled by
recovery and is here as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from gateway.adapters.postgres.archived import ArchivedMonths, Period, later
from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.prompts import unpacked
from gateway.adapters.postgres.sql import statement
from gateway.core.money import Money
from gateway.core.prefix import Prompt
from gateway.core.shadow import PastRequest, brought_to
from gateway.replay.rows import Row, Served

FETCH_ROWS: Final = 500
REQUEST_LASTS_MAX: Final = timedelta(days=1)
"""So long after its first attempt a request may have others, as ``sql/past.sql`` has it."""


async def past(
    connections: Connections,
    archived: ArchivedMonths,
    start: datetime,
    end: datetime,
    *,
    model: str | None = None,
    team: str | None = None,
) -> AsyncGenerator[PastRequest, None]:
    """Every request of a period, of one model or team where they are named. Raises StoreUnavailableError."""
    for begins, ends in await archived.slices(connections, start, end, step=REQUEST_LASTS_MAX):
        async with connections.transaction() as db, db.cursor(name="past") as cursor:
            await archived.bring(db, [Period(begins, later(ends, REQUEST_LASTS_MAX))], around=REQUEST_LASTS_MAX)
            cursor.itersize = FETCH_ROWS
            await cursor.execute(statement("past"), {"start": begins, "end": ends, "model": model, "team": team})
            async for row in cursor:
                yield _request(row)


async def past_rows(
    connections: Connections, archived: ArchivedMonths, start: datetime, end: datetime, *, model: str | None = None
) -> AsyncIterator[Row]:
    """The same as rows to replay: those whose prefixes are on record and whose prompt was read."""
    async with aclosing(past(connections, archived, start, end, model=model)) as requests:
        async for request in requests:
            if request.prompt is not None and request.is_read and request.input_tokens > 0:
                yield _row(request, request.prompt)


def _row(request: PastRequest, prompt: Prompt) -> Row:
    tokens = brought_to(prompt, request.input_tokens)
    return Row(
        at=request.at.timestamp(),
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prompt=msgspec.structs.replace(prompt, tokens=tokens, anchored_tokens=request.input_tokens),
        tenant=request.tenant,
        model=request.model,
        served=Served(request.provider, request.account, request.cached_tokens, request.cost),
    )


def _request(row: Mapping[str, Any]) -> PastRequest:
    return PastRequest(
        request_id=row["request_id"],
        at=row["started_at"],
        model=row["model"],
        tenant=row["tenant"],
        turn=row["turn"],
        prompt=unpacked(row["prompt"]),
        provider=row["provider"],
        account=row["account"],
        price_id=row["price_id"],
        input_tokens=row["input_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        is_read=row["usage_source"] != "none",
        is_told=row["usage_source"] == "provider",
        cost=Money(int(row["cost_pico"])),
        failed_cost=Money(int(row["failed_pico"])),
        final_cost=Money(row["final_pico"]),
    )
