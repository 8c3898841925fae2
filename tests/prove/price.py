"""What durability costs: the same requests with the real journal and with one that does nothing, round by round.

One process, the real pipeline, an upstream that answers after a moment; CPU time counts the journal's own thread too.
Two loads, for one of them cannot show both costs:

- *together*: 32 clients, each with its next request as soon as its last has ended. The event loop is never idle and
  many share a sync, as in a gateway that is as busy as it can be: this is the CPU that durability takes from it. Its
  first bytes are told and no target: clients that are released by one sync come back together, and then wait for one
  another's turns on the loop, with a disk that takes no time at all as well.
- *apart*: requests arrive by themselves, at random, at a tenth of what the process can do. Hardly any shares a sync,
  so the CPU is the dearest there can be, and the wait is for the disk and not for each other: this is what durability
  adds to an answer. What the upstream took is taken off each, for its timers are as coarse as what is measured, but no
  more than their coarseness: an event loop that is late has that counted. The disk's own time for a sync is told
  beside it.

A figure is the median of the differences between neighbours, a round with and one without: what else runs on the
machine lasts longer than two rounds and disturbs both, so the difference of the two best rounds of all varied more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import uvloop

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock, TimeOrderedIds
from gateway.adapters.gossip import NoGossip
from gateway.adapters.health import MemoryHealthBook
from gateway.adapters.journal import JournalWriter, Syscalls, journal_id
from gateway.adapters.memory import MemoryApiKeys, MemoryBalances
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.core.ledger import Record
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.experience import Experience
from gateway.pipeline.noting import Noting
from gateway.pipeline.ports import Journal, UpstreamCall
from gateway.pipeline.watch import Watch
from tests.pipeline.world import ALICE, SSE_HEADERS, card, catalogue, configuration
from tests.prove.proof import Ground, Proven
from tests.wire.transcripts import ANSWER, DONE, closing, encoded, finish, totals

CPU_MICROSECONDS_MAX: Final = 40.0
CLIENTS: Final = 32
TOGETHER_REQUESTS: Final = 100
APART_REQUESTS: Final = 40
APART_PER_SECOND: Final = 200.0
UPSTREAM_SECONDS: Final = 0.02
TIMER_SECONDS: Final = 0.001
"""A timer of the event loop may be so late without anybody's fault."""
MEASURED_ROUNDS_MIN: Final = 40
"""Fewer rounds say more of the machine than of the journal."""
_BODY: Final = encoded(
    {"model": "kimi-k2-thinking", "stream": True, "messages": [{"role": "user", "content": "Why? " * 200}]}
)


class NoJournal:
    """The port ``Journal``, free of charge and worth it."""

    def append(self, record: Record) -> int:
        return 0

    async def durable(self, position: int) -> None:
        """Nothing is."""


class TimedSyncs(Syscalls):
    """The real kernel, and how long it took for each sync."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def fdatasync(self, descriptor: int) -> None:
        began = time.perf_counter()
        super().fdatasync(descriptor)
        self._seconds.append(time.perf_counter() - began)

    def told(self) -> list[float]:
        """Those since the last time."""
        seconds, self._seconds = self._seconds, []
        return seconds


@dataclass(slots=True)
class WholeAnswer:
    """The port ``UpstreamAnswer``: a streamed answer in three pieces."""

    parts: list[bytes] = field(default_factory=lambda: [ANSWER, finish() + closing(totals(250, 26)), DONE])
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: SSE_HEADERS)

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    def release(self, *, reusable: bool) -> None:
        """There is no connection to give back."""


@dataclass(slots=True)
class TimedReply:
    """The port ``Reply``: notes when the first bytes came, and how much of that was the upstream's."""

    started: bool = False
    upstream_seconds: float = 0.0
    first_byte_at: float = 0.0
    finished: bool = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True

    async def write(self, data: bytes) -> None:
        self.first_byte_at = self.first_byte_at or time.perf_counter()

    async def finish(self, data: bytes = b"") -> None:
        self.finished = True


_REPLY: Final[ContextVar[TimedReply]] = ContextVar("reply")


class PromptUpstreams:
    """The port ``Upstreams``: an answer after a moment, whoever is asked."""

    async def open(self, call: UpstreamCall) -> WholeAnswer:
        began = time.perf_counter()
        await asyncio.sleep(UPSTREAM_SECONDS)
        _REPLY.get().upstream_seconds = min(time.perf_counter() - began, UPSTREAM_SECONDS + TIMER_SECONDS)
        return WholeAnswer()


@dataclass(slots=True)
class Cost:
    """What the rounds of one load took with one journal, a figure a round: CPU of a request, its median first byte."""

    cpu_microseconds: list[float] = field(default_factory=list)
    first_byte_milliseconds: list[float] = field(default_factory=list)


Load = Callable[[Conductor, Random], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True)
class Compared:
    """One load with the journal and without."""

    load: Load
    on: Cost = field(default_factory=Cost)
    off: Cost = field(default_factory=Cost)
    sync_seconds: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """Microseconds of a request."""
        return _difference(self.on.cpu_microseconds, self.off.cpu_microseconds)

    @property
    def wait(self) -> float:
        """Milliseconds to the median first byte."""
        return _difference(self.on.first_byte_milliseconds, self.off.first_byte_milliseconds)


def prove(size: int, ground: Ground) -> Proven:
    """``size`` pairs of rounds of each load."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        together, apart = runner.run(_rounds(size, ground))
    figure = (
        f"{size} pairs of rounds: {CLIENTS} clients together {together.cpu:+.0f} µs CPU a request "
        f"(of {median(together.on.cpu_microseconds):.0f}), {together.wait:+.2f} ms to the median first byte; "
        f"{APART_PER_SECOND:.0f} a second apart {apart.wait:+.2f} ms, where a sync took the disk "
        f"{median(apart.sync_seconds) * 1e3:.2f} ms, and {apart.cpu:+.0f} µs"
    )
    short = size >= MEASURED_ROUNDS_MIN and together.cpu > CPU_MICROSECONDS_MAX
    return Proven(figure=figure, missed=f"{CPU_MICROSECONDS_MAX:.0f} µs together" if short else None)


async def _rounds(size: int, ground: Ground) -> tuple[Compared, Compared]:
    loads = Compared(_together), Compared(_apart)
    disk = TimedSyncs()
    async with _journal(ground.folder, disk) as journal:
        real, free = _conductor(journal), _conductor(NoJournal())
        for number in range(-1, size):
            for compared in loads:
                pair = [(real, compared.on), (free, compared.off)]
                for conductor, cost in pair if number % 2 else reversed(pair):
                    await _round(compared.load, conductor, Random(number), Cost() if number < 0 else cost)
                    compared.sync_seconds.extend(disk.told())
            ground.tick(int(number >= 0))
    return loads


def _difference(on: list[float], off: list[float]) -> float:
    return median(one - other for one, other in zip(on, off, strict=True))


@asynccontextmanager
async def _journal(folder: Path, disk: Syscalls) -> AsyncIterator[JournalWriter]:
    journal = JournalWriter.open(folder, journal_id(datetime.now(UTC), os.urandom(8)), syscalls=disk)
    try:
        yield journal
    finally:
        journal.close()


def _conductor(journal: Journal) -> Conductor:
    clock = SystemClock()
    return Conductor(
        configuration=configuration(catalogue(card("moonshot"))),
        keys=MemoryApiKeys(clock),
        journal=journal,
        upstreams=PromptUpstreams(),
        health=MemoryHealthBook(clock, lambda: 0.5),
        experience=Experience(),
        telemetry=PrometheusTelemetry(),
        clock=clock,
        ids=TimeOrderedIds(),
        allowances=LocalAllowances("price", MemoryBalances(), clock=clock),
        noting=Noting(gossip=NoGossip(), clock=clock),
    )


async def _round(load: Load, conductor: Conductor, chance: Random, cost: Cost) -> None:
    began = time.process_time()
    waits = await load(conductor, chance)
    cost.cpu_microseconds.append((time.process_time() - began) * 1e6 / len(waits))
    cost.first_byte_milliseconds.append(median(waits) * 1e3)


async def _together(conductor: Conductor, _: Random) -> list[float]:
    numbers, waits = count(), []

    async def client() -> None:
        while next(numbers) < TOGETHER_REQUESTS:
            waits.append(await _request(conductor, time.perf_counter()))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return waits


async def _apart(conductor: Conductor, chance: Random) -> list[float]:
    tasks = []
    for _ in range(APART_REQUESTS):
        await asyncio.sleep(chance.expovariate(APART_PER_SECOND))
        tasks.append(asyncio.create_task(_request(conductor, time.perf_counter())))
    return await asyncio.gather(*tasks)


async def _request(conductor: Conductor, came_at: float) -> float:
    """One exchange; how long its first byte took beside the upstream's time, in seconds."""
    reply = TimedReply()
    _REPLY.set(reply)
    exchange = conductor.prepare(conductor.ids.request_id(), ALICE, _BODY, {})
    await conductor.run(exchange, reply, Watch(heartbeat=None))
    assert reply.finished and reply.first_byte_at, "an answer came whole"
    return reply.first_byte_at - came_at - reply.upstream_seconds
