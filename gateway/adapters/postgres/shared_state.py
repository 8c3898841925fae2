"""The one number that makes an emptied Redis worthless, and who lives: kept where nothing is ever lost."""

from __future__ import annotations

from typing import Final

from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.sql import statement
from gateway.pipeline.ports import LIVE_SECONDS, Sighting

_NEXT: Final = """
UPDATE shared_state SET generation = greatest(generation, %(above)s) + 1
WHERE generation = %(after)s RETURNING generation
"""
_LEAVE: Final = "DELETE FROM workers WHERE worker_id = %s"


class PostgresSharedState:
    """Implements the SharedState port."""

    def __init__(self, database_url: str) -> None:
        self._connections = Connections(database_url, connections_max=2)

    async def seen(self, worker_id: str) -> Sighting:
        asked = {"worker_id": worker_id, "live_seconds": LIVE_SECONDS}
        async with self._connections.transaction() as db:
            row = await (await db.execute(statement("seen"), asked)).fetchone()
        assert row is not None, "the one row of shared_state is never removed"
        return Sighting(row["generation"], frozenset(row["live"]) | {worker_id})

    async def next_generation(self, *, after: int, above: int) -> int | None:
        async with self._connections.transaction() as db:
            row = await (await db.execute(_NEXT, {"after": after, "above": above})).fetchone()
        return None if row is None else int(row["generation"])

    async def leave(self, worker_id: str) -> None:
        async with self._connections.transaction() as db:
            await db.execute(_LEAVE, (worker_id,))

    async def close(self) -> None:
        await self._connections.close()
