"""Whoever is aborted, killed or cut off from Redis leaves no hold behind and is refused nothing that he may have (L6).

Clients of whom a third leaves, workers that are killed, a Redis that stands still: budgets and limits bear all of it,
so every refusal is a false one; and when the leases of the killed are over, exactly what is not spent can be held.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, Final

import psutil

from bench.audit import pico
from gateway.adapters.embedded import embedded
from tests.prove import races
from tests.prove.budgets import ask_or_leave
from tests.prove.client import Answer, Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.races import PACE, kind
from tests.prove.stage import Stage, staged
from tests.prove.valkey import Kept, Valkey, posted, valkey

WORKERS, WORKERS_SMALL = 4, 2
SMALL: Final = 1_000
REAL_LEASES_FROM: Final = 10_000
"""From so many requests on, leases are waited for; below, a minute is taken from them."""
LEASE_SECONDS: Final = 60.0
REQUESTS_PER_KILL: Final = 1_000
REQUESTS_PER_STALL: Final = 2_000
AT_ONCE, AT_ONCE_SMALL = 64, 24
STALL_SECONDS: Final = (0.5, 3.0)
BUDGET_USD: Final = "1000000"
AMPLE: Final = {"rpm": 10_000_000, "concurrency": 4_000}
TERMS: Final = {"on_outage": "admit"}
CUT_SECONDS: Final = 2.0
"""A connection to a killed worker may be found dead so much later."""
READY_SECONDS_MAX: Final = 60.0
QUIET_SECONDS_MAX: Final = 45.0
POLL_SECONDS: Final = 0.2


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One request and its end. ``answer`` None: its client left."""

    began: float
    ended: float
    answer: Answer | None


@dataclass(slots=True)
class _Load:
    """Clients of one key, and what was done to those who serve them."""

    stage: Stage
    secret: str
    size: int
    asked: list[_Asked] = field(default_factory=list)
    killed_at: list[float] = field(default_factory=list)
    stalls: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, numbers: Any, ground: Ground) -> None:
        async with Client(url=self.stage.ours.url, secret=self.secret, is_fresh=True) as client:
            for number in numbers:
                began = time.monotonic()
                answer = await ask_or_leave(client, number)
                self.asked.append(_Asked(began=began, ended=time.monotonic(), answer=answer))
                self.moved.set()
                ground.tick(1)

    async def until(self, count: int) -> None:
        while len(self.asked) < min(count, self.size):
            self.moved.clear()
            await self.moved.wait()

    def is_cut(self, asked: _Asked) -> bool:
        """Whether an end without an answer, or within one, is what a killed worker's connections see."""
        assert asked.answer is not None
        has_no_word = asked.answer.status in (None, 200) and not asked.answer.complete
        return has_no_word and any(asked.began - CUT_SECONDS <= at <= asked.ended for at in self.killed_at)


def prove(size: int, ground: Ground) -> Proven:
    """``size`` requests; a worker is killed in every thousand, and Redis stands still in every two thousand."""
    workers = WORKERS_SMALL if size < SMALL else WORKERS
    with (
        valkey(ground.folder / "redis") as server,
        staged(ground.folder / "gateway", seed=10, simulator=PACE, workers=workers, redis_url=server.url) as stage,
        embedded(stage.ours.data_dir) as database_url,
    ):
        return asyncio.run(_prove(stage, server, database_url, size, ground))


async def _prove(stage: Stage, server: Valkey, database_url: str, size: int, ground: Ground) -> Proven:
    needed = await races.needed(stage)
    key_id, secret = await asyncio.to_thread(stage.admin.create_key, "stormy", **AMPLE)
    await asyncio.to_thread(stage.admin.set_budget, key_id, BUDGET_USD, period="total", **TERMS)
    load, numbers = _Load(stage, secret, size), iter(range(size))
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE_SMALL if size < SMALL else AT_ONCE):
            group.create_task(load.client(numbers, ground))
        group.create_task(_kill(load, max(1, size // REQUESTS_PER_KILL)))
        group.create_task(_stall(load, server, max(1, size // REQUESTS_PER_STALL)))
    stayed = [asked.answer for asked in load.asked if asked.answer is not None and asked.answer.complete]
    await races.settled(stage, key_ids={key_id}, expected=len(stayed))
    kept, differences = await _afterwards(load, server, database_url)
    ledger, without_row = await _ledger(stage, key_id)
    spent = sum(pico(Decimal(row["cost"])) for row in ledger)
    async with Client(url=stage.ours.url, secret=secret) as client:
        is_free, is_exact = await races.ends_even(stage, key_id, client, spent, needed, **TERMS)
    violations = [
        *differences,
        *(f"upstream call without a ledger row: {identity}" for identity in without_row),
        *(f"after the leases there are {what}" for what in kept.left_over),
        *([] if is_free else ["a hold is left: what is not spent cannot be held"]),
        *([] if is_exact else ["a budget admits a pico-dollar more than is left of it"]),
    ]
    return _judged(load, stayed, ledger, kept, violations)


async def _kill(load: _Load, kills: int) -> None:
    """SIGKILL to one worker at a time, when the ones before have come back."""
    chance = Random(kills)
    for number in range(kills):
        await load.until((2 * number + 1) * load.size // (2 * kills))
        await _all_serve(load.stage)
        worker = chance.choice(_workers(load.stage))
        load.killed_at.append(time.monotonic())
        worker.kill()


async def _stall(load: _Load, server: Valkey, stalls: int) -> None:
    """SIGSTOP to Redis for a while, from a hiccup to longer than anybody waits for it."""
    chance = Random(stalls)
    for number in range(stalls):
        await load.until((2 * number + 1) * load.size // (2 * stalls + 1))
        await asyncio.to_thread(server.stop)
        try:
            await asyncio.sleep(chance.uniform(*STALL_SECONDS))
        finally:
            server.go_on()
        load.stalls += 1


def _workers(stage: Stage) -> list[psutil.Process]:
    assert stage.ours.running is not None
    children = psutil.Process(stage.ours.running.pid).children()
    return [child for child in children if "gateway.cli.worker" in " ".join(child.cmdline())]


async def _all_serve(stage: Stage) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while await asyncio.to_thread(stage.ours.workers_ready) < stage.ours.workers:
        assert time.monotonic() < deadline, "a killed worker was not started again"
        await asyncio.sleep(POLL_SECONDS)


# --- afterwards ------------------------------------------------------------------------------------------------------


async def _ledger(stage: Stage, key_id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the key, what is recovered after the killed included; and calls that have none."""
    calls = await asyncio.to_thread(stage.simulators.calls, stage.mark)
    called = frozenset(str(call["attempt_id"]) for call in calls)
    rows = await asyncio.to_thread(stage.admin.settled_ledger, since=stage.since, expected=called)
    return [row for row in rows if row["key_id"] == key_id], sorted(called - {row["attempt_id"] for row in rows})


async def _afterwards(load: _Load, server: Valkey, database_url: str) -> tuple[Kept, list[str]]:
    """What Redis has when the leases of the killed are over, and where the database has something else."""
    await _all_serve(load.stage)
    if load.size >= REAL_LEASES_FROM:
        await asyncio.sleep(max(0.0, load.killed_at[-1] + LEASE_SECONDS - time.monotonic()))
    else:
        await asyncio.to_thread(server.let_leases_end)
    deadline = time.monotonic() + QUIET_SECONDS_MAX
    while True:
        kept = await asyncio.to_thread(server.kept)
        there = await asyncio.to_thread(posted, database_url, kept.spent)
        differences = [
            f"{name}: Redis has {here} spent, the database {there[name]}"
            for name, here in kept.spent.items()
            if here != there[name]
        ]
        if not (differences or kept.left_over) or time.monotonic() > deadline:
            return kept, differences
        await asyncio.sleep(POLL_SECONDS)


def _judged(
    load: _Load, stayed: Sequence[Answer], ledger: Sequence[dict[str, Any]], kept: Kept, violations: list[str]
) -> Proven:
    aborted = sum(asked.answer is None for asked in load.asked)
    failed = [asked for asked in load.asked if asked.answer is not None and not asked.answer.complete]
    cut = [asked for asked in failed if load.is_cut(asked)]
    others = Counter(kind(asked.answer) for asked in failed if asked.answer is not None and not load.is_cut(asked))
    refused = sum(asked.answer is not None and asked.answer.status in (402, 429, 503) for asked in failed)
    succeeded = Counter(str(row["request_id"]) for row in ledger if row["status"] == "succeeded")
    once = [answer for answer in stayed if succeeded[str(answer.request_id)] == 1]
    costs = {str(row["request_id"]): pico(Decimal(row["cost"])) for row in ledger if row["status"] == "succeeded"}
    untrue = [each for each in once if each.cost_pico is not None and each.cost_pico != costs[str(each.request_id)]]
    twice = [identity for identity, count in Counter(row["attempt_id"] for row in ledger).items() if count > 1]
    violations += [f"{count} × {what}" for what, count in others.items()]
    violations += [
        f"{answer.request_id} is in the ledger {succeeded[str(answer.request_id)]} times"
        for answer in stayed
        if succeeded[str(answer.request_id)] != 1
    ]
    violations += [f"{answer.request_id} costs something else in the ledger" for answer in untrue]
    violations += [f"attempt {identity} is in the ledger twice" for identity in twice]
    if not any(row["error_type"] == "crashed" for row in ledger):
        violations.append("no kill met an open request, so nothing was proven")
    figure = (
        f"{load.size:,} requests, {aborted:,} left by their clients, {len(load.killed_at)} workers killed under "
        f"{len(cut):,} of them, Redis stopped {load.stalls} times: open holds after their leases {kept.holds}, "
        f"false refusals {refused}, other errors {sum(others.values()) - refused}; "
        f"{len(stayed):,} answers acknowledged, in the ledger once {len(once):,}"
    )
    return Proven(figure=figure, violations=told(violations))
