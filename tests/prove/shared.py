"""Whatever becomes of Redis at load, no strict budget is overspent, and soon it has what the database has (law L6).

Every budget bears so many requests and costs them nearly whole: one admitted too many would overspend it. When Redis is
emptied, killed, replaced or stopped, some are held to the last request with more who ask, others by half.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, Final

from bench.audit import pico
from gateway.adapters.embedded import embedded
from gateway.core.money import Money
from tests.prove import races
from tests.prove.client import Answer, Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.races import is_refused, kind
from tests.prove.stage import Stage, staged
from tests.prove.valkey import Kept, Valkey, posted, valkey

WORKERS, WORKERS_SMALL = 4, 2
SMALL_EVENTS: Final = 3
FITS: Final = 12
CLIENTS: Final = (16, 16, 6, 6)
"""So many clients ask with each key of a batch: two are crowded."""
CROWDED: Final = 2
PROBERS: Final = 6
TOKENS: Final = 800
"""An answer takes three seconds, longer than Redis is gone for, and costs 19 of 20 parts of what it holds, so that
twelve leave no room for another."""
SIMULATOR: Final = {"chunk_ms": 120.0, "tokens_per_chunk": 32}
PROBE_TOKENS: Final = 8
PROBE_SECONDS: Final = 0.05
AGAIN_SECONDS: Final = 0.2
DEAD_SECONDS: Final = 1.0
STOPPED_SECONDS: Final = 2.5
BACK_SECONDS_MAX: Final = 5.0
WELL_SECONDS: Final = 2.0
"""Service is back where so long nobody was refused."""
WELL_PROBES: Final = 20
PATIENCE_SECONDS: Final = 45.0
ONLY: Final = {"provider": {"only": ["moonshot"]}}
"""One price, so that an answer costs nearly what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that becomes of Redis. From ``mends`` on, it could be asked again."""

    name: str
    breaks: Callable[[Valkey], None]
    seconds: float
    mends: Callable[[Valkey], None]


EVENTS: Final = (
    Event(name="flushed", breaks=lambda _: None, seconds=0.0, mends=Valkey.flush),
    Event(name="killed", breaks=Valkey.kill, seconds=DEAD_SECONDS, mends=Valkey.start),
    Event(name="stopped", breaks=Valkey.stop, seconds=STOPPED_SECONDS, mends=Valkey.go_on),
    Event(name="replaced", breaks=Valkey.kill, seconds=0.0, mends=Valkey.start),
)


@dataclass(slots=True)
class _Load:
    """Clients of strict budgets that are used up, one batch after the other, and of one that never is."""

    stage: Stage
    ample: tuple[str, str]
    chance: Random = field(default_factory=lambda: Random(9))
    keys: dict[str, str] = field(default_factory=dict)
    batch: list[str] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    probes: list[tuple[float, float, Answer]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def had(self, key_id: str) -> int:
        """How many requests of a key a provider was or is asked for, as far as its clients know."""
        return sum(answer.complete for answer in self.answers[key_id])

    def refused(self, key_id: str) -> int:
        """How often it was told that a budget of a key is used up."""
        return sum(map(is_refused, self.answers[key_id]))

    async def until(self, reached: Callable[[], bool]) -> bool:
        """Waits for what answers bring about, not for ever; whether it came to pass."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not reached():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    async def client(self, place: int) -> None:
        """Asks with a key of each batch; whoever is refused asks again a little later."""
        while not self.ended:
            key_id = self.batch[place]
            answer = await _ask(self.stage, self.keys[key_id], TOKENS, stream=self.chance.random() < 0.5)
            self.answers[key_id].append(answer)
            self.changed.set()
            if not answer.complete:
                await asyncio.sleep(AGAIN_SECONDS)

    async def prober(self) -> None:
        while not self.ended:
            began = time.monotonic()
            answer = await _ask(self.stage, self.ample[1], PROBE_TOKENS, stream=False)
            self.probes.append((began, time.monotonic(), answer))
            self.changed.set()
            await asyncio.sleep(PROBE_SECONDS)

    def well_since(self, moment: float) -> float | None:
        """For how long after a moment the ample budget was refused or not answered; None: it still may be."""
        last = max((ended for _, ended, answer in self.probes if ended > moment and not answer.complete), default=0.0)
        since = max(last, moment)
        well = [ended for began, ended, answer in self.probes if began > since and answer.complete]
        if len(well) < WELL_PROBES or time.monotonic() - since < WELL_SECONDS:
            return None
        return max(min(well), last) - moment


@dataclass(slots=True, kw_only=True)
class _Books:
    """What was spent of each strict budget, by every book, once all is quiet."""

    ledger: list[dict[str, Any]]
    kept: Kept
    posted: dict[str, int]

    @property
    def spent(self) -> Counter[str]:
        spent: Counter[str] = Counter()
        for row in self.ledger:
            spent[str(row["key_id"])] += pico(Decimal(row["cost"]))
        return spent

    @property
    def differences(self) -> list[str]:
        """Windows of which Redis and the database, or the ledger, do not say the same."""
        spent = self.spent
        return [
            f"{name}: Redis has {there}, the database {self.posted[name]}, the ledger {spent[_key_of(name)]}"
            for name, there in self.kept.spent.items()
            if not there == self.posted[name] == spent[_key_of(name)]
        ]


def prove(size: int, ground: Ground) -> Proven:
    """``size`` events, in turn, each with budgets of its own for twelve requests."""
    workers = WORKERS_SMALL if size <= SMALL_EVENTS else WORKERS
    with (
        valkey(ground.folder / "redis") as server,
        staged(ground.folder / "gateway", seed=9, simulator=SIMULATOR, workers=workers, redis_url=server.url) as stage,
        embedded(stage.ours.data_dir) as database_url,
    ):
        return asyncio.run(_prove(stage, server, database_url, size, ground))


async def _prove(stage: Stage, server: Valkey, database_url: str, size: int, ground: Ground) -> Proven:
    limit = FITS * await _needed(stage)
    load = _Load(stage, await asyncio.to_thread(stage.admin.create_key, "ample", budget="1000", period="total"))
    back: dict[str, float] = {}
    violations: list[str] = []
    await _next_batch(load, limit)
    async with asyncio.TaskGroup() as group:
        for place, clients in enumerate(CLIENTS):
            for _ in range(clients):
                group.create_task(load.client(place))
        for _ in range(PROBERS):
            group.create_task(load.prober())
        try:
            for number in range(size):
                event = EVENTS[number % len(EVENTS)]
                seconds = await _happens(load, server, event, violations)
                back[event.name] = max(back.get(event.name, 0.0), seconds)
                if number + 1 < size:
                    await _next_batch(load, limit)
                ground.tick(1)
        finally:
            load.ended = True
    books = await _read(load, server, database_url)
    return _judged(load, books, size, limit, back, violations)


async def _next_batch(load: _Load, limit: int) -> None:
    """Further keys, each with a budget for exactly so many requests."""
    batch = []
    for _ in CLIENTS:
        name = f"strict-{len(load.keys)}"
        key_id, secret = await asyncio.to_thread(
            load.stage.admin.create_key, name, budget=str(Money(limit)), period="month"
        )
        load.keys[key_id], load.answers[key_id] = secret, []
        batch.append(key_id)
    load.batch = batch


async def _happens(load: _Load, server: Valkey, event: Event, violations: list[str]) -> float:
    """One event while some of the batch is under way, until it is used up; the seconds until service was back."""
    batch = load.batch
    if not await load.until(lambda: all(load.refused(key_id) for key_id in batch[:CROWDED])):
        violations.append(f"{event.name}: nobody was refused before it, so nothing was full")
    await asyncio.to_thread(event.breaks, server)
    await asyncio.sleep(event.seconds)
    moment = time.monotonic()
    await asyncio.to_thread(event.mends, server)
    if not await load.until(lambda: load.well_since(moment) is not None):
        violations.append(f"{event.name}: no service {PATIENCE_SECONDS:g} s after it")
    seconds = load.well_since(moment) or PATIENCE_SECONDS
    if not await load.until(lambda: all(load.had(key_id) >= FITS for key_id in batch)):
        left = {key_id: FITS - load.had(key_id) for key_id in batch if load.had(key_id) < FITS}
        violations.append(f"{event.name}: budgets admit less than they bear afterwards: {left}")
    before = {key_id: load.refused(key_id) for key_id in batch}
    await load.until(lambda: all(load.refused(key_id) > before[key_id] for key_id in batch))
    return seconds


async def _needed(stage: Stage) -> int:
    return await races.needed(stage, limit=TOKENS, **ONLY)


async def _ask(stage: Stage, secret: str, tokens: int, *, stream: bool) -> Answer:
    async with Client(url=stage.ours.url, secret=secret, is_fresh=True) as client:
        return await client.ask(races.body(tokens, stream=stream, limit=TOKENS, **ONLY))


# --- afterwards ------------------------------------------------------------------------------------------------------


async def _read(load: _Load, server: Valkey, database_url: str) -> _Books:
    """Every book, once they agree or have had time enough to."""
    answers = [answer for asked in load.answers.values() for answer in asked if answer.complete]
    answers += [answer for _, _, answer in load.probes if answer.complete]
    key_ids = {*load.keys, load.ample[0]}
    ledger = await races.settled(load.stage, key_ids=key_ids, expected=len(answers))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        kept = await asyncio.to_thread(server.kept)
        there = await asyncio.to_thread(posted, database_url, kept.spent)
        books = _Books(ledger=ledger, kept=kept, posted=there)
        if not (books.differences or kept.left_over) or time.monotonic() > deadline:
            return books
        await asyncio.sleep(0.5)


def _judged(load: _Load, books: _Books, size: int, limit: int, back: dict[str, float], violations: list[str]) -> Proven:
    spent = books.spent
    overspent = {key_id: spent[key_id] - limit for key_id in load.keys if spent[key_id] > limit}
    probes = [answer for _, _, answer in load.probes]
    answers = [answer for asked in load.answers.values() for answer in asked] + probes
    unknown = sum(_is_unknowable(answer) for answer in answers)
    others = Counter(kind(answer) for answer in answers if not _is_told(answer))
    others += Counter(kind(answer) for answer in probes if is_refused(answer))
    beyond = sum(max(0, load.had(key_id) - FITS) for key_id in load.keys)
    admitted = sum(load.had(key_id) for key_id in load.keys)
    slowest = max(back.values())
    violations += [f"overspent by {Money(amount)} USD: {key_id}" for key_id, amount in overspent.items()]
    violations += [f"{beyond} admitted that did not fit"] if beyond else []
    violations += [f"{count} × {what}" for what, count in others.items()]
    violations += [*books.differences, *(f"afterwards there are {what}" for what in books.kept.left_over)]
    violations += _not_once(answers, books.ledger)
    if f"key:{load.ample[0]}/total/" not in books.kept.spent:
        violations.append("Redis does not have the window of the ample budget, so nothing was compared")
    figure = (
        f"{size} losses of Redis, {admitted:,} admitted by {len(load.keys)} strict budgets for {FITS}: "
        f"overspent {Money(sum(overspent.values()))} USD, admitted beyond what fits {beyond}; back after "
        f"{', '.join(f'{seconds:.1f} s ({name})' for name, seconds in back.items())}; {unknown:,} refused meanwhile, "
        f"other errors {sum(others.values())}; {len(books.kept.spent)} windows, Redis and PostgreSQL differ in "
        f"{len(books.differences)}; open holds {books.kept.holds}"
    )
    is_late = slowest > BACK_SECONDS_MAX
    return Proven(
        figure=figure, violations=told(violations), missed=f"back in {BACK_SECONDS_MAX:g} s" if is_late else None
    )


def _not_once(answers: Sequence[Answer], ledger: Sequence[dict[str, Any]]) -> list[str]:
    """Complete answers that are not in the ledger exactly once."""
    succeeded = Counter(str(row["request_id"]) for row in ledger if row["status"] == "succeeded")
    return [
        f"{answer.request_id} is in the ledger {succeeded[str(answer.request_id)]} times"
        for answer in answers
        if answer.complete and succeeded[str(answer.request_id)] != 1
    ]


def _is_unknowable(answer: Answer) -> bool:
    return answer.status == 503 and '"metering_unavailable"' in answer.trouble


def _is_told(answer: Answer) -> bool:
    """Whether it ended in a way that is promised."""
    return answer.complete or is_refused(answer) or _is_unknowable(answer)


def _key_of(window: str) -> str:
    return window.partition("/")[0].removeprefix("key:")
