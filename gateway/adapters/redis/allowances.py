"""Allowances that several workers and hosts share: one round trip before a purchase, and none is waited for after.

While the shared state cannot be asked, a budget refuses unless it says otherwise, and the other limits are this
worker's own; a hiccup is waited for, so that it costs nobody a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import hiredis

from gateway.adapters.redis.books import Books
from gateway.adapters.redis.link import LinkLostError
from gateway.adapters.redis.membership import TOLD_AT_ONCE_MAX, Membership, Session, State
from gateway.adapters.redis.packing import (
    Closed,
    Held,
    OpenHold,
    RefusedByRedisError,
    Unopened,
    WindowFigures,
    accepted,
    figures_of,
    pack,
    packed_demand,
    told_balances,
    verdict_of,
)
from gateway.core.allowance import AllowanceBook, Balance, BudgetClaim, Demand, Granted, Posting, Unknowable, Verdict
from gateway.core.budget import BudgetMode, BudgetWindow, OnOutage
from gateway.core.postings import MERGE_AFTER, MOVED_EVERY_SECONDS, MOVED_OVERLAP_SECONDS, without
from gateway.pipeline.first_word import FIRST_WORD_SECONDS_MAX, FirstWord, Found
from gateway.pipeline.ports import Balances, Clock, SharedState, StoreUnavailableError

PREFIX: Final = "kgw"
TELL_SECONDS: Final = 0.002
"""What is told is gathered for so long, unless somebody asks."""
REFUSAL_PATIENCE_SECONDS: Final = 2.0
"""For so long after the shared state was well it is waited for, where a budget would refuse without it."""
LOCAL_PATIENCE_SECONDS: Final = 0.3
"""The same where this worker can decide on its own."""
BORN_FIRST_WORD_SECONDS_MAX: Final = 1.0
TRIES_MAX: Final = 5


async def _at_once() -> None:
    """For a worker that has nothing to catch up with."""


class RedisAllowances:
    """Implements the Allowances port. Somebody must ``run`` it."""

    def __init__(
        self,
        url: str,
        journal_id: str,
        balances: Balances,
        shared: SharedState,
        *,
        clock: Clock,
        caught_up: Callable[[], Awaitable[None]] = _at_once,
        prefix: str = PREFIX,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """``caught_up`` as in LocalAllowances; ``now_ms`` only for tests: without it time is the server's."""
        self.books = Books(journal_id, self._tell_soon)
        self.membership = Membership(url, journal_id, shared, self.books, prefix=prefix, now_ms=now_ms)
        self._local = AllowanceBook()
        self._balances = balances
        self._clock = clock
        self._first_word = FirstWord(balances, clock=clock, caught_up=caught_up, opened=self._opened)
        self._refreshed = clock.monotonic()
        self._unasked: dict[str, BudgetWindow] = {}  # opened empty; what others have posted there is asked soon
        self._telling: asyncio.TimerHandle | None = None
        self._told: asyncio.Future[Any] | None = None

    # --- the port --------------------------------------------------------------------------------------------------

    async def take(self, demand: Demand) -> Verdict:
        self.books.asked.add(demand.hold_id)
        try:
            return await self._ask(demand, is_retry=False)
        except BaseException:
            self.books.give_up(demand.hold_id)
            raise
        finally:
            self.books.asked.discard(demand.hold_id)

    async def retry(self, demand: Demand) -> Verdict:
        return await self._ask(demand, is_retry=True)

    def post(self, posting: Posting) -> None:
        self.books.post(posting)

    def release(self, hold_id: str, tokens: int) -> None:
        self.books.release(hold_id, tokens)
        self._local.release(hold_id, tokens)

    # --- its life --------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Stays in the shared state and keeps up with what others have posted, until ``stop``."""
        tasks = (
            asyncio.create_task(self.membership.run(stop, before_leaving=self.flushed), name="allowances-member"),
            asyncio.create_task(self._keep_up(), name="allowances-keep-up"),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            self._first_word.close()
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._telling is not None:
                self._telling.cancel()
                self._telling = None

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(MOVED_EVERY_SECONDS)
            with suppress(StoreUnavailableError):
                await self.refresh()
            self.tidy()

    async def refresh(self) -> None:
        """Tells what other journals have posted since the last time. Raises StoreUnavailableError."""
        session, now = self.membership.session, self._clock.monotonic()
        seconds = now - self._refreshed + MOVED_OVERLAP_SECONDS
        scopes = await self._balances.moved(seconds=seconds, but=self.books.windows.journal_id)
        asked = dict(self._unasked)
        asked.update((window.key, window) for window in self.books.windows.of_scopes(scopes))
        found = await self._balances.of(list(asked.values())) if asked else {}
        if session is None or self.membership.session is not session:
            return  # what cannot be told now is looked for again
        for key, told in found.items():
            self.books.learn(asked[key], self._of_others(told))
        for key in asked:
            self._unasked.pop(key, None)
        self._refreshed = now

    def tidy(self) -> None:
        """Forgets windows and minutes that are over."""
        now_ms, now = self._now_ms(), self._clock.now()
        self._local.renew(list(self._local.holds), now_ms)
        self._local.sweep(now_ms)
        kept = {window for hold in self.books.holds.values() for window in hold.windows}
        for window in self.books.windows.ended(now):
            if window not in kept:
                self.books.windows.forget(window)
                self._unasked.pop(window.key, None)
        self.books.windows.own.merge_before((now - MERGE_AFTER).date())

    @property
    def state(self) -> State:
        return self.membership.state

    @property
    def generation(self) -> int:
        return self.membership.generation

    # --- asking ----------------------------------------------------------------------------------------------------

    async def _ask(self, demand: Demand, *, is_retry: bool) -> Verdict:
        for _, window in demand.budgets:
            self.books.know(window)
        is_uncertain = False
        for _ in range(TRIES_MAX):
            session = self.membership.session
            if session is None or (demand.budgets and self.membership.state is not State.OK):
                patience = REFUSAL_PATIENCE_SECONDS if _may_refuse(demand) else LOCAL_PATIENCE_SECONDS
                if not await self.membership.wait(is_open=bool(demand.budgets), patience=patience):
                    if self.membership.session is None:
                        break
                    answer = without(demand, demand.budgets)
                    if isinstance(answer, Unknowable):
                        return answer
                    demand = answer
                continue
            verdict = await self._call(session, demand, is_retry=is_retry)
            match verdict:
                case None:
                    is_uncertain = True
                case Held():
                    self._keep(demand, verdict.verdict, verdict.second)
                    return verdict.verdict
                case Unopened():
                    answer = await self._known(demand, verdict.claims)
                    if isinstance(answer, Unknowable):
                        return answer
                    demand = answer
                case Closed():
                    self.membership.lose(session, "the generation is not open")
                case _:
                    return verdict
        if is_uncertain and not is_retry:
            self.books.give_up(demand.hold_id)
        return self._decide_alone(demand, is_retry=is_retry)

    async def _call(
        self, session: Session, demand: Demand, *, is_retry: bool
    ) -> Verdict | Held | Unopened | Closed | None:
        """None where it is not known what has become of it."""
        self._tell()
        try:
            return verdict_of(await session.call("take", packed_demand(demand, is_retry=is_retry)), demand)
        except LinkLostError:
            return None
        except (RefusedByRedisError, hiredis.ReplyError) as error:
            self.membership.lose(session, _why(error))
            return None

    def _keep(self, demand: Demand, granted: Granted, second: int | None) -> None:
        account = None if granted.account is None else demand.accounts[granted.account]
        hold = self.books.holds.get(demand.hold_id)
        if hold is not None:
            if second is None:  # else it was only asked for again, perhaps with other accounts
                hold.amount, hold.account = granted.amount.pico, account
            return
        assert second is not None, "a hold is taken before it is taken again"
        self.books.holds[demand.hold_id] = OpenHold(
            amount=granted.amount.pico,
            tokens=demand.tokens,
            second=second,
            limits=demand.limits,
            windows=tuple(claim.window for claim in demand.budgets),
            account=account,
            clamped_by="" if granted.clamped_by is None else granted.clamped_by.budget_id,
        )

    def _decide_alone(self, demand: Demand, *, is_retry: bool) -> Verdict:
        """What this worker grants without the shared state: nothing of a budget, unless the budget does not mind."""
        answer = without(demand, demand.budgets)
        if isinstance(answer, Unknowable):
            return answer
        now_ms = self._now_ms()
        verdict = self._local.retry(answer, now_ms) if is_retry else self._local.take(answer, now_ms)
        if isinstance(verdict, Granted):
            account = None if verdict.account is None else answer.accounts[verdict.account]
            hold = self.books.holds.get(demand.hold_id)
            if hold is None:
                hold = OpenHold(
                    amount=verdict.amount.pico,
                    tokens=answer.tokens,
                    second=now_ms // 1000,
                    limits=answer.limits,
                    windows=(),
                    account=account,
                )
            hold.amount, hold.account = max(hold.amount, answer.amount.pico), account
            self.books.take_local(demand.hold_id, hold)
        return verdict

    # --- opening windows -------------------------------------------------------------------------------------------

    async def _known(self, demand: Demand, claims: tuple[BudgetClaim, ...]) -> Demand | Unknowable:
        """The demand once these claims' windows are open; without those of which nobody can tell what is spent. A
        window that began in this generation need not wait long for the database: its workers told all from its
        beginning, and what others posted is asked soon."""
        old = [claim for claim in claims if not self._is_born_here(claim.window)]
        seconds = FIRST_WORD_SECONDS_MAX if old else BORN_FIRST_WORD_SECONDS_MAX
        has_said = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                has_said = await self._first_word.of([claim.window for claim in claims])
        if has_said:
            return demand
        born = {claim.window.key: claim.window for claim in claims if claim not in old}
        if born:
            self._unasked |= born
            await self._opened(born, {})
        return without(demand, old)

    async def _opened(self, windows: Mapping[str, BudgetWindow], found: Found) -> None:
        """Tells that these windows are open; whoever waits for them asks again, and finds them closed if it failed."""
        session = self.membership.session
        if session is None:
            return
        told = [
            told_balances(window, self._of_others(found.get(key, {})), opens=True) for key, window in windows.items()
        ]
        try:
            for start in range(0, len(told), TOLD_AT_ONCE_MAX):
                accepted(await session.call("tell", pack(told[start : start + TOLD_AT_ONCE_MAX])))
        except LinkLostError:
            pass
        except (RefusedByRedisError, hiredis.ReplyError) as error:
            self.membership.lose(session, _why(error))

    def _of_others(self, told: Mapping[str, Balance]) -> dict[str, Balance]:
        """What the database has of others; of our own journal nobody knows better than we."""
        return {journal_id: each for journal_id, each in told.items() if journal_id != self.books.windows.journal_id}

    def _is_born_here(self, window: BudgetWindow) -> bool:
        begins = window.begins_at
        return begins is not None and begins.timestamp() * 1000 > self.membership.founded_ms

    # --- telling ---------------------------------------------------------------------------------------------------

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        """Sends what there is to tell."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        session = self.membership.session
        if session is None:
            return
        while told := self.books.news(TOLD_AT_ONCE_MAX):
            self._told = session.call("tell", pack(told))
            self._told.add_done_callback(lambda answer: self._was_told(session, answer))

    def _was_told(self, session: Session, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            return
        try:
            accepted(answer.result())
        except LinkLostError:
            pass  # all of it is told again
        except (RefusedByRedisError, hiredis.ReplyError) as error:
            self.membership.lose(session, _why(error))

    async def flushed(self) -> None:
        """Returns when everything that was told has been heard. Raises LinkLostError."""
        self._tell()
        if self._told is None:
            return
        told = self._told
        await asyncio.wait([told])
        is_lost = isinstance(told.exception(), LinkLostError)
        if not (is_lost and self.membership.session is not None):  # else it was told again at entering
            told.result()

    # --- for those who watch ---------------------------------------------------------------------------------------

    async def figures(self, windows: list[BudgetWindow]) -> dict[str, WindowFigures]:
        """These windows as Redis has them, by key. Raises LinkLostError or RefusedByRedisError."""
        self._tell()
        session = self.membership.session
        if session is None:
            raise LinkLostError("not in the shared state")
        answer = accepted(await session.call("read", pack([window.key for window in windows])))
        return figures_of(answer, windows)

    async def differences(self) -> dict[str, tuple[int, int]]:
        """Windows in which Redis and the database do not have the same spent, in pico-dollars: none, once everything is
        shipped. Raises what ``figures`` does, and StoreUnavailableError."""
        windows = self.books.windows.all()
        here = await self.figures(windows)
        there = await self._balances.of(windows)
        return {
            window.key: (figures.spent, posted)
            for window in windows
            if (figures := here[window.key]).is_open
            and figures.spent != (posted := _sum(there.get(window.key, {}).values()))
        }

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _sum(balances: Iterable[Balance]) -> int:
    return sum(balance.posted for balance in balances)


def _may_refuse(demand: Demand) -> bool:
    """Whether a budget of the demand refuses when nothing is known."""
    return any(
        budget.mode is not BudgetMode.SOFT and budget.on_outage is OnOutage.REFUSE for budget, _ in demand.budgets
    )


def _why(error: BaseException) -> str:
    """Of the server's errors only the first word: the rest may quote what was sent."""
    return str(error).partition(" ")[0] if isinstance(error, hiredis.ReplyError) else str(error) or "refused"
