"""Allowances of one worker, in process; nothing is waited for but the database's first word on a window.

What this worker's journal has posted is counted here from its start, by scope and day, so that it is known whole
whenever a window is opened, shipped or not. What others have posted is asked of the database: when a window is opened,
and again when something has moved. A window that begins while this worker lives begins empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Final

from gateway.core.allowance import (
    NOTHING_POSTED,
    AllowanceBook,
    Balance,
    BudgetClaim,
    Demand,
    Posting,
    Unknowable,
    Verdict,
)
from gateway.core.budget import BudgetMode, BudgetWindow, OnOutage
from gateway.pipeline.ports import Balances, Clock, StoreUnavailableError

MOVED_EVERY_SECONDS: Final = 2.0
MOVED_OVERLAP_SECONDS: Final = 65.0
"""A posting is looked for at least this long after it was made: its transaction may commit late."""
KEEP_AFTER_END: Final = timedelta(hours=1)
FIRST_WORD_SECONDS_MAX: Final = 10.0
SILENT_SECONDS: Final = 2.0
"""A database that has not answered is not waited for again so soon: whoever needs it is told at once."""
MERGE_AFTER: Final = timedelta(days=40)
"""Days that lie back further are in no window but the whole of time."""


async def _at_once() -> None:
    """For a worker that has nothing to catch up with."""


class OwnPostings:
    """What this worker's journal has posted since it started, whole: by scope and day."""

    __slots__ = ("_days",)

    def __init__(self) -> None:
        self._days: dict[str, dict[date, list[int]]] = {}

    def add(self, scope: str, day: date, cost: int) -> None:
        days = self._days.get(scope)
        if days is None:
            days = self._days[scope] = {}
        posted = days.get(day)
        if posted is None:
            days[day] = [cost, 1]
        else:
            posted[0] += cost
            posted[1] += 1

    def merge_before(self, day: date) -> None:
        """Days before this one become one, which counts in the whole of time only."""
        for days in self._days.values():
            for old in [each for each in days if date.min < each < day]:
                cost, rows = days.pop(old)
                merged = days.setdefault(date.min, [0, 0])
                merged[0] += cost
                merged[1] += rows

    def of(self, window: BudgetWindow) -> Balance:
        """The sum of the window's days."""
        cost = rows = 0
        for day, posted in self._days.get(window.scope, {}).items():
            if window.holds_day(day):
                cost += posted[0]
                rows += posted[1]
        return Balance(cost, rows) if rows else NOTHING_POSTED


class KnownWindows:
    """The windows that claims have named, by scope, with what our own journal has posted in each."""

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self.own = OwnPostings()
        self._by_scope: dict[str, dict[str, BudgetWindow]] = {}
        self._posted: dict[str, Balance] = {}

    def add(self, window: BudgetWindow) -> Balance:
        """A window is known from now on; returns what our own journal has posted in it."""
        self._by_scope.setdefault(window.scope, {})[window.key] = window
        posted = self._posted[window.key] = self.own.of(window)
        return posted

    def post(self, posting: Posting) -> list[tuple[str, Balance]]:
        """Counts a posting; returns the known windows it counts in, with our balances there."""
        told = []
        for scope in posting.scopes:
            self.own.add(scope, posting.day, posting.cost.pico)
            for key, window in self._by_scope.get(scope, {}).items():
                if window.holds_day(posting.day):
                    before = self._posted[key]
                    after = self._posted[key] = Balance(before.posted + posting.cost.pico, before.rows + 1)
                    told.append((key, after))
        return told

    def of_scopes(self, scopes: Iterable[str]) -> list[BudgetWindow]:
        return [window for scope in scopes for window in self._by_scope.get(scope, {}).values()]

    def posted(self, window_key: str) -> Balance:
        return self._posted.get(window_key, NOTHING_POSTED)

    def ended(self, now: datetime) -> list[BudgetWindow]:
        """Those that ended a while ago."""
        return [
            window
            for windows in self._by_scope.values()
            for window in windows.values()
            if window.ends_at is not None and window.ends_at + KEEP_AFTER_END <= now
        ]

    def forget(self, window: BudgetWindow) -> None:
        """It is not known any more."""
        del self._posted[window.key]
        del self._by_scope[window.scope][window.key]
        if not self._by_scope[window.scope]:
            del self._by_scope[window.scope]


class _Question:
    """Windows that the database is asked for together. ``answer``: whether it has said."""

    __slots__ = ("answer", "windows")

    def __init__(self) -> None:
        self.windows: dict[str, BudgetWindow] = {}
        self.answer: asyncio.Task[bool] | None = None


class LocalAllowances:
    """Implements the Allowances port in process."""

    def __init__(
        self,
        journal_id: str,
        balances: Balances,
        *,
        clock: Clock,
        caught_up: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """``caught_up`` returns when what dead workers left behind is in the database: before, what is spent is not
        known."""
        self.book = AllowanceBook()
        self._windows = KnownWindows(journal_id)
        self._balances = balances
        self._clock = clock
        self._caught_up = caught_up
        self._alive_since = clock.now()
        self._refreshed = clock.monotonic()
        self._unasked: dict[str, BudgetWindow] = {}  # opened empty; what others have posted there is asked soon
        self._question: _Question | None = None  # what is asked next
        self._asking = asyncio.Lock()
        self._answers: set[asyncio.Task[bool]] = set()
        self._silent_until = clock.monotonic()

    async def take(self, demand: Demand) -> Verdict:
        answer = await self._known(demand)
        if isinstance(answer, Unknowable):
            return answer
        return self.book.take(answer, self._now_ms())

    async def retry(self, demand: Demand) -> Verdict:
        return self.book.retry(demand, self._now_ms())

    def post(self, posting: Posting) -> None:
        journal_id = self._windows.journal_id
        for key, balance in self._windows.post(posting):
            self.book.tell(key, journal_id, balance)
        self.book.spend(posting.hold_id, posting.cost.pico)

    def release(self, hold_id: str, tokens: int) -> None:
        self.book.release(hold_id, tokens)

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps up with what others have posted, and forgets what is over, until ``stop``."""
        try:
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), MOVED_EVERY_SECONDS)
                    return
                with suppress(StoreUnavailableError):
                    await self.refresh()
                self.tidy()
        finally:
            for answer in self._answers:
                answer.cancel()

    async def refresh(self) -> None:
        """Asks for what other journals have posted since the last time. Raises StoreUnavailableError."""
        now = self._clock.monotonic()
        seconds = now - self._refreshed + MOVED_OVERLAP_SECONDS
        scopes = await self._balances.moved(seconds=seconds, but=self._windows.journal_id)
        asked = dict(self._unasked)
        asked.update((window.key, window) for window in self._windows.of_scopes(scopes))
        if asked:
            for key, told in (await self._balances.of(list(asked.values()))).items():
                self._tell(key, told)
        for key in asked:
            self._unasked.pop(key, None)
        self._refreshed = now

    def tidy(self) -> None:
        """Forgets windows and minutes that are over. Every hold here has an owner in this process: none expires."""
        now_ms, now = self._now_ms(), self._clock.now()
        self.book.renew(list(self.book.holds), now_ms)
        self.book.sweep(now_ms)
        ended = {window.key: window for window in self._windows.ended(now)}
        for key in self.book.forget(ended):
            self._windows.forget(ended[key])
            self._unasked.pop(key, None)
        self._windows.own.merge_before((now - MERGE_AFTER).date())

    async def _known(self, demand: Demand) -> Demand | Unknowable:
        """The demand with every window that it claims opened; without those of which nothing is known and that do not
        mind; or the budget that does."""
        new = [claim for claim in demand.budgets if claim.window.key not in self.book.windows]
        if not new:
            return demand
        unknown = [claim for claim in new if not self._begins_empty(claim.window)]
        for claim in new:
            if claim not in unknown:
                self._unasked[claim.window.key] = claim.window
                self._open(claim.window, {})
        if not unknown or await self._first_word([claim.window for claim in unknown]):
            return demand
        return _without(demand, unknown)

    async def _first_word(self, windows: list[BudgetWindow]) -> bool:
        """Opens these windows with what is posted in them; whether the database has said. Whoever asks while it is
        being asked is in the next question, so that a thousand at once are two questions."""
        if self._clock.monotonic() < self._silent_until:
            return False
        question = self._question
        if question is None:
            question = self._question = _Question()
            question.answer = asyncio.get_running_loop().create_task(self._ask(question), name="first-word")
            self._answers.add(question.answer)
            question.answer.add_done_callback(self._answers.discard)
        question.windows.update((window.key, window) for window in windows)
        assert question.answer is not None
        return await asyncio.shield(question.answer)

    async def _ask(self, question: _Question) -> bool:
        try:
            async with asyncio.timeout(FIRST_WORD_SECONDS_MAX), self._asking:
                await self._caught_up()
                self._question = None
                found = await self._balances.of(list(question.windows.values()))
        except (StoreUnavailableError, TimeoutError):
            self._silent_until = self._clock.monotonic() + SILENT_SECONDS
            return False
        finally:
            if self._question is question:
                self._question = None
        for key, window in question.windows.items():
            self._open(window, found.get(key, {}))
        return True

    def _open(self, window: BudgetWindow, told: Mapping[str, Balance]) -> None:
        self.book.open(window, {})
        self._tell(window.key, told)
        self.book.tell(window.key, self._windows.journal_id, self._windows.add(window))

    def _tell(self, window_key: str, told: Mapping[str, Balance]) -> None:
        """What the database has of others; of our own journal nobody knows better than we."""
        for journal_id, balance in told.items():
            if journal_id != self._windows.journal_id:
                self.book.tell(window_key, journal_id, balance)

    def _begins_empty(self, window: BudgetWindow) -> bool:
        return window.begins_at is not None and window.begins_at > self._alive_since

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _without(demand: Demand, unknown: list[BudgetClaim]) -> Demand | Unknowable:
    """The demand without claims of which nothing is known, unless one of them refuses then."""
    for budget, _ in unknown:
        if budget.mode is not BudgetMode.SOFT and budget.on_outage is OnOutage.REFUSE:
            return Unknowable(budget=budget)
    return replace(demand, budgets=tuple(claim for claim in demand.budgets if claim not in unknown))
