"""Everything that administrators change, over the same few connections."""

from __future__ import annotations

from typing import Final

from gateway.adapters.postgres.audit import AuditStore
from gateway.adapters.postgres.budgets import BudgetStore
from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.key_store import KeyStore
from gateway.adapters.postgres.organisation import OrganisationStore
from gateway.adapters.postgres.teams import TeamStore
from gateway.pipeline.ports import Clock

CONNECTIONS_MAX: Final = 2


class PostgresAdministration:
    """Implements the Administration port."""

    def __init__(self, database_url: str, *, clock: Clock) -> None:
        self._connections = Connections(database_url, connections_max=CONNECTIONS_MAX)
        self.keys = KeyStore(self._connections, clock=clock)
        self.teams = TeamStore(self._connections, clock=clock)
        self.budgets = BudgetStore(self._connections, clock=clock)
        self.organisation = OrganisationStore(self._connections, clock=clock)
        self.audit = AuditStore(self._connections, clock=clock)

    async def close(self) -> None:
        await self._connections.close()
