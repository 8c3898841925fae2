"""A client may leave at any moment and read as slowly as it likes: the books are right, and no provider is blamed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.core.catalogue import OnClientAbort
from gateway.core.failure import Failure, FailureClass
from gateway.core.health import Subject
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import (
    ALICE,
    FOREVER,
    MODEL,
    USAGE,
    WAIT,
    Run,
    Script,
    World,
    answer,
    broken,
    card,
    catalogue,
    refusal,
    stream,
)
from tests.wire.transcripts import ANSWER, DONE, HELLO, closing, finish

SHUTDOWN = Failure(kind=FailureClass.SHUTDOWN, message="stopping")
CIRCUIT = Subject("evolink", "main", MODEL)


def tuples(run: Run) -> list[tuple[str, str, str | None]]:
    return [(entry.status, entry.usage_source, entry.error_type) for entry in run.entries]


@on_virtual_time
async def test_leaving_before_anything_was_sent_is_free() -> None:
    """The client is gone while its intent goes to the disk: nobody is called, and nothing is owed."""
    world = World().scripted(evolink=answer())
    world.journal.sync_seconds = 2.0
    run = world.begin()
    run.task.get_loop().call_later(1.0, run.hang_up)
    await run.ended()
    assert world.upstreams.calls == []
    assert tuples(run) == [("aborted", "none", None)]


@on_virtual_time
async def test_stopping_before_anything_was_sent_is_free() -> None:
    """The same for a shutdown: 503 with the wish to come again, and an entry without cost."""
    world = World().scripted(evolink=answer())
    world.journal.sync_seconds = 2.0
    run = world.begin()
    run.task.get_loop().call_later(1.0, run.watch.interrupt, SHUTDOWN)
    await run.ended()
    assert world.upstreams.calls == []
    assert tuples(run) == [("abandoned", "none", "shutdown")]
    assert (run.reply.status, run.reply.error["code"]) == (503, "overloaded")
    assert run.reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("first", [stream(FOREVER), refusal(500)], ids=["timeout", "refusal"])
@on_virtual_time
async def test_leaving_between_two_attempts_stops_them(first: Script, drain: bool) -> None:
    """The second intent is on its way to the disk as the client leaves: its upstream is not called."""
    policy = OnClientAbort.DRAIN if drain else OnClientAbort.CANCEL
    cards = [card(name, on_client_abort=policy) for name in ("evolink", "moonshot")]
    world = World(in_force=catalogue(*cards)).scripted(evolink=first, moonshot=answer())
    run = world.begin()

    def leave(sync: int) -> None:
        if sync == 2:
            run.hang_up()

    world.journal.on_sync = leave
    await run.ended()
    assert [call.provider for call in world.upstreams.calls] == ["evolink"]
    assert tuples(run)[-1] == ("aborted", "none", None)
    assert world.telemetry.statuses == [499]


@on_virtual_time
async def test_stopping_between_two_attempts_stops_them() -> None:
    """A shutdown that comes right after a timeout is not forgotten with it."""
    world = World().scripted(evolink=stream(FOREVER), moonshot=answer())
    run = world.begin()
    world.journal.on_sync = lambda sync: run.watch.interrupt(SHUTDOWN) if sync == 2 else None
    await run.ended()
    assert [call.provider for call in world.upstreams.calls] == ["evolink"]
    assert tuples(run)[-1] == ("abandoned", "none", "shutdown")


@on_virtual_time
async def test_leaving_while_the_settlement_goes_to_the_disk_changes_nothing() -> None:
    """The answer was whole; that nobody is there to receive its end is not the provider's fault, nor free."""
    world = World().scripted(evolink=answer())
    run = world.begin()
    world.journal.on_sync = lambda sync: run.hang_up() if sync == 2 else None
    await run.ended()
    assert tuples(run) == [("succeeded", "provider", None)]


@on_virtual_time
async def test_leaving_after_the_end_changes_nothing() -> None:
    """A connection is closed after every answer, one way or another."""
    run = await World().scripted(evolink=answer()).ask()
    run.hang_up()
    await asyncio.sleep(0)
    assert tuples(run) == [("succeeded", "provider", None)]


@on_virtual_time
async def test_leaving_in_the_very_moment_of_the_last_chunk() -> None:
    """The hang-up and the end come in one turn of the loop: one entry, by the provider's own figures."""
    world = World()
    holder: list[Run] = []
    world.scripted(evolink=stream(ANSWER, finish() + closing(USAGE), lambda: holder[0].hang_up(), DONE))
    holder.append(world.begin())
    run = await holder[0].ended()
    assert tuples(run) == [("aborted", "provider", None)]
    assert run.task.cancelling() == 0


@on_virtual_time
async def test_leaving_out_of_a_write_is_noticed() -> None:
    """A write may be where the hang-up is learned, even the last one: it is neither lost nor misplaced."""
    for at in (1, 2):
        world = World().scripted(evolink=stream(ANSWER, HELLO, finish(), closing(USAGE), DONE))
        run = world.begin()
        run.reply.on_write = lambda count, at=at, run=run: run.hang_up() if count == at else None  # type: ignore[misc]
        await run.ended()
        assert run.entry.status == "aborted"
        assert run.task.cancelling() == 0


@pytest.mark.parametrize("drain", [True, False])
@on_virtual_time
async def test_leaving_while_not_reading(drain: bool) -> None:
    """A client that had stopped reading hangs up: the upstream is let go, or read on to its usage."""
    only = card("evolink", on_client_abort=OnClientAbort.DRAIN if drain else OnClientAbort.CANCEL)
    world = World(in_force=catalogue(only)).scripted(evolink=stream(ANSWER, HELLO, finish(), closing(USAGE), DONE))
    run = world.begin()
    run.reply.blocked = asyncio.Event()

    def leave() -> None:
        run.hang_up()
        assert run.reply.blocked is not None
        if drain:
            run.reply.blocked.set()

    run.task.get_loop().call_later(5.0, leave)
    await run.ended()
    assert tuples(run) == [("aborted", "provider" if drain else "estimated", None)]


@on_virtual_time
async def test_a_client_that_reads_nothing_is_gone_after_a_while() -> None:
    """It is its own silence, not the upstream's: no circuit counts a failure for it."""
    world = World().scripted(evolink=stream(ANSWER, HELLO, finish(), closing(USAGE), DONE))
    run = world.begin()
    run.reply.blocked = asyncio.Event()
    await run.ended()
    assert tuples(run) == [("aborted", "estimated", None)]
    assert world.health.of(CIRCUIT).consecutive_failures == 0
    assert run.reply.heartbeats == []
    assert run.reply.tail is None
    assert 20 <= (run.entry.finished_at - run.entry.started_at).total_seconds() <= 35


@on_virtual_time
async def test_a_slow_reader_does_not_use_up_the_upstreams_time() -> None:
    """Fifteen seconds of the client's are not part of the upstream's nineteen (idle: 20)."""
    world = World().scripted(evolink=stream(ANSWER, 19.0, HELLO, finish(), closing(USAGE), DONE))
    run = world.begin()
    run.reply.blocked = blocked = asyncio.Event()
    run.task.get_loop().call_later(15.0, blocked.set)
    await run.ended()
    assert tuples(run) == [("succeeded", "provider", None)]


@on_virtual_time
async def test_nobody_is_tried_for_a_client_that_is_gone() -> None:
    """In drain mode the first upstream is read on; when it breaks, no other is called."""
    cards = [card(name, on_client_abort=OnClientAbort.DRAIN) for name in ("evolink", "moonshot")]
    world = World(in_force=catalogue(*cards)).scripted(
        evolink=Script(opening=(5.0,), body=(broken(),)), moonshot=answer()
    )
    run = world.begin()
    run.task.get_loop().call_later(1.0, run.hang_up)
    await run.ended()
    assert [call.provider for call in world.upstreams.calls] == ["evolink"]
    assert tuples(run) == [("failed", "estimated", "broken")]


@on_virtual_time
async def test_a_hang_up_teaches_nothing_about_the_provider() -> None:
    """A probe whose client leaves before an answer begins gives the probe back, and the circuit stays as it was."""
    world = World(names=("evolink",)).scripted(evolink=[refusal(500)] * 2 + [stream(FOREVER), answer()])
    for _ in range(2):
        await world.ask()
    before = world.health.of(CIRCUIT)
    assert before.is_out(world.clock.now())
    await asyncio.sleep(20)
    run = world.begin()
    run.task.get_loop().call_later(1.0, run.hang_up)
    await asyncio.sleep(0.5)
    assert world.health.of(CIRCUIT).probe_in_flight(world.clock.now())
    await run.ended()
    after = world.health.of(CIRCUIT)
    assert after == msgspec.structs.replace(before, changed_at=after.changed_at)
    await world.ask()
    assert world.health.of(CIRCUIT).out_until is None


@on_virtual_time
async def test_the_end_of_the_process_is_not_swallowed() -> None:
    """A cancellation from outside goes through; the upstream is released, and recovery finds the open intent."""
    world = World().scripted(evolink=stream(ANSWER, FOREVER))
    run = world.begin()
    await asyncio.sleep(1.0)
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert [each.released for each in world.upstreams.answers] == [[False]]
    assert len(world.journal.intents()) == 1
    assert world.journal.entries() == []


@on_virtual_time
async def test_a_hang_up_and_a_cancellation_together_are_a_cancellation() -> None:
    """The watch takes back its own request to stop and nobody else's."""
    world = World().scripted(evolink=stream(ANSWER, FOREVER))
    run = world.begin()
    await asyncio.sleep(1.0)
    run.hang_up()
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert [each.released for each in world.upstreams.answers] == [[False]]


@on_virtual_time
async def test_a_thousand_moments_to_leave() -> None:
    """Whenever a client leaves a request with a failover in it, the laws hold."""
    statuses = set()
    scripts = (Script(opening=(WAIT,), status=500), stream(ANSWER, WAIT, HELLO, WAIT, finish(), closing(USAGE), DONE))
    for step in range(300):
        world = World(names=("evolink", "moonshot")).scripted(evolink=scripts[0], moonshot=scripts[1])
        world.journal.sync_seconds = 0.1
        run = world.begin(principal=ALICE)
        leaving = run.task.get_loop().call_later(step * 0.005, run.hang_up)
        await run.ended()
        leaving.cancel()
        assert run.task.cancelling() == 0
        statuses.add((len(run.entries), run.entries[-1].status))
    assert statuses == {(1, "aborted"), (2, "aborted"), (2, "succeeded")}
