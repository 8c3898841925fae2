"""At load, through flushes, kills, silences and cuts: no budget overspent, no false refusal, nothing left held."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from gateway.adapters.clock import SystemClock
from gateway.adapters.memory import MemoryBalances, MemorySharedState
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.adapters.redis.membership import State
from gateway.core.allowance import Exceeded, Granted
from tests.contract.allowances import TEAM, budget, claim, demand, limits, posting, whole_usd
from tests.http.house import eventually
from tests.integration.test_redis_allowances import PREFIX, Server, now, this_month

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

LIMIT: Final = 30
CLIENTS: Final = 45
TROUBLES: Final = ("flush", "silence", "cut", "kill", "forget", "flush", "silence")


class Storm:
    """Clients that use a budget, and what they know of it."""

    def __init__(self, workers: list[RedisAllowances], chance: random.Random) -> None:
        self.workers = workers
        self.chance = chance
        self.claims = [claim(budget(whole_usd(LIMIT)), now()), claim(budget(whole_usd(10_000), scope=TEAM), now())]
        self.is_over = False
        self.spent = self.open = self.most = self.granted = self.false_refusals = 0

    async def client(self, number: int) -> None:
        worker = self.workers[number % len(self.workers)]
        while not self.is_over:
            asked = demand(budgets=self.claims, limits=[limits(concurrency=1_000)])
            taking = asyncio.create_task(worker.take(asked))
            if self.chance.random() < 0.05:
                await asyncio.sleep(self.chance.random() * 0.01)
                taking.cancel()
            try:
                verdict = await taking
            except asyncio.CancelledError:
                continue
            if isinstance(verdict, Granted):
                await self.use(worker, asked.hold_id)
            else:
                self.false_refusals += isinstance(verdict, Exceeded) and verdict.claim is self.claims[1]
                await asyncio.sleep(0.02)

    async def use(self, worker: RedisAllowances, hold_id: str) -> None:
        """A request is under way for a moment; a few cost all that was held for them."""
        self.granted += 1
        self.open += 1
        self.most = max(self.most, self.spent + self.open)
        await asyncio.sleep(self.chance.random() * 0.05)
        costs = self.chance.random() < 0.003
        if costs:
            worker.post(posting(hold_id, whole_usd(1), at=now()))
        worker.release(hold_id, 10)
        self.open -= 1
        self.spent += costs


def trouble(server: Server, kind: str) -> Callable[[], None]:
    def make() -> None:
        if kind == "kill":
            server.kill()
            server.start()
            return
        with server.client() as client:
            match kind:
                case "flush":
                    client.flushall()
                case "silence":
                    client.execute_command("CLIENT", "PAUSE", 700, "ALL")
                case "cut":
                    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                case _:
                    client.script_flush()

    return make


async def test_a_storm_overspends_nothing(tmp_path: Path) -> None:
    """Three workers, forty-five clients, seven troubles."""
    server, balances, shared = Server(tmp_path), MemoryBalances(), MemorySharedState()
    server.start()
    workers = [
        RedisAllowances(server.url, name, balances, shared, clock=SystemClock(), prefix=PREFIX)
        for name in ("w1", "w2", "w3")
    ]
    stop = asyncio.Event()
    running = [asyncio.create_task(worker.run(stop)) for worker in workers]
    storm = Storm(workers, random.Random(7))
    clients = [asyncio.create_task(storm.client(number)) for number in range(CLIENTS)]
    try:
        for kind in TROUBLES:
            before = storm.granted + storm.spent
            await asyncio.to_thread(trouble(server, kind))
            await eventually(lambda: all(worker.state is State.OK for worker in workers), seconds=10)
            await eventually(lambda before=before: storm.granted > before + 20 or storm.spent >= LIMIT, seconds=10)
        storm.is_over = True
        await asyncio.gather(*clients)
        before = workers[0].generation
        await asyncio.to_thread(trouble(server, "flush"))
        await eventually(lambda: all(worker.generation > before for worker in workers), seconds=10)
        await eventually(lambda: all(worker.state is State.OK for worker in workers), seconds=10)
        for worker in workers:
            await worker.flushed()
        figures = (await workers[0].figures([this_month()]))[this_month().key]
        assert (figures.spent, figures.held) == (whole_usd(storm.spent).pico, 0)
        assert storm.most <= LIMIT
        assert storm.false_refusals == 0
        with server.client() as client:
            assert client.hgetall(f"{{{PREFIX}}}:{workers[0].generation}:running") == {}
            assert client.zcard(f"{{{PREFIX}}}:{workers[0].generation}:leases") == 0
    finally:
        storm.is_over = True
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        stop.set()
        await asyncio.gather(*running)
        server.kill()
