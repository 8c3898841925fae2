"""Entries become ledger rows in one way, whoever brings them: staged by COPY, then added with all their sums at once.

Whoever adds entries holds ``HOLD_OPEN`` until the end of the transaction, so that no month is closed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import psycopg

from gateway.adapters.postgres.sql import statement
from gateway.adapters.postgres.tables import LEDGER_COLUMNS, LEDGER_TYPES
from gateway.core.ledger import LedgerEntry

SLICE_ENTRIES_MAX: Final = 100
"""So many entries are written before others on the event loop have their turn: about a millisecond."""

HOLD_OPEN: Final = b"SELECT pg_advisory_xact_lock_shared(hashtextextended('gateway.closing', 0))"
"""Months stay as they are, open or closed, until the end of the transaction; many may hold this at once."""
HOLD_TO_CLOSE: Final = b"SELECT pg_advisory_xact_lock(hashtextextended('gateway.closing', 0))"
"""Nobody adds entries until the end of the transaction."""

_COPY: Final = f"COPY ledger_staging ({', '.join(LEDGER_COLUMNS)}) FROM STDIN (FORMAT binary)".encode()


async def add_entries(cursor: psycopg.AsyncCursor[Any], entries: Sequence[LedgerEntry], journal_id: str) -> int:
    """How many of the entries were new. Their cost is posted for budgets under ``journal_id``. The connection has run
    ``session.sql``."""
    async with cursor.copy(_COPY) as copy:
        copy.set_types(LEDGER_TYPES)
        for number, entry in enumerate(entries, start=1):
            await copy.write_row(msgspec.structs.astuple(entry))
            if number % SLICE_ENTRIES_MAX == 0:
                await asyncio.sleep(0)
    row = await (await cursor.execute(statement("ship_ledger"), {"journal_id": journal_id})).fetchone()
    assert row is not None
    return int(row[0])
