"""wso2 #2936: a budget kept as a rate that refills is no window: never all of it at once, and more than it in all."""

from __future__ import annotations

import asyncio

from gateway.core.budget import Period
from tests.pipeline.reservations import COST, DEAREST, ask, begin, budget, limited, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer


@on_virtual_time
async def test_a_window_is_used_at_once_or_not_and_does_not_refill():
    """All of a day's budget in a second; an hour before midnight there is still nothing; at midnight all of it."""
    day = budget(DEAREST + 4 * COST, period=Period.DAY)
    world = World().scripted(evolink=answer())
    for _ in range(5):
        assert (await ask(world, limited(day))).reply.status == 200
    assert (await ask(world, limited(day))).reply.status == 402
    await asyncio.sleep(11 * 3_600)
    assert (await ask(world, limited(day))).reply.status == 402
    assert state(world, day) == (5 * COST, 0)
    await asyncio.sleep(3_600)
    runs = [begin(world, limited(day)) for _ in range(2)]
    await asyncio.gather(*(run.task for run in runs))
    assert sorted(run.reply.status or 0 for run in runs) == [200, 402]
