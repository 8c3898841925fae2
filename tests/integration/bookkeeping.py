"""What the tests of corrections and closings share: entries taken the whole way, and questions in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.corrections import PostgresCorrections
from gateway.adapters.postgres.shipper import Shipper
from gateway.core.corrections import CorrectionBatch, InForce
from gateway.core.ledger import LedgerEntry
from gateway.core.usage import Usage
from tests.integration.samples import entry

T = TypeVar("T")
OCTOBER: Final = datetime(2025, 10, 20, 12, 0, tzinfo=UTC)
NOVEMBER: Final = datetime(2025, 11, 1, tzinfo=UTC)
DECEMBER: Final = datetime(2025, 12, 1, tzinfo=UTC)
ALL: Final = (datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))

SUMS_DIFFER: Final = """
WITH measures AS (
    SELECT
        grain.name AS grain, grain.bucket, key_id, price_id, sum((is_final AND corrects IS NULL)::int) AS requests,
        sum((corrects IS NULL)::int) AS attempts, sum(input_tokens) AS input_tokens,
        sum(coalesce(cached_tokens, 0)) AS cached_tokens, sum(output_tokens) AS output_tokens,
        sum(fee_pico) AS fee_pico, sum(cost_pico) AS cost_pico,
        sum(cost_pico * (restates IS NOT NULL)::int) AS restated_pico,
        sum(cost_pico * (usage_source = 'estimated')::int) AS estimated_pico
    FROM ledger CROSS JOIN LATERAL (VALUES
        ('quarter', date_bin('15 minutes', started_at, 'epoch')), ('day', date_trunc('day', started_at, 'UTC')),
        ('month', date_trunc('month', started_at, 'UTC'))
    ) AS grain (name, bucket)
    GROUP BY 1, 2, 3, 4
),
rolled_up AS (
    SELECT
        grain, bucket, key_id, price_id, sum(requests), sum(attempts), sum(input_tokens), sum(cached_tokens),
        sum(output_tokens), sum(fee_pico), sum(cost_pico), sum(restated_pico), sum(estimated_pico)
    FROM spend_rollup JOIN spend_groups USING (group_id)
    GROUP BY 1, 2, 3, 4
)
SELECT * FROM ((TABLE measures EXCEPT TABLE rolled_up) UNION ALL (TABLE rolled_up EXCEPT TABLE measures)) AS differing
"""
"""Roll-ups that are not the sums of the rows; none must ever be found."""


def ship(url: str, data_dir: Path, *entries: LedgerEntry, journal_id: str = "j1") -> None:
    """Takes entries the whole way, in a journal of their own that is dead by then."""

    async def scenario() -> None:
        writer = JournalWriter.open(data_dir, journal_id)
        for each in entries:
            writer.append(each)
        writer.close()
        shipper = Shipper(url, Outbox(data_dir), clock=SystemClock(), chance=lambda: 0.5)
        await shipper.ship()
        await shipper.close()

    asyncio.run(scenario())


def correct(url: str, question: Callable[[PostgresCorrections], Awaitable[T]]) -> T:
    async def scenario() -> T:
        store = PostgresCorrections(url, clock=SystemClock())
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(scenario())


def in_force(url: str, start: datetime, end: datetime, **which: Any) -> dict[str, InForce]:
    async def collected(store: PostgresCorrections) -> dict[str, InForce]:
        return {now.attempt_id: now async for now in store.in_force(start, end, **which)}

    return correct(url, collected)


def batch(name: str = "cor_1", **changes: Any) -> CorrectionBatch:
    return CorrectionBatch(
        **{"correction_id": name, "kind": "restatement", "reason": "as billed", "facts": {}, **changes}
    )


def october(number: int, **changes: Any) -> LedgerEntry:
    """An attempt of October 2025."""
    return entry(number, started_at=OCTOBER + timedelta(seconds=number), **changes)


def closed(db: psycopg.Connection, month: str = "2025-10-01") -> None:
    """A month is closed in the database, as if its exports had been looked at."""
    db.execute(
        """
        INSERT INTO ledger_closings (
            month, closed_at, closed_by, reason, organisation_name, rows, cost_pico, ledger_sha256, focus_sha256
        )
        VALUES (%s, now(), 'cli', 'test', 'organisation', 0, 0, sha256(''), sha256(''))
        """,
        [month],
    )
    db.execute("SELECT ensure_month(closed_until())")


def more_output(now: InForce, tokens: int = 100) -> Usage:
    """What the row in force says, and so many output tokens more."""
    row = now.entry
    return Usage.from_wire(
        prompt=row.input_tokens, completion=row.output_tokens + tokens, cached=row.cached_tokens, reasoning=None
    )
