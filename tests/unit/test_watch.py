"""A watch interrupts only what it watches, for one reason at a time, and leaves its task as it found it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.core.catalogue import Timeouts
from gateway.core.failure import Failure, FailureClass
from gateway.pipeline.watch import DRAIN_SECONDS_MAX, HEARTBEAT_SECONDS, ClientGone, Interrupted, Watch
from tests.pipeline.virtual_time import on_virtual_time

GONE = ClientGone.CLIENT_GONE
SHUTDOWN = Failure(kind=FailureClass.SHUTDOWN, message="stopping")
LIMITS = Timeouts(connect=5, first_byte=30, idle=20, total=300)


async def under(watch: Watch, work: Callable[[], Awaitable[None]]) -> None:
    with watch:
        await work()


class Beats:
    """When heartbeats were asked for, in seconds since the first look."""

    def __init__(self) -> None:
        self.started = asyncio.get_running_loop().time()
        self.at: list[float] = []

    def __call__(self) -> None:
        self.at.append(asyncio.get_running_loop().time() - self.started)


def watching(*, heartbeat: Callable[[], None] | None = None, drain: bool = False, limits: Timeouts = LIMITS) -> Watch:
    watch = Watch(heartbeat=heartbeat)
    watch.begin_attempt(limits, drain=drain)
    return watch


async def sleep_long() -> None:
    await asyncio.sleep(10_000)


async def interrupted(watch: Watch, work: Callable[[], Awaitable[None]] = sleep_long) -> tuple[object, float]:
    """The reason for which some watched work ended, and when."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(Interrupted) as caught:
        await under(watch, work)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    reason = caught.value.reason
    return (reason.kind if isinstance(reason, Failure) else reason), loop.time() - started


@on_virtual_time
async def test_a_hang_up_ends_what_is_awaited() -> None:
    """At once, and the task may go on awaiting afterwards."""
    watch = watching()
    asyncio.get_running_loop().call_later(3, watch.hang_up)
    assert await interrupted(watch) == (GONE, 3)
    await asyncio.sleep(1)
    watch.end()


@on_virtual_time
async def test_outside_of_the_region_nothing_is_cut_short() -> None:
    """Settling is never interrupted; the reason waits at the next door."""
    watch = watching()
    asyncio.get_running_loop().call_later(1, watch.hang_up)
    await asyncio.sleep(5)
    assert watch.client_gone
    assert await interrupted(watch) == (GONE, 0)
    watch.end()


@pytest.mark.parametrize("lasting", [GONE, SHUTDOWN], ids=["gone", "shutdown"])
@on_virtual_time
async def test_the_first_reason_stands_and_a_lasting_one_is_not_forgotten(lasting: ClientGone | Failure) -> None:
    """A deadline ends this attempt; what came after it ends the next before it begins."""
    watch = watching()
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + 30, watch.hang_up if lasting is GONE else lambda: watch.interrupt(SHUTDOWN))
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 30)
    await asyncio.sleep(0)
    assert watch.is_over
    watch.begin_attempt(LIMITS, drain=True)
    assert await interrupted(watch) == (lasting if lasting is GONE else FailureClass.SHUTDOWN, 0)
    watch.end()


@on_virtual_time
async def test_a_deadline_ends_one_attempt() -> None:
    """The next one has its own time."""
    watch = watching()
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 30)
    assert not watch.is_over
    await asyncio.sleep(7)
    watch.begin_attempt(LIMITS, drain=False)
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 30)
    watch.end()


@on_virtual_time
async def test_silence_counts_from_the_last_bytes() -> None:
    """First byte, then idle, then the whole; each noticed when it is due."""
    watch = watching()
    loop = asyncio.get_running_loop()
    with watch:
        await asyncio.sleep(25)
        watch.last_read = loop.time()
        watch.progressed()
        await asyncio.sleep(15)
        watch.last_read = loop.time()
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 20)
    watch.begin_attempt(LIMITS, drain=False)
    watch.progressed()

    async def read_on() -> None:
        while True:
            watch.last_read = loop.time()
            await asyncio.sleep(10)

    assert await interrupted(watch, read_on) == (FailureClass.TIMED_OUT, 300)
    watch.end()


@on_virtual_time
async def test_silence_after_an_early_byte_is_noticed_when_it_is_due() -> None:
    """A timer that was set for a long first byte does not put it off."""
    watch = watching(limits=Timeouts(first_byte=120, idle=5, total=3_600))
    watch.progressed()
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 5)
    watch.end()


@on_virtual_time
async def test_a_silent_stream_beats() -> None:
    """Every ten seconds without a write; a write puts the next one off."""
    beats = Beats()
    watch = watching(heartbeat=beats)
    loop = asyncio.get_running_loop()
    with watch:
        await asyncio.sleep(25)
        watch.last_write = watch.last_read = loop.time()
        watch.progressed()
        await asyncio.sleep(14)
    assert beats.at == [HEARTBEAT_SECONDS, 2 * HEARTBEAT_SECONDS, 35]
    watch.end()


@on_virtual_time
async def test_nobody_is_beaten_at_who_is_gone_or_does_not_read() -> None:
    """Neither for a client that hung up nor while one keeps a write waiting."""
    beats = Beats()
    watch = watching(heartbeat=beats, drain=True)

    async def left() -> None:
        asyncio.get_running_loop().call_later(5, watch.hang_up)
        await asyncio.sleep(100)

    assert await interrupted(watch, left) == (FailureClass.TIMED_OUT, 30)
    watch.end()
    watch = watching(heartbeat=beats)
    watch.writing_since = asyncio.get_running_loop().time()
    assert await interrupted(watch) == (GONE, 20)
    assert watch.client_gone
    assert beats.at == []
    watch.end()


@on_virtual_time
async def test_a_drain_is_bounded() -> None:
    """A hang-up does not end it, its deadline does, and a shutdown too."""
    limits = Timeouts(first_byte=9_000, idle=9_000, total=9_000)
    watch = watching(drain=True, limits=limits)
    asyncio.get_running_loop().call_later(5, watch.hang_up)
    assert await interrupted(watch) == (FailureClass.TIMED_OUT, 5 + DRAIN_SECONDS_MAX)
    watch.end()
    watch = watching(drain=True, limits=limits)
    asyncio.get_running_loop().call_later(5, watch.hang_up)
    asyncio.get_running_loop().call_later(9, watch.interrupt, SHUTDOWN)
    assert await interrupted(watch) == (FailureClass.SHUTDOWN, 9)
    watch.end()


@on_virtual_time
async def test_a_real_cancellation_goes_through() -> None:
    """Alone or together with a reason of ours; only our own request is taken back."""
    for ours in (False, True):
        watch = watching()

        async def work(watch: Watch = watch) -> None:
            with watch:
                await asyncio.sleep(1_000)

        task = asyncio.ensure_future(work())
        await asyncio.sleep(1)
        if ours:
            watch.hang_up()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        watch.end()


@on_virtual_time
async def test_a_reason_from_inside_ends_the_next_wait_inside() -> None:
    """The task itself may learn of the hang-up; if it awaits no more, nothing strays out of the region."""
    watch = watching()

    async def learn_and_wait() -> None:
        watch.hang_up()
        await asyncio.sleep(1)

    assert await interrupted(watch, learn_and_wait) == (GONE, 0)
    watch.end()
    watch = watching()
    with watch:
        watch.hang_up()
    await asyncio.sleep(1)
    watch.end()


@on_virtual_time
async def test_another_error_in_the_same_moment_leaves_no_trace_of_ours() -> None:
    """What is awaited answers the interruption with an error of its own: that one counts, and the task is clean."""
    watch = watching()
    asyncio.get_running_loop().call_later(1, watch.hang_up)

    async def answer_back() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise ValueError("mine") from None

    with pytest.raises(ValueError, match="mine"):
        await under(watch, answer_back)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(1)
    watch.end()


@on_virtual_time
async def test_a_timeout_inside_the_region_is_its_own() -> None:
    """asyncio's timeouts and the watch do not mistake each other's cancellations."""
    watch = watching()
    with watch:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        asyncio.get_running_loop().call_later(1, watch.hang_up)
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        await asyncio.sleep(0)
    watch.end()


@on_virtual_time
async def test_after_its_end_it_watches_nothing() -> None:
    """No timer is left, and a late hang-up changes nothing."""
    watch = watching(heartbeat=Beats())
    watch.end()
    watch.hang_up()
    assert not watch.client_gone
    with watch:
        await asyncio.sleep(1_000)
