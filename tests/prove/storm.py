"""Whatever is killed, an acknowledged answer is in the ledger once and every call has its row (laws L2, L3, L4)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Final

from bench.audit import Books, Verdict
from tests.prove.client import Answer
from tests.prove.proof import Ground, Proven, told
from tests.prove.stage import Stage, differences, staged
from tests.prove.traffic import paced

STREAMS: Final = (60, 100)
"""So many streams are open when the kill comes."""
STREAMS_SMALL: Final = (8, 16)
SMALL_CYCLES: Final = 3
WHOLE_SHARE: Final = 0.1
FILL_SECONDS_MAX: Final = 60.0
SIMULATOR: Final = {"chunk_ms": 100.0, "tokens_per_chunk": 8, "first_byte_ms": 20.0}


@dataclass(slots=True)
class _Storm:
    """Clients who keep asking, and what the one who kills has to know of them."""

    stage: Stage
    chance: Random
    up: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    numbers: count[int] = field(default_factory=count)
    answers: list[Answer] = field(default_factory=list)
    finished: int = 0
    open: int = 0
    pieces: int = 0
    cut: int = 0
    ended: bool = False

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits for what the clients' pieces bring about."""
        while not reached():
            self.moved.clear()
            await self.moved.wait()


def prove(size: int, ground: Ground) -> Proven:
    """``size`` kills, each with its own number of streams open and after its own number of further pieces."""
    with staged(ground.folder, seed=2, simulator=SIMULATOR) as stage:
        storm, books, verdict = asyncio.run(_storm(stage, size, ground))
    found = Counter(each.kind for each in verdict.differences) + verdict.unlisted
    crashed = [row for row in books.ledger if row["error_type"] == "crashed"]
    unflagged = [row for row in crashed if (row["status"], row["usage_source"]) != ("abandoned", "estimated")]
    lost = found["acknowledged answer in the ledger"]
    figure = (
        f"{size} kills under {storm.cut:,} open streams, {len(books.acknowledged):,} answers acknowledged: "
        f"lost {lost}, twice {found['ledger rows of an attempt']}, without a row "
        f"{found['upstream call without a ledger row']}; "
        f"{len(crashed):,} recovered, {len(unflagged)} without a flag"
    )
    violations = differences(verdict) + [f"recovered without a flag: {row['attempt_id']}" for row in unflagged]
    if not crashed or not books.acknowledged:
        violations.append("no kill met an open stream, or no answer was acknowledged, so nothing was proven")
    return Proven(figure=figure, violations=told(violations))


async def _storm(stage: Stage, cycles: int, ground: Ground) -> tuple[_Storm, Books, Verdict]:
    storm = _Storm(stage, Random(cycles))
    storm.up.set()
    fewest, most = STREAMS_SMALL if cycles <= SMALL_CYCLES else STREAMS
    async with stage.client, asyncio.TaskGroup() as group:
        for _ in range(most):
            group.create_task(_client(storm))
        try:
            for _ in range(cycles):
                await _kill_once(storm, storm.chance.randint(fewest, most - most // 10))
                ground.tick(1)
            calm = storm.finished + most
            async with asyncio.timeout(FILL_SECONDS_MAX):
                await storm.until(lambda: storm.finished >= calm)
        finally:
            storm.ended = True
            storm.up.set()
    books, verdict = await stage.audit(storm.answers, killed=True)
    return storm, books, verdict


async def _kill_once(storm: _Storm, streams: int) -> None:
    """Waits for some answers to be whole, for the streams to be open and for more of them to pass; then kills."""
    finished = storm.finished + storm.chance.choice([0, streams // 2, streams])
    further = storm.chance.choice([0, storm.chance.randrange(1, 10 * streams)])
    async with asyncio.timeout(FILL_SECONDS_MAX):
        await storm.until(lambda: storm.finished >= finished and storm.open >= streams)
        pieces = storm.pieces + further
        await storm.until(lambda: storm.pieces >= pieces)
    storm.up.clear()
    storm.cut += storm.open
    await asyncio.to_thread(storm.stage.ours.kill)
    await asyncio.to_thread(storm.stage.ours.start)
    storm.up.set()


async def _client(storm: _Storm) -> None:
    """Asks again and again; while the gateway is down it waits for the next start, as a client with sense does."""
    while not storm.ended:
        number = next(storm.numbers)
        draw = Random(number)
        stream = draw.random() >= WHOLE_SHARE
        answer = await _ask(storm, paced(number, output_tokens=draw.randrange(8, 160), stream=stream))
        storm.answers.append(answer)
        storm.finished += answer.complete
        storm.moved.set()
        if not answer.complete:
            await storm.up.wait()


async def _ask(storm: _Storm, body: dict[str, Any]) -> Answer:
    is_open = False

    def on_piece() -> None:
        nonlocal is_open
        storm.open += not is_open
        is_open = True
        storm.pieces += 1
        storm.moved.set()

    try:
        return await storm.stage.client.ask(body, on_piece=on_piece)
    finally:
        storm.open -= is_open
