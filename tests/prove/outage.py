"""PostgreSQL may be gone for as long as it likes: no client learns of it, and afterwards nothing is missing (L3)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Final

import psutil
import psycopg

from gateway.adapters.embedded import EmbeddedPostgres
from gateway.adapters.journal import JournalWriter, journal_id
from gateway.core.ledger import LedgerEntry
from tests.integration.samples import ROLLED_UP
from tests.prove.client import Answer
from tests.prove.proof import Ground, Proven, told
from tests.prove.records import SUMS, settlements, sums_of
from tests.prove.stage import Stage, differences, staged
from tests.prove.traffic import paced

CLIENTS: Final = 8
ANSWERS_AROUND: Final = 4 * CLIENTS
"""So many answers come before the database goes, and after it is back."""
OUTAGE_SECONDS_MORE_MAX: Final = 180.0
ROWS_PER_SECOND: Final = 20_000
BACKLOG_ROWS_PER_SECOND: Final = 5_000
BACKLOG_ROWS_MAX: Final = 500_000
BACKLOG_ROWS_MIN: Final = 20_000
"""A smaller backlog is gone before its rate can be read, and is not left."""
SYNCED_ROWS: Final = 10_000
BACKLOG_KEY: Final = "key_backlog"
GONE_SECONDS_MAX: Final = 30.0
DRAIN_SECONDS_MAX: Final = 180.0
POLL_SECONDS: Final = 0.05
SIMULATOR: Final = {"first_byte_ms": 40.0, "tokens_per_chunk": 8, "chunk_ms": 5.0}

_ROLLED_UP: Final = (
    f"SELECT {', '.join(f'coalesce(sum({name}), 0)::bigint' for name in SUMS)} FROM {ROLLED_UP} "
    "WHERE grain = 'quarter' AND key_id = %s"
)
_COUNT: Final = f"SELECT coalesce(sum(attempts), 0)::bigint FROM {ROLLED_UP} WHERE grain = 'quarter' AND key_id = %s"


@dataclass(slots=True)
class _Load:
    """Clients who keep asking, whatever happens to the database."""

    stage: Stage
    numbers: count[int] = field(default_factory=count)
    answers: list[Answer] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    async def client(self) -> None:
        while not self.ended:
            number = next(self.numbers)
            body = paced(number, output_tokens=40 + number % 80, stream=number % 3 > 0)
            self.answers.append(await self.stage.client.ask(body))
            self.answered.set()

    async def more(self, answers: int) -> None:
        """Waits for so many more answers."""
        until = len(self.answers) + answers
        while len(self.answers) < until:
            self.answered.clear()
            await self.answered.wait()


def prove(size: int, ground: Ground) -> Proven:
    """``size`` seconds without a database, and a backlog that grows with them."""
    rows = min(size * BACKLOG_ROWS_PER_SECOND, BACKLOG_ROWS_MAX)
    rows = rows if rows >= BACKLOG_ROWS_MIN else 0
    with staged(ground.folder, seed=3, simulator=SIMULATOR) as stage:
        database = EmbeddedPostgres(stage.ours.data_dir)
        try:
            return asyncio.run(_outage(stage, database, size, rows, ground))
        finally:
            database.stop()


async def _outage(stage: Stage, database: EmbeddedPostgres, seconds: int, rows: int, ground: Ground) -> Proven:
    load = _Load(stage)
    backlog: tuple[int, ...] | None = None
    async with stage.client, asyncio.timeout(seconds + OUTAGE_SECONDS_MORE_MAX), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(load.client())
        try:
            await load.more(ANSWERS_AROUND)
            await asyncio.to_thread(_kill, stage)
            before = len(load.answers)
            for _ in range(seconds):
                await asyncio.sleep(1)
                ground.tick(1)
            during = len(load.answers) - before
            if rows:
                backlog = await asyncio.to_thread(_leave_backlog, stage, rows)
            url = await asyncio.to_thread(database.start)
            await load.more(ANSWERS_AROUND)
        finally:
            load.ended = True
    rate, rolled_up = await asyncio.to_thread(_drained, url, rows) if rows else (None, None)
    books, verdict = await stage.audit(load.answers)
    failed = [answer for answer in load.answers if not answer.complete]
    violations = [f"a client saw: {answer.trouble}" for answer in failed] + differences(verdict)
    if rolled_up != backlog:
        violations.append(f"the backlog sums to {backlog}, and in the database to {rolled_up}")
    if not during:
        violations.append("no answer came while the database was away, so nothing was proven")
    figure = (
        f"{seconds} s without PostgreSQL: {during:,} answers meanwhile, client errors {len(failed)}; "
        f"{rows + len(books.ledger):,} rows drained{'' if rate is None else f' at {rate:,.0f} a second'}, "
        f"sums {'differ' if violations else 'equal'}"
    )
    short = rate is not None and rate < ROWS_PER_SECOND
    return Proven(figure=figure, violations=told(violations), missed=f"{ROWS_PER_SECOND:,} rows/s" if short else None)


def _kill(stage: Stage) -> None:
    """SIGKILL to the postmaster, as a power cut would; its backends see that and end."""
    assert stage.ours.running is not None
    (pid,) = stage.ours.running.also()
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS_MAX)
    assert not alive, "a backend outlives its postmaster"


def _leave_backlog(stage: Stage, rows: int) -> tuple[int, ...]:
    """Leaves what another worker settled before it died: a journal of that many rows. Returns their sums."""
    journal = JournalWriter.open(stage.ours.data_dir, journal_id(datetime.now(UTC), os.urandom(8)))

    def written() -> Iterator[LedgerEntry]:
        for number, each in enumerate(settlements(rows, seed=4, key=BACKLOG_KEY), start=1):
            position = journal.append(each)
            if number % SYNCED_ROWS == 0:
                asyncio.run(journal.durable(position))
            yield each

    try:
        return sums_of(written())
    finally:
        journal.close()


def _drained(url: str, rows: int) -> tuple[float, tuple[int, ...]]:
    """How many rows a second arrived, from the first that was seen to the last, and what they add up to."""
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    with psycopg.connect(url, autocommit=True) as db:
        first, began = _until(db, lambda seen: seen > 0, deadline)
        last, ended = _until(db, lambda seen: seen >= rows, deadline)
        sums = db.execute(_ROLLED_UP, [BACKLOG_KEY]).fetchone()
    assert sums is not None
    return (last - first) / max(ended - began, POLL_SECONDS), tuple(sums)


def _until(db: psycopg.Connection, reached: Callable[[int], bool], deadline: float) -> tuple[int, float]:
    while True:
        row = db.execute(_COUNT, [BACKLOG_KEY]).fetchone()
        assert row is not None
        if reached(row[0]) or time.monotonic() > deadline:
            return row[0], time.monotonic()
        db.execute("SELECT pg_sleep(%s)", [POLL_SECONDS])
