"""The audit as it is read: newest first, page by page, and from its beginning to see whether it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.adapters.postgres.changes import Store, audit_entry
from gateway.adapters.postgres.sql import statement
from gateway.core.audit import AuditEntry, AuditVerdict, ChainCheck, Facts
from gateway.core.grants import Administrator

FETCH_ROWS: Final = 1_000


class AuditStore(Store):
    """Implements the AuditTrail port."""

    async def list_entries(
        self,
        *,
        before: int | None,
        limit: int,
        action: str | None = None,
        target: str | None = None,
        team: str | None = None,
    ) -> Sequence[AuditEntry]:
        asked = {"before": before, "limit": limit, "action": action, "target": target, "team": team}
        async with self._connections.transaction() as db:
            found = await db.execute(statement("audit"), asked)
            return [audit_entry(row) for row in await found.fetchall()]

    async def verify(self) -> AuditVerdict:
        chain = ChainCheck()
        async with self._connections.transaction() as db, db.cursor(name="audit") as cursor:
            cursor.itersize = FETCH_ROWS
            await cursor.execute("SELECT * FROM audit_entries ORDER BY entry_id")
            async for row in cursor:
                if not chain.follow(audit_entry(row)):
                    break
        return AuditVerdict(entries=chain.entries, head=chain.head, broken=chain.broken)

    async def record(
        self, action: str, target: str, *, before: Facts | None, after: Facts | None, by: Administrator
    ) -> None:
        async with self._change(by) as change:
            await change.record(action, target, before=before, after=after)
