"""The scripts in Redis answer any sequence of calls as the book in core does, and hold and spend the same (law L12)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, Final

import msgspec
import pytest
import redis

from gateway.adapters.memory import MemoryBalances, MemorySharedState
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.core.allowance import AllowanceBook, Balance, BudgetClaim, Demand, Granted, Posting, Verdict
from gateway.core.budget import Budget, BudgetMode, BudgetWindow, Period, day_of, window_of
from gateway.core.limits import RateLimits
from gateway.core.money import PICO_PER_USD, Money
from gateway.core.postings import KnownWindows
from tests.contract.allowances import SteppedClock

STEPS: Final = 2_000
SCOPES: Final = ("key:a", "key:b", "team:t", "organisation")
ACCOUNTS: Final = ("account:p/1", "account:p/2", "account:q/1")
DOLLARS: Final = (0, 1, 2, 5, 9, 10_000_000, 123_456_789)


class Trial:
    """Two workers on one Redis, one book beside them, and the same calls to both."""

    def __init__(self, url: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = SteppedClock()
        self.balances = MemoryBalances()
        self.book = AllowanceBook()
        shared = MemorySharedState()
        self.workers = [
            RedisAllowances(
                url, f"journal-{n}", self.balances, shared, clock=self.clock, now_ms=self.clock.now_ms, prefix="trial"
            )
            for n in (1, 2)
        ]
        self.known = [KnownWindows(f"journal-{n}") for n in (1, 2)]
        self.open: list[dict[str, Demand]] = [{}, {}]
        self.windows: dict[str, BudgetWindow] = {}
        self.seen: Counter[str] = Counter()
        self.asked = 0

    async def enter(self) -> None:
        self.book.renew((), self.clock.now_ms())
        for worker in self.workers:
            await worker.membership.join()
            assert worker.membership.session is not None
            await worker.membership.try_to_open(worker.membership.session)

    # --- what may happen -------------------------------------------------------------------------------------------

    def money(self) -> Money:
        dollars = self.chance.choice(DOLLARS)
        pico = self.chance.choice((0, 1, 999_999_999_999, self.chance.randrange(PICO_PER_USD)))
        return Money(dollars * PICO_PER_USD + pico)

    def limits(self, scope: str) -> RateLimits:
        def maybe(*choices: int) -> int | None:
            return self.chance.choice((None, *choices))

        return RateLimits(
            scope=scope, name=scope, rpm=maybe(0, 2, 5, 30), tpm=maybe(100, 1_000, 9_000), concurrency=maybe(1, 3, 20)
        )

    def demand(self, hold_id: str) -> Demand:
        amount = self.money()
        claims = []
        for scope in self.chance.sample(SCOPES, self.chance.randrange(4)):
            period = self.chance.choice(list(Period))
            budget = Budget(
                budget_id=f"{scope}/{period}",
                scope=scope,
                name=scope,
                period=period,
                limit=Money(self.money().pico * self.chance.choice((1, 10, 1_000))),
                mode=self.chance.choice(list(BudgetMode)),
            )
            claims.append(BudgetClaim(budget, window_of(scope, period, self.clock.now())))
        return Demand(
            hold_id=hold_id,
            tokens=self.chance.choice((0, 1, 50, 900)),
            amount=amount,
            amount_min=Money(amount.pico // self.chance.choice((1, 7, 1_000))),
            limits=tuple(self.limits(scope) for scope in self.chance.sample(SCOPES, self.chance.randrange(3))),
            budgets=tuple(claims),
            accounts=tuple(self.limits(scope) for scope in self.chance.sample(ACCOUNTS, self.chance.randrange(3))),
        )

    async def step(self) -> None:
        which = self.chance.randrange(2)
        action = self.chance.choices(
            ("take", "retry", "post", "release", "renew", "sweep", "move", "learn", "again", "lose"),
            (40, 8, 20, 22, 3, 4, 20, 4, 2, 0.5),
        )[0]
        self.seen[action] += 1
        await getattr(self, action)(which)

    async def take(self, which: int) -> None:
        self.asked += 1
        await self.ask(which, self.demand(f"req_{self.asked}"), is_retry=False)

    async def again(self, which: int) -> None:
        """The same hold is asked for once more."""
        if self.open[which]:
            await self.ask(which, self.chance.choice(list(self.open[which].values())), is_retry=False)

    async def retry(self, which: int) -> None:
        if not self.open[which]:
            return
        before = self.chance.choice(list(self.open[which].values()))
        accounts = tuple(self.limits(scope) for scope in self.chance.sample(ACCOUNTS, self.chance.randrange(3)))
        await self.ask(which, msgspec.structs.replace(before, amount=self.money(), accounts=accounts), is_retry=True)

    async def ask(self, which: int, demand: Demand, *, is_retry: bool) -> None:
        for _, window in demand.budgets:
            self.windows[window.key] = window
            if window.key not in self.book.windows:
                self.book.open(window, self.balances.posted.get(window.key, {}))
            if window not in self.known[which]:
                self.book.tell(window.key, self.known[which].journal_id, self.known[which].add(window))
        worker, now = self.workers[which], self.clock.now_ms()
        expected: Verdict = self.book.retry(demand, now) if is_retry else self.book.take(demand, now)
        verdict = await (worker.retry(demand) if is_retry else worker.take(demand))
        assert verdict == expected
        self.seen[type(verdict).__name__] += 1
        if isinstance(verdict, Granted):
            self.open[which].setdefault(demand.hold_id, demand)

    async def post(self, which: int) -> None:
        hold_id = self.chance.choice([*self.open[which], "req_unknown"])
        cost = Money(self.money().pico * self.chance.choice((1, 1, 1, -1)))
        scopes = tuple(self.chance.sample(SCOPES, self.chance.randrange(1, 4)))
        posting = Posting(hold_id, scopes, day_of(self.clock.now(), "UTC"), cost)
        for window, balance in self.known[which].post(posting):
            self.book.tell(window.key, self.known[which].journal_id, balance)
        self.book.spend(hold_id, cost.pico)
        self.workers[which].post(posting)
        await self.workers[which].flushed()  # the other worker may ask next

    async def release(self, which: int) -> None:
        if self.open[which]:
            hold_id = self.chance.choice(list(self.open[which]))
            del self.open[which][hold_id]
            tokens = self.chance.choice((0, 10, 50, 5_000))
            self.book.release(hold_id, tokens)
            self.workers[which].release(hold_id, tokens)
            await self.workers[which].flushed()

    async def renew(self, which: int) -> None:
        """A worker says which of its holds are still under way; what has expired is over for it too."""
        self.book.renew(list(self.open[which]), self.clock.now_ms())
        membership = self.workers[which].membership
        assert membership.session is not None
        await self.workers[which].flushed()
        await membership.renew(membership.session, now=True)

    async def lose(self, which: int) -> None:
        """A worker loses its connection and tells all that it knows once more, which changes nothing but leases."""
        self.workers[which].membership.close()
        await self.workers[which].membership.join()
        self.book.renew(list(self.open[which]), self.clock.now_ms())

    async def sweep(self, which: int) -> None:
        for worker in self.workers:
            await worker.flushed()
        expired = self.book.sweep(self.clock.now_ms())
        membership = self.workers[which].membership
        assert membership.session is not None
        assert sorted(await membership.sweep(membership.session)) == sorted(expired)
        self.seen["expired"] += len(expired)
        for hold_id in expired:
            for which, open_holds in enumerate(self.open):
                open_holds.pop(hold_id, None)
                self.workers[which].books.holds.pop(hold_id, None)  # as if its worker were no more

    async def move(self, which: int) -> None:
        """Time goes on: within a second, a few, a minute; now and then to another day or month, or a step back."""
        kind = self.chance.choices((0, 1, 2, 3, 4, 5), (40, 30, 14, 1, 0.3, 5))[0]
        seconds = (
            self.chance.random(),
            self.chance.randrange(1, 20),
            self.chance.randrange(20, 75),
            86_400 * self.chance.random(),
            86_400 * self.chance.randrange(1, 40),
            -3 * self.chance.random(),
        )[kind]
        self.clock.move(seconds=seconds)
        self.book.renew((), self.clock.now_ms())  # both have seen this moment, before a step back
        await self.workers[which].figures([])

    async def learn(self, which: int) -> None:
        """Another journal has posted, or an older word of it arrives."""
        if self.windows:
            window = self.chance.choice(list(self.windows.values()))
            balance = Balance(self.money().pico, self.chance.randrange(1, 30))
            self.book.tell(window.key, "journal-3", balance)
            self.workers[which].books.learn(window, {"journal-3": balance})
            await self.workers[which].flushed()

    # --- what must be the same -------------------------------------------------------------------------------------

    async def compare(self) -> None:
        for worker in self.workers:
            await worker.flushed()
        windows = list(self.windows.values())
        figures = await self.workers[0].figures(windows)
        told = {key: (of.spent, of.held, dict(of.balances)) for key, of in figures.items()}
        for window in windows:
            state = self.book.windows[window.key]
            spent, held, balances = told[window.key]
            assert (spent, held) == (state.spent, state.held), window.key
            assert {journal: each for journal, each in state.balances.items() if each.rows} == balances

    def compare_running(self, url: str) -> None:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            running: Any = client.hgetall("{trial}:1:running")
            leases: Any = client.zrange("{trial}:1:leases", 0, -1)
        assert {scope: int(count) for scope, count in running.items()} == self.book.running()
        assert sorted(member.partition("/")[2] for member in leases) == sorted(self.book.holds)


@pytest.mark.parametrize("seed", [1, 2, 411])
def test_any_sequence_of_calls_is_answered_alike(redis_url: str, seed: int) -> None:
    """Takes, retries, costs, ends, renewals, sweeps, changing limits, rolling windows, expiring leases."""

    async def run() -> Counter[str]:
        trial = Trial(redis_url, seed)
        await trial.enter()
        try:
            for number in range(STEPS):
                await trial.step()
                if number % 25 == 0:
                    await trial.compare()
            await trial.compare()
            trial.compare_running(redis_url)
        finally:
            for worker in trial.workers:
                worker.membership.close()
        return trial.seen

    seen = asyncio.run(run())
    assert (
        min(seen[kind] for kind in ("Granted", "Limited", "Exceeded", "AccountsFull", "expired", "renew", "lose")) >= 5
    )
