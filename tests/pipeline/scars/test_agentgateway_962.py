"""agentgateway website PR 962: charged after the answer, so that whoever crossed the limit had already been served."""

from __future__ import annotations

import asyncio

from tests.pipeline.reservations import DEAREST, begin, budget, limited
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer


@on_virtual_time
async def test_nobody_is_served_on_credit():
    """What might cross the limit is refused before anything is sent; a hundred of them cost nothing."""
    world = World().scripted(evolink=answer())
    runs = [begin(world, limited(budget(DEAREST - 1))) for _ in range(100)]
    await asyncio.gather(*(run.task for run in runs))
    assert {run.reply.status for run in runs} == {402}
    assert world.upstreams.calls == []
