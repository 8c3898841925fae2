"""litellm #30460: requests that failed were counted and never given back, and the counter stood far above the spend."""

from __future__ import annotations

from tests.pipeline.reservations import COST, DEAREST, ask, budget, limited, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer, refusal


@on_virtual_time
async def test_failures_do_not_inflate_what_is_spent():
    """Fifty that fail, and the budget for one is still a budget for one."""
    mine = budget(DEAREST)
    who = limited(mine, tpm=1_100, concurrency=1)
    world = World().scripted(evolink=[*[refusal(400, message="no")] * 50, answer()])
    for _ in range(50):
        assert (await ask(world, who)).reply.status == 400
    assert state(world, mine) == (0, 0)
    assert (await ask(world, who)).reply.status == 200
    assert state(world, mine) == (COST, 0)
