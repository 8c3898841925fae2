"""Allowances of one worker, in process; nothing is waited for but the database's first word on a window.

What this worker's journal has posted is counted here from its start, by scope and day, so that it is known whole
whenever a window is opened, shipped or not. What others have posted is asked of the database: when a window is opened,
and again when something has moved. A window that begins while this worker lives begins empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from gateway.core.allowance import AllowanceBook, Balance, Demand, Posting, Unknowable, Verdict
from gateway.core.budget import BudgetWindow
from gateway.core.postings import MERGE_AFTER, MOVED_EVERY_SECONDS, MOVED_OVERLAP_SECONDS, KnownWindows, without
from gateway.pipeline.first_word import FirstWord, Found
from gateway.pipeline.ports import Balances, Clock, StoreUnavailableError


async def _at_once() -> None:
    """For a worker that has nothing to catch up with."""


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
        self._alive_since = clock.now()
        self._refreshed = clock.monotonic()
        self._unasked: dict[str, BudgetWindow] = {}  # opened empty; what others have posted there is asked soon
        self._first_word = FirstWord(balances, clock=clock, caught_up=caught_up, opened=self._opened)

    async def take(self, demand: Demand) -> Verdict:
        windows = self.book.windows
        for claim in demand.budgets:
            if claim.window.key not in windows:
                answer = await self._known(demand)
                if isinstance(answer, Unknowable):
                    return answer
                demand = answer
                break
        return self.book.take(demand, self._now_ms())

    async def retry(self, demand: Demand) -> Verdict:
        return self.book.retry(demand, self._now_ms())

    def post(self, posting: Posting) -> None:
        journal_id = self._windows.journal_id
        for window, balance in self._windows.post(posting):
            self.book.tell(window.key, journal_id, balance)
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
            self._first_word.close()

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
        unknown = [claim for claim in new if not self._begins_empty(claim.window)]
        for claim in new:
            if claim not in unknown:
                self._unasked[claim.window.key] = claim.window
                self._open(claim.window, {})
        if not unknown or await self._first_word.of([claim.window for claim in unknown]):
            return demand
        return without(demand, unknown)

    async def _opened(self, windows: Mapping[str, BudgetWindow], found: Found) -> None:
        for key, window in windows.items():
            self._open(window, found.get(key, {}))

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
