"""The past is read from the ledger in order of time, a few rows at a time, and is the same whenever it is read again.

A request belongs to the period in which its first attempt started. What was cut off by a crash has been settled by
recovery and is here as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.prompts import unpacked
from gateway.adapters.postgres.sql import statement
from gateway.core.money import Money
from gateway.core.shadow import PastRequest

FETCH_ROWS: Final = 500


async def past(
    connections: Connections, start: datetime, end: datetime, *, model: str | None = None, team: str | None = None
) -> AsyncIterator[PastRequest]:
    """Every request of a period, of one model or team where they are named. Raises StoreUnavailableError."""
    async with connections.transaction() as db, db.cursor(name="past") as cursor:
        cursor.itersize = FETCH_ROWS
        await cursor.execute(statement("past"), {"start": start, "end": end, "model": model, "team": team})
        async for row in cursor:
            yield _request(row)


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
