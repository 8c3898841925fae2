"""litellm #34732, #40095, #26672: between looking at a budget and counting it others looked too, and all went."""

from __future__ import annotations

import asyncio

from gateway.adapters.allowances import LocalAllowances
from gateway.core.allowance import Demand, Verdict
from tests.pipeline.reservations import COST, DEAREST, begin, budget, limited, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer


class DistantAllowances(LocalAllowances):
    """Everybody has asked before anybody has been answered."""

    async def take(self, demand: Demand) -> Verdict:
        await asyncio.sleep(0.5)
        verdict = await super().take(demand)
        await asyncio.sleep(0.5)
        return verdict


@on_virtual_time
async def test_looking_and_taking_are_one_step():
    """L6: two hundred at once for three are three."""
    mine = budget(3 * DEAREST)
    world = World().scripted(evolink=answer())
    world.allowances = world.conductor.allowances = DistantAllowances("world", world.balances, clock=world.clock)
    runs = [begin(world, limited(mine)) for _ in range(200)]
    await asyncio.gather(*(run.task for run in runs))
    assert sorted(run.reply.status or 0 for run in runs) == [200] * 3 + [402] * 197
    assert state(world, mine) == (3 * COST, 0)
