"""litellm PR 30039: an error while reconciling deleted the counter, which began again from a database that lagged."""

from __future__ import annotations

import asyncio

from gateway.core.allowance import Balance
from gateway.core.budget import window_of
from gateway.pipeline.ports import StoreUnavailableError
from tests.pipeline.reservations import COST, DEAREST, ask, budget, limited, state
from tests.pipeline.virtual_time import START, on_virtual_time
from tests.pipeline.world import World, answer


@on_virtual_time
async def test_a_database_that_lags_or_fails_takes_nothing_back():
    """What this worker has posted stands, whatever the database has of it yet, and whether it can be asked."""
    mine = budget(DEAREST + 2 * COST)
    world = World().scripted(evolink=answer())
    for _ in range(3):
        assert (await ask(world, limited(mine))).reply.status == 200
    window = window_of(mine.scope, mine.period, START)
    world.balances.tell(window, "world", Balance(COST, 1))
    world.balances.tell(window, "another", Balance(1, 1))
    await world.allowances.refresh()
    assert state(world, mine) == (3 * COST + 1, 0)
    world.balances.is_away = True
    try:
        await world.allowances.refresh()
    except StoreUnavailableError:
        world.allowances.tidy()
    await asyncio.sleep(10)
    assert state(world, mine) == (3 * COST + 1, 0)
    assert (await ask(world, limited(mine))).reply.status == 402
