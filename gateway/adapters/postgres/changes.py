"""Administrators change one thing at a time, and a change leaves its audit entry in its own transaction or is undone.

One lock orders all of them: what a change has looked at (a team's ceilings, the end of the audit's chain) is still so
when it is committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from psycopg.types.json import Jsonb

from gateway.adapters.postgres.connections import Connection, Connections
from gateway.adapters.postgres.sql import statement
from gateway.core.audit import GENESIS, AuditEntry, Facts
from gateway.core.grants import Administrator
from gateway.pipeline.ports import Clock

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('gateway.changes', 0))"
_LAST: Final = "SELECT entry_id, hash FROM audit_entries ORDER BY entry_id DESC LIMIT 1"
_UNKNOWN: Final = bytes(32)


class Change:
    """One administrator's transaction. ``now`` is the moment of everything in it."""

    def __init__(self, db: Connection, by: Administrator, now: datetime) -> None:
        self.db = db
        self.by = by
        self.now = now

    async def record(
        self, action: str, target: str, *, team: str | None = None, before: Facts | None, after: Facts | None
    ) -> None:
        """The next entry of the audit."""
        last = await (await self.db.execute(_LAST)).fetchone()
        entry = AuditEntry(
            entry_id=1 if last is None else last["entry_id"] + 1,
            at=self.now,
            actor=self.by.actor,
            action=action,
            target=target,
            team=team,
            before=before,
            after=after,
            request_id=self.by.request_id,
            previous_hash=GENESIS if last is None else bytes(last["hash"]),
            hash=_UNKNOWN,
        )
        values = {name: getattr(entry, name) for name in entry.__slots__}
        facts = {name: None if values[name] is None else Jsonb(values[name]) for name in ("before", "after")}
        await self.db.execute(statement("insert_audit"), {**values, **facts, "hash": entry.expected_hash()})


class Store:
    """What the stores of administration share: connections, and how to change anything."""

    def __init__(self, connections: Connections, *, clock: Clock) -> None:
        self._connections = connections
        self._clock = clock

    @asynccontextmanager
    async def _change(self, by: Administrator) -> AsyncIterator[Change]:
        async with self._connections.transaction() as db:
            yield await self._change_in(db, by)

    async def _change_in(self, db: Connection, by: Administrator) -> Change:
        """The rest of a transaction as a change, for one that had much to do before."""
        await db.execute(_LOCK)
        return Change(db, by, self._clock.now())


def audit_entry(row: Mapping[str, Any]) -> AuditEntry:
    """A row of the table as an entry."""
    hashes = {name: bytes(row[name]) for name in ("previous_hash", "hash")}
    return AuditEntry(**{**row, **hashes})
