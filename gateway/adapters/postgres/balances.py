"""What is posted, as the database has it: by window and journal, in whole pico-dollars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.sql import statement
from gateway.core.allowance import Balance
from gateway.core.budget import BudgetWindow

_MOVED: Final = """
SELECT DISTINCT scope FROM budget_postings
WHERE moved_at > now() - %s * interval '1 second' AND journal_id <> %s
"""


class PostgresBalances:
    """Implements the Balances port."""

    def __init__(self, database_url: str) -> None:
        self._connections = Connections(database_url, connections_max=2)

    async def of(self, windows: Sequence[BudgetWindow]) -> Mapping[str, Mapping[str, Balance]]:
        asked = {
            "keys": [window.key for window in windows],
            "scopes": [window.scope for window in windows],
            "first_days": [window.first_day for window in windows],
            "until_days": [window.until_day for window in windows],
        }
        found: dict[str, dict[str, Balance]] = {}
        async with self._connections.transaction() as db:
            for row in await (await db.execute(statement("balances"), asked)).fetchall():
                found.setdefault(row["key"], {})[row["journal_id"]] = Balance(int(row["posted_pico"]), row["rows"])
        return found

    async def moved(self, *, seconds: float, but: str) -> frozenset[str]:
        async with self._connections.transaction() as db:
            rows = await (await db.execute(_MOVED, (seconds, but))).fetchall()
        return frozenset(row["scope"] for row in rows)

    async def close(self) -> None:
        await self._connections.close()
