"""What providers said was left of an account, each time that somebody asked; a reading is never changed."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.sql import statement
from gateway.core.balance_drift import Reading, Span, Spent
from gateway.core.money import Money

_KEEP: Final = """
INSERT INTO provider_balances (provider, account, at, available, used, unit) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""
_SINCE: Final = """
SELECT at, available, used, unit FROM provider_balances
WHERE provider = %(provider)s AND account = %(account)s AND unit = %(unit)s AND at < %(before)s
  AND at >= coalesce(%(since)s, (
      SELECT max(at) FROM provider_balances
      WHERE provider = %(provider)s AND account = %(account)s AND unit = %(unit)s AND at < %(before)s
  ))
ORDER BY at
"""


class ProviderBalances:
    """Readings, and what the ledger has between them. Every question may raise StoreUnavailableError."""

    def __init__(self, database_url: str) -> None:
        self._connections = Connections(database_url, connections_max=1)

    async def keep(self, provider: str, account: str, reading: Reading) -> None:
        async with self._connections.transaction() as db:
            values = (provider, account, reading.at, reading.available, reading.used, reading.unit)
            await db.execute(_KEEP, values)

    async def before(self, provider: str, account: str, reading: Reading, since: datetime | None) -> list[Reading]:
        """The readings of the same unit before this one: all since a moment, or the last one."""
        asked = {"provider": provider, "account": account, "unit": reading.unit, "before": reading.at, "since": since}
        async with self._connections.transaction() as db:
            rows = await (await db.execute(_SINCE, asked)).fetchall()
        return [Reading(**row) for row in rows]

    async def spent(self, provider: str, account: str, span: Span) -> Spent:
        """What the ledger has of the time between two readings."""
        asked = {"provider": provider, "account": account, "first": span.first.at, "last": span.last.at}
        async with self._connections.transaction() as db:
            row = await (await db.execute(statement("spent_between"), asked)).fetchone()
        assert row is not None
        return Spent(
            cost=Money(int(row["cost_pico"])),
            under_way_before=Money(int(row["under_way_before_pico"])),
            under_way_after=Money(int(row["under_way_after_pico"])),
        )

    async def close(self) -> None:
        await self._connections.close()
