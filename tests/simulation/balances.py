"""What the simulated database has posted, for one process that asks: slowly, in vain, or late, as the database does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

from gateway.core.allowance import Balance
from gateway.core.budget import BudgetWindow
from gateway.pipeline.ports import StoreUnavailableError
from tests.simulation.database import SimulatedDatabase
from tests.simulation.life import Life, never


class SimulatedBalances:
    """Implements the Balances port. What it answers was true when the database was asked, not when it is heard."""

    def __init__(self, database: SimulatedDatabase, life: Life, chance: Random) -> None:
        self._database = database
        self._life = life
        self._chance = chance

    async def of(self, windows: Sequence[BudgetWindow]) -> Mapping[str, Mapping[str, Balance]]:
        await self._asked()
        found: dict[str, dict[str, Balance]] = {}
        for (scope, day, journal_id), posted in self._database.tables.postings.items():
            for window in windows:
                first, until = window.first_day, window.until_day
                if scope != window.scope or (first and day < first) or (until and day >= until):
                    continue
                before = found.setdefault(window.key, {}).get(journal_id, Balance(0, 0))
                found[window.key][journal_id] = Balance(before.posted + posted.pico, before.rows + posted.rows)
        await self._answered()
        return found

    async def moved(self, *, seconds: float, but: str) -> frozenset[str]:
        await self._asked()
        since = self._database.now() - seconds
        postings = self._database.tables.postings.items()
        found = frozenset(scope for (scope, _, writer), each in postings if each.moved_at > since and writer != but)
        await self._answered()
        return found

    async def close(self) -> None:
        pass

    async def _asked(self) -> None:
        await self._take(0.002)
        troubles = self._database.troubles
        if self._database.is_away or (troubles.fails and self._chance.random() < troubles.fails):
            raise StoreUnavailableError("the simulated database is away")

    async def _answered(self) -> None:
        slow = self._database.troubles.slow
        await self._take(self._chance.uniform(0.5, 14.0) if slow and self._chance.random() < slow else 0.001)

    async def _take(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._life.is_alive:
            await never()
