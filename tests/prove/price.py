"""What durability costs: the same requests with the real journal and with one that does nothing, round by round.

One process, the real pipeline, an upstream that answers after a moment; CPU time counts the journal's own thread too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock, TimeOrderedIds
from gateway.adapters.health import MemoryHealthBook
from gateway.adapters.journal import JournalWriter, journal_id
from gateway.adapters.memory import MemoryApiKeys, MemoryBalances
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.core.ledger import Record
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.experience import Experience
from gateway.pipeline.ports import Journal, UpstreamCall
from gateway.pipeline.watch import Watch
from tests.pipeline.world import ALICE, SSE_HEADERS, card, catalogue, configuration
from tests.prove.proof import Ground, Proven
from tests.wire.transcripts import ANSWER, DONE, closing, encoded, finish, totals

CPU_MICROSECONDS_MAX: Final = 40.0
ROUND_REQUESTS: Final = 250
CONCURRENCY: Final = 32
UPSTREAM_SECONDS: Final = 0.02
MEASURED_ROUNDS_MIN: Final = 8
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


class PromptUpstreams:
    """The port ``Upstreams``: an answer after a moment, whoever is asked."""

    async def open(self, call: UpstreamCall) -> WholeAnswer:
        await asyncio.sleep(UPSTREAM_SECONDS)
        return WholeAnswer()


@dataclass(slots=True)
class TimedReply:
    """The port ``Reply``: notes when the first bytes came."""

    started: bool = False
    first_byte_at: float = 0.0
    finished: bool = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True

    async def write(self, data: bytes) -> None:
        self.first_byte_at = self.first_byte_at or time.perf_counter()

    async def finish(self, data: bytes = b"") -> None:
        self.finished = True


@dataclass(slots=True)
class Cost:
    """What the rounds of one journal took, a figure a round: CPU of a request, and its median first byte."""

    cpu_microseconds: list[float] = field(default_factory=list)
    first_byte_milliseconds: list[float] = field(default_factory=list)


def prove(size: int, ground: Ground) -> Proven:
    """``size`` pairs of rounds; of each kind the least disturbed one counts."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        on, off = runner.run(_rounds(size, ground))
    cpu = min(on.cpu_microseconds) - min(off.cpu_microseconds)
    wait = min(on.first_byte_milliseconds) - min(off.first_byte_milliseconds)
    figure = (
        f"{size} × {ROUND_REQUESTS} requests with and without the journal: {cpu:+.0f} µs CPU a request "
        f"(of {min(on.cpu_microseconds):.0f}), {wait:+.2f} ms to the median first byte"
    )
    short = size >= MEASURED_ROUNDS_MIN and cpu > CPU_MICROSECONDS_MAX
    return Proven(figure=figure, missed=f"{CPU_MICROSECONDS_MAX:.0f} µs" if short else None)


async def _rounds(size: int, ground: Ground) -> tuple[Cost, Cost]:
    on, off = Cost(), Cost()
    async with _journal(ground.folder) as journal:
        real, free = _conductor(journal), _conductor(NoJournal())
        await _round(real, Cost())
        await _round(free, Cost())
        for number in range(size):
            pair = [(real, on), (free, off)]
            for conductor, cost in pair if number % 2 else reversed(pair):
                await _round(conductor, cost)
            ground.tick(1)
    return on, off


@asynccontextmanager
async def _journal(folder: Path) -> AsyncIterator[JournalWriter]:
    journal = JournalWriter.open(folder, journal_id(datetime.now(UTC), os.urandom(8)))
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
    )


async def _round(conductor: Conductor, cost: Cost) -> None:
    numbers, waits = count(), []

    async def worker() -> None:
        while next(numbers) < ROUND_REQUESTS:
            waits.append(await _request(conductor))

    began = time.process_time()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    cost.cpu_microseconds.append((time.process_time() - began) * 1e6 / ROUND_REQUESTS)
    cost.first_byte_milliseconds.append(median(waits) * 1e3)


async def _request(conductor: Conductor) -> float:
    """One exchange; how long its first byte took, in seconds."""
    began, reply = time.perf_counter(), TimedReply()
    exchange = conductor.prepare(conductor.ids.request_id(), ALICE, _BODY, {})
    await conductor.run(exchange, reply, Watch(heartbeat=None))
    assert reply.finished and reply.first_byte_at, "an answer came whole"
    return reply.first_byte_at - began
