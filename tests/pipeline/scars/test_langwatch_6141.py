"""langwatch #6141: spend was projected from traces, later; 110 requests on, the budget still read zero."""

from __future__ import annotations

from tests.pipeline.reservations import COST, DEAREST, ask, budget, limited, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer


@on_virtual_time
async def test_what_is_spent_is_known_with_the_answer():
    """Without the database having been told of anything: each request finds what those before it have cost."""
    mine = budget(DEAREST + 109 * COST)
    world = World().scripted(evolink=answer())
    for number in range(1, 111):
        assert (await ask(world, limited(mine))).reply.status == 200
        assert state(world, mine) == (number * COST, 0)
    assert (await ask(world, limited(mine))).reply.status == 402
    assert world.balances.posted == {}
