"""mozilla-ai/otari #742: a hold was a number added to a counter; one that leaked could not be found again."""

from __future__ import annotations

from gateway.core.allowance import LEASE_MS
from tests.pipeline.reservations import DEAREST, begin, budget, limited, moments, state
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, stream
from tests.wire.transcripts import ANSWER


@on_virtual_time
async def test_a_hold_has_a_name_and_a_lease():
    """A worker that dies leaves a hold under its request's name; it lapses once, and ends no second time."""
    mine = budget(2 * DEAREST)
    world = World().scripted(evolink=stream(ANSWER, 19.0))
    lost, living = begin(world, limited(mine)), begin(world, limited(mine))
    await moments()
    book, now_ms = world.allowances.book, int(world.clock.now().timestamp() * 1000)
    assert state(world, mine) == (0, 2 * DEAREST)
    book.renew([living.exchange.request_id], now_ms + 1_000)
    assert book.sweep(now_ms + LEASE_MS) == [lost.exchange.request_id]
    for _ in range(3):
        book.release(lost.exchange.request_id, 0)
    assert state(world, mine) == (0, DEAREST)
    for run in (lost, living):
        run.hang_up()
        await run.task
    assert book.holds == {}
