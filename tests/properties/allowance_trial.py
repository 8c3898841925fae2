"""A life of an AllowanceBook by a seed, beside a model that keeps nothing but a list of what happened.

The model has no counters: whatever it is asked it sums up again from its events, each time. Every verdict of the book
is foretold by it, every balance compared, and law L6 is checked at each admission.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from random import Random
from typing import Final, NamedTuple

import msgspec

from gateway.core.allowance import (
    LEASE_MS,
    AccountsFull,
    AllowanceBook,
    Balance,
    BudgetClaim,
    Demand,
    Exceeded,
    Granted,
    Limited,
    Verdict,
)
from gateway.core.budget import Budget, BudgetMode, BudgetWindow, Period, window_of
from gateway.core.limits import NO_RATES, LimitKind, RateLimits
from gateway.core.money import Money

STEPS_OF_A_LIFE: Final = 200
START: Final = datetime(2026, 10, 24, 21, 0, tzinfo=UTC)
ZONE: Final = "Europe/Berlin"
KEYS: Final = ("a", "b", "c")
SECOND: Final = 1_000


class Took(NamedTuple):
    """A hold began, or holds more, or stands at another account: what it asked for then."""

    hold_id: str
    at_ms: int
    amount: int
    tokens: int
    limits: tuple[RateLimits, ...]
    account: RateLimits | None
    windows: tuple[str, ...]


class Paid(NamedTuple):
    hold_id: str
    cost: int


class Ended(NamedTuple):
    hold_id: str
    tokens: int | None  # None: nobody knows


class Told(NamedTuple):
    window: str
    journal_id: str
    balance: Balance


class Flushed(NamedTuple):
    """All that was known is forgotten."""


Event = Took | Paid | Ended | Told | Flushed


@dataclass
class Model:
    """What happened since the last flush, and sums over it."""

    events: list[Event] = field(default_factory=list)

    def note(self, event: Event) -> None:
        if isinstance(event, Flushed):
            self.events.clear()
        else:
            self.events.append(event)

    def of(self, hold_id: str) -> list[Event]:
        return [event for event in self.events if getattr(event, "hold_id", None) == hold_id]

    def open(self) -> dict[str, list[Took]]:
        """Every open hold, with what it took."""
        found: dict[str, list[Took]] = {}
        for event in self.events:
            if isinstance(event, Took):
                found.setdefault(event.hold_id, []).append(event)
            elif isinstance(event, Ended):
                found.pop(event.hold_id, None)
        return found

    def rest(self, hold_id: str) -> int:
        """What of a hold is not posted yet."""
        rest = 0
        for event in self.of(hold_id):
            match event:
                case Took():
                    rest = event.amount
                case Paid():
                    rest = max(0, rest - max(0, event.cost))
                case _:
                    rest = 0
        return rest

    def held(self, window: str) -> int:
        return sum(self.rest(hold_id) for hold_id, took in self.open().items() if window in took[0].windows)

    def spent(self, window: str) -> int:
        """Of each journal, what the one who knew of the most rows has told, the last of them if they were several."""
        told = [event for event in self.events if isinstance(event, Told) and event.window == window]
        told.sort(key=lambda event: event.balance.rows)
        return sum({event.journal_id: event.balance.posted for event in told}.values())

    def running(self, scope: str) -> int:
        limits = [(*took[0].limits, *_one(took[-1].account)) for took in self.open().values()]
        return sum(any(each.scope == scope and each.concurrency is not None for each in of) for of in limits)

    def taken(self, scope: str, kind: LimitKind, now_ms: int) -> int:
        """What was taken in those seconds of which the last take is not a minute old."""
        counted = [(took.at_ms, amount) for took, amount in self._takes(scope, kind)]
        last = {at_ms // SECOND: at_ms for at_ms, _ in sorted(counted)}
        return sum(amount for at_ms, amount in counted if last[at_ms // SECOND] + 60 * SECOND > now_ms)

    def _takes(self, scope: str, kind: LimitKind) -> Iterator[tuple[Took, int]]:
        for place, event in enumerate(self.events):
            if not isinstance(event, Took):
                continue
            is_first = not any(
                isinstance(other, Took) and other.hold_id == event.hold_id for other in self.events[:place]
            )
            for limits in (*(event.limits if is_first else ()), *_one(event.account)):
                if limits.scope == scope and kind is LimitKind.REQUESTS and limits.rpm is not None:
                    yield event, 1
                if limits.scope == scope and kind is LimitKind.TOKENS and limits.tpm is not None:
                    yield event, event.tokens if limits == event.account else self._used(event)

    def _used(self, took: Took) -> int:
        """A caller's tokens are trued up when the hold ends."""
        for event in self.events:
            if isinstance(event, Ended) and event.hold_id == took.hold_id:
                return took.tokens if event.tokens is None else event.tokens
        return took.tokens


def _one(account: RateLimits | None) -> tuple[RateLimits, ...]:
    return () if account is None else (account,)


@dataclass
class Worker:
    """A journal, and the holds whose requests it runs."""

    journal_id: str
    posted: list[tuple[str, date, int]] = field(default_factory=list)  # scope, day, cost
    holds: dict[str, Demand] = field(default_factory=dict)

    def balance(self, window: BudgetWindow, *, rows: int | None = None) -> Balance:
        """What its first so many postings come to in a window."""
        costs = [cost for scope, day, cost in self.posted[:rows] if scope == window.scope and window.holds_day(day)]
        return Balance(sum(costs), len(costs))


class Trial:
    """One life. Raises AssertionError for the first violation."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.book = AllowanceBook()
        self.model = Model()
        self.now_ms, self.latest_ms = int(START.timestamp()) * SECOND + self.chance.randrange(SECOND), 0
        self.workers = [Worker(f"j{number}") for number in range(3)]
        self.dead: list[Worker] = []
        self.budgets = {
            scope: self._budgets(scope) for scope in (*(f"key:{key}" for key in KEYS), "team:t", "organisation")
        }
        self.limits = {scope: self._limits(scope) for scope in (*(f"key:{key}" for key in KEYS), "team:t")}
        self.accounts = [self._limits(f"account:e/{number}") for number in range(3)]
        self.windows: dict[str, BudgetWindow] = {}
        self.count = 0
        self.ends: dict[str, int] = {}
        self.admitted = self.refused = 0

    def live(self, steps: int = STEPS_OF_A_LIFE) -> None:
        choices: Sequence[tuple[int, object]] = (
            *((30, self.take), (8, self.take_again), (18, self.pay), (8, self.retry), (14, self.release)),
            *((10, self.pass_time), (4, self.renew), (4, self.sweep), (6, self.tell_again), (1, self.crash)),
            *((1, self.flush), (3, self.change_budget), (2, self.change_limits), (1, self.roll)),
        )
        weights, actions = [weight for weight, _ in choices], [action for _, action in choices]
        for _ in range(steps):
            (action,) = self.chance.choices(actions, weights)
            action()  # type: ignore[operator]
            self.check(self.chance.choices(list(self.windows), k=2) if self.windows else ())
        self.end()

    # --- what there is ---------------------------------------------------------------------------------------------

    def _budgets(self, scope: str) -> list[Budget]:
        periods = self.chance.sample(list(Period), self.chance.randint(0, 2))
        return [
            Budget(
                budget_id=f"{scope}/{period}", scope=scope, name=scope, period=period, time_zone=ZONE,
                limit=Money(self.chance.choice((0, 50, 200, 1_000))), mode=self.chance.choice(list(BudgetMode)),
            )
            for period in periods
        ]  # fmt: skip

    def _limits(self, scope: str) -> RateLimits:
        def some(*of: int) -> int | None:
            return self.chance.choice((None, *of))

        return RateLimits(scope=scope, name=scope, rpm=some(1, 5, 20), tpm=some(50, 300), concurrency=some(1, 3))

    def see(self) -> int:
        """The moment that the book is told."""
        self.latest_ms = max(self.latest_ms, self.now_ms)
        return self.now_ms

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms / SECOND, UTC)

    def demand(self, hold_id: str) -> Demand:
        key = f"key:{self.chance.choice(KEYS)}"
        scopes = (key, "team:t", "organisation") if self.chance.random() < 0.7 else (key, "organisation")
        claims = tuple(
            BudgetClaim(each, window_of(scope, each.period, self.moment(), ZONE))
            for scope in scopes
            for each in self.budgets[scope]
        )
        amount = self.chance.choice((0, 1, 10, 10, 40, 120))
        limits = [self.limits[scope] for scope in scopes if scope in self.limits]
        return Demand(
            hold_id=hold_id,
            tokens=self.chance.choice((1, 10, 60)),
            amount=Money(amount),
            amount_min=Money(min(amount, self.chance.choice((0, 5, 20)))),
            limits=tuple(each for each in limits if not each.are_none),
            budgets=claims,
            accounts=tuple(self.chance.sample(self.accounts, self.chance.randint(0, 3))),
        )

    # --- what happens ----------------------------------------------------------------------------------------------

    def take(self) -> None:
        self.count += 1
        demand = self.demand(f"r{self.count}")
        self._open(claim.window for claim in demand.budgets)
        now_ms = self.see()
        foretold = self._foretell(demand)
        verdict = self.book.take(demand, now_ms)
        self._compare(verdict, foretold)
        if not isinstance(verdict, Granted):
            self.refused += 1
            return
        self.admitted += 1
        self.chance.choice(self.workers).holds[demand.hold_id] = demand
        account = None if verdict.account is None else demand.accounts[verdict.account]
        self.model.note(self._took(demand, verdict.amount.pico, account))
        self._check_l6(demand, verdict.amount.pico)

    def take_again(self) -> None:
        """The answer to a take was lost, and it is sent again: it takes nothing."""
        if (found := self._any_hold()) is not None:
            demand = found[1]
            again = self.book.take(demand, self.see())
            assert isinstance(again, Granted)
            assert again.amount.pico == self.model.rest(demand.hold_id)

    def retry(self) -> None:
        if (found := self._any_hold()) is None:
            return
        worker, before = found
        demand = msgspec.structs.replace(
            before, amount=Money(self.chance.choice((0, 10, 60))), accounts=self.demand("-").accounts
        )
        self._open(claim.window for claim in demand.budgets)
        rest, took = self.model.rest(demand.hold_id), self.model.open()[demand.hold_id][0]
        now_ms = self.see()
        foretold = self._foretell_retry(demand, rest, took)
        verdict = self.book.retry(demand, now_ms)
        self._compare(verdict, foretold)
        if isinstance(verdict, Granted):
            worker.holds[demand.hold_id] = demand
            account = None if verdict.account is None else demand.accounts[verdict.account]
            self.model.note(self._took(demand, verdict.amount.pico, account)._replace(windows=took.windows))
            claims = tuple(claim for claim in demand.budgets if claim.window.key in took.windows)
            self._check_l6(msgspec.structs.replace(demand, budgets=claims), verdict.amount.pico - rest)

    def pay(self) -> None:
        """An attempt has cost something: its journal has one posting more, and says so, sometimes later."""
        if (found := self._any_hold()) is None:
            return
        worker, demand = found
        cost = self.chance.choice((0, 1, demand.amount.pico // 2, demand.amount.pico, demand.amount.pico + 3))
        day = next((c.window.first_day for c in demand.budgets if c.budget.period is Period.DAY), None)
        scopes = {claim.window.scope for claim in demand.budgets}
        admitted = day or next((c.window.first_day for c in demand.budgets if c.window.first_day), date(2026, 1, 1))
        worker.posted += [(scope, admitted, cost) for scope in scopes]
        for window in self.windows.values():
            if window.scope in scopes and window.holds_day(admitted):
                self._tell(window, worker.journal_id, worker.balance(window))
        self.book.spend(demand.hold_id, cost)
        self.model.note(Paid(demand.hold_id, cost))

    def release(self) -> None:
        if (found := self._any_hold()) is None:
            return
        worker, demand = found
        tokens = self.chance.choice((0, 1, demand.tokens, demand.tokens * 2))
        for _ in range(self.chance.choice((1, 1, 2))):
            self.book.release(demand.hold_id, tokens)
        del worker.holds[demand.hold_id]
        self._ended(demand.hold_id, tokens)

    def pass_time(self) -> None:
        self.now_ms += self.chance.choice((1, 300, 900, 2_500, 20_000, 61_000, -5_000))

    def renew(self) -> None:
        """Those who live say so; the dead do not."""
        hold_ids = [hold_id for worker in self.workers for hold_id in worker.holds]
        self.book.renew(hold_ids, self.see())

    def sweep(self) -> None:
        """Only what nobody has renewed for a lease's time may end here."""
        self.renew()
        before = {hold_id: hold.expires_ms for hold_id, hold in self.book.holds.items()}
        expired = self.book.sweep(self.see())
        assert sorted(expired) == sorted(hold_id for hold_id, at in before.items() if at <= self.latest_ms)
        for hold_id in expired:
            assert not any(hold_id in worker.holds for worker in self.workers), "a living request lost its hold"
            self._ended(hold_id, None)

    def tell_again(self) -> None:
        """A balance of some time ago arrives once more, late, out of order."""
        worker = self.chance.choice([*self.workers, *self.dead])
        if self.windows:
            window = self.chance.choice(list(self.windows.values()))
            rows = self.chance.choice((None, self.chance.randint(0, len(worker.posted))))
            self._tell(window, worker.journal_id, worker.balance(window, rows=rows))

    def crash(self) -> None:
        """A worker is gone, its holds lapse; whoever finds its journal tells what it has posted."""
        worker = self.workers.pop(self.chance.randrange(len(self.workers)))
        self.dead.append(worker)
        self.workers.append(Worker(f"j{len(self.dead) + 2}"))

    def flush(self) -> None:
        """The book is lost. A new one is told what is posted, and the open holds of the living before it admits."""
        self.book, self.latest_ms = AllowanceBook(), 0
        self.model.note(Flushed())
        for hold_id in [*self.ends]:
            del self.ends[hold_id]
        known, self.windows = self.windows, {}
        self._open(known.values())
        for worker in self.workers:
            for hold_id, demand in list(worker.holds.items()):
                self._restore(worker, hold_id, demand)

    def _restore(self, worker: Worker, hold_id: str, demand: Demand) -> None:
        """A hold that exists is not asked whether it may: soft budgets, and no limits."""
        soft = tuple(claim._replace(budget=replace(claim.budget, mode=BudgetMode.SOFT)) for claim in demand.budgets)
        restored = msgspec.structs.replace(demand, budgets=soft, limits=(), accounts=())
        worker.holds[hold_id] = msgspec.structs.replace(demand, limits=(), accounts=())
        assert isinstance(self.book.take(restored, self.see()), Granted)
        self.model.note(self._took(restored, demand.amount.pico, None))

    def change_budget(self) -> None:
        scope, modes = self.chance.choice(list(self.budgets)), list(BudgetMode)
        if self.chance.random() < 0.3:
            self.budgets[scope] = self._budgets(scope)
        self.budgets[scope] = [
            replace(each, limit=Money(self.chance.choice((0, 30, 200, 2_000))), mode=self.chance.choice(modes))
            for each in self.budgets[scope]
        ]

    def change_limits(self) -> None:
        scope = self.chance.choice(list(self.limits))
        self.limits[scope] = self._limits(scope)

    def roll(self) -> None:
        """Days pass; windows that nothing counts in any more are forgotten, and asked for again if they are needed."""
        self.now_ms += self.chance.choice((3_600, 86_400, 7 * 86_400, 31 * 86_400)) * SECOND
        ended = [
            key for key, window in self.windows.items() if window.ends_at is not None and window.ends_at < self.moment()
        ]
        forgotten = self.book.forget(ended)
        counted = {key for took in self.model.open().values() for key in took[0].windows}
        assert set(forgotten) == set(ended) - counted
        for key in forgotten:
            del self.windows[key]

    # --- what must be true -----------------------------------------------------------------------------------------

    def check(self, windows: Iterable[str]) -> None:
        """The book has what the events add up to."""
        assert set(self.book.holds) == set(self.model.open())
        for key in windows:
            state = self.book.windows[key]
            assert (state.spent, state.held) == (self.model.spent(key), self.model.held(key)), key
        scope = self.chance.choice([*self.limits, *(each.scope for each in self.accounts)])
        assert self.book.running().get(scope, 0) == self.model.running(scope), scope

    def end(self) -> None:
        """Everybody is gone: nothing is held, and what is spent is what was posted."""
        self.check(list(self.windows))
        self.dead += self.workers
        self.workers = []
        self.now_ms = self.latest_ms + LEASE_MS
        self.sweep()
        assert self.book.holds == {}
        assert self.book.running() == {}
        for key, window in self.windows.items():
            for worker in self.dead:
                self._tell(window, worker.journal_id, worker.balance(window))
            total = sum(worker.balance(window).posted for worker in self.dead)
            assert (self.book.windows[key].spent, self.book.windows[key].held) == (total, 0)

    def _check_l6(self, demand: Demand, more: int) -> None:
        """Law L6: wherever this admission holds more, a hard budget bears it."""
        for claim in demand.budgets if more else ():
            if claim.budget.mode is not BudgetMode.SOFT:
                key = claim.window.key
                assert self.model.spent(key) + self.model.held(key) <= claim.budget.limit.pico, f"L6 in {key}"

    def _ended(self, hold_id: str, tokens: int | None) -> None:
        self.model.note(Ended(hold_id, tokens))
        self.ends[hold_id] = self.ends.get(hold_id, 0) + 1
        assert self.ends[hold_id] == 1, "a hold ended twice"

    # --- foretelling -----------------------------------------------------------------------------------------------

    def _foretell(self, demand: Demand) -> Verdict | None:
        for limits in demand.limits:
            if (kind := self._lacks(limits, demand.tokens)) is not None:
                return _limited(limits, kind, demand.tokens)
        amount, clamped_by = demand.amount.pico, None
        for claim in demand.budgets:
            left = claim.budget.limit.pico - self.model.spent(claim.window.key) - self.model.held(claim.window.key)
            if claim.budget.mode is BudgetMode.CLAMP and left < amount:
                if left < demand.amount_min.pico:
                    return Exceeded(claim=claim, needed=demand.amount_min, available=Money(max(0, left)))
                amount, clamped_by = left, claim.budget
        for claim in demand.budgets:
            left = claim.budget.limit.pico - self.model.spent(claim.window.key) - self.model.held(claim.window.key)
            if claim.budget.mode is BudgetMode.STRICT and left < amount:
                return Exceeded(claim=claim, needed=Money(amount), available=Money(max(0, left)))
        place = self._room(demand)
        if isinstance(place, AccountsFull):
            return place
        return Granted(amount=Money(amount), account=place, clamped_by=clamped_by)

    def _foretell_retry(self, demand: Demand, rest: int, took: Took) -> Verdict | None:
        more = demand.amount.pico - rest
        for claim in demand.budgets:
            key = claim.window.key
            left = claim.budget.limit.pico - self.model.spent(key) - self.model.held(key)
            if more > max(0, left) and claim.budget.mode is not BudgetMode.SOFT and key in took.windows:
                return Exceeded(claim=claim, needed=Money(more), available=Money(max(0, left)))
        place = self._room(demand)
        if isinstance(place, AccountsFull):
            return place
        return Granted(amount=Money(max(rest, demand.amount.pico)), account=place)

    def _room(self, demand: Demand) -> int | AccountsFull | None:
        lacking = [self._lacks(limits, demand.tokens) for limits in demand.accounts]
        if not lacking:
            return None
        if None in lacking:
            return lacking.index(None)
        return AccountsFull(kinds=tuple(kind for kind in lacking if kind is not None), retry_after_ms=0)

    def _lacks(self, limits: RateLimits, tokens: int) -> LimitKind | None:
        needed = {LimitKind.REQUESTS: (limits.rpm, 1), LimitKind.TOKENS: (limits.tpm, tokens)}
        for kind, (limit, amount) in needed.items():
            if limit is not None and self.model.taken(limits.scope, kind, self.latest_ms) + amount > limit:
                return kind
        if limits.concurrency is not None and self.model.running(limits.scope) >= limits.concurrency:
            return LimitKind.CONCURRENCY
        return None

    def _compare(self, verdict: Verdict, foretold: Verdict | None) -> None:
        if isinstance(verdict, Limited):
            self._check_wait(verdict)
            verdict = replace(verdict, retry_after_ms=0)
        if isinstance(verdict, AccountsFull):
            verdict = replace(verdict, retry_after_ms=0)
        if isinstance(verdict, Granted | Limited):
            self._check_rates(verdict)
            verdict = changed(verdict, rates=NO_RATES)
        assert verdict == foretold

    def _check_wait(self, limited: Limited) -> None:
        """After the wait that it names there is room, if nobody takes more; a moment before there was none."""
        if limited.kind is LimitKind.CONCURRENCY or limited.needed > limited.limit:
            return
        for sooner_ms, has_room in ((0, True), (1, False)):
            moment = self.latest_ms + limited.retry_after_ms - sooner_ms
            taken = self.model.taken(limited.limits.scope, limited.kind, moment)
            assert (taken + limited.needed <= limited.limit) is has_room

    def _check_rates(self, verdict: Granted | Limited) -> None:
        for state in (verdict.rates.requests, verdict.rates.tokens):
            if state is not None:
                assert 0 <= state.remaining <= state.limit
                assert 0 <= state.reset_ms <= 60 * SECOND

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _took(self, demand: Demand, amount: int, account: RateLimits | None) -> Took:
        windows = tuple(claim.window.key for claim in demand.budgets)
        return Took(demand.hold_id, self.latest_ms, amount, demand.tokens, demand.limits, account, windows)

    def _open(self, windows: Iterable[BudgetWindow]) -> None:
        """A window is opened with what every journal has posted in it."""
        for window in windows:
            if window.key not in self.windows:
                self.windows[window.key] = window
                told = {worker.journal_id: worker.balance(window) for worker in (*self.workers, *self.dead)}
                self.book.open(window, told)
                for journal_id, balance in told.items():
                    self.model.note(Told(window.key, journal_id, balance))

    def _tell(self, window: BudgetWindow, journal_id: str, balance: Balance) -> None:
        self.book.tell(window.key, journal_id, balance)
        self.model.note(Told(window.key, journal_id, balance))

    def _any_hold(self) -> tuple[Worker, Demand] | None:
        found = [(worker, demand) for worker in self.workers for demand in worker.holds.values()]
        return self.chance.choice(found) if found else None


def changed(verdict: Granted | Limited, **changes: object) -> Granted | Limited:
    return msgspec.structs.replace(verdict, **changes) if isinstance(verdict, Granted) else replace(verdict, **changes)


def _limited(limits: RateLimits, kind: LimitKind, tokens: int) -> Limited:
    limit, needed = {
        LimitKind.REQUESTS: (limits.rpm, 1),
        LimitKind.TOKENS: (limits.tpm, tokens),
        LimitKind.CONCURRENCY: (limits.concurrency, 1),
    }[kind]
    assert limit is not None
    return Limited(limits=limits, kind=kind, limit=limit, needed=needed, retry_after_ms=0)
