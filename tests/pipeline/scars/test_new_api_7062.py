"""new-api #5235, #7062: an answer without usage was refunded whole, so that whoever cut it off had it for nothing."""

from __future__ import annotations

from tests.pipeline.reservations import DEAREST, ask, budget, limited, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, stream
from tests.wire.transcripts import ANSWER, DONE, finish


@on_virtual_time
async def test_an_answer_without_usage_is_spent_as_an_estimate():
    """L14: what was not told is not zero, neither in the ledger nor in the budget."""
    mine = budget(DEAREST)
    world = World().scripted(evolink=stream(ANSWER, finish(), DONE))
    run = await ask(world, limited(mine))
    assert run.entry.usage_source == "estimated"
    assert run.entry.cost_pico > 0
    assert state(world, mine) == (run.entry.cost_pico, 0)
