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
from gateway.core.postings import (
    FIRST_WORD_SECONDS_MAX,
    MOVED_EVERY_SECONDS,
    MOVED_OVERLAP_SECONDS,
    KnownWindows,
    without,
)
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
        self._caught_up = caught_up
        self._alive_since = clock.now()

    async def take(self, demand: Demand) -> Verdict:
        answer = await self._known(demand)
        if isinstance(answer, Unknowable):
            return answer
        return self.book.take(answer, self._now_ms())

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
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), MOVED_EVERY_SECONDS)
            with suppress(StoreUnavailableError):
                await self.refresh()
            self.tidy()

    async def refresh(self) -> None:
        """Asks for what other journals have posted lately. Raises StoreUnavailableError."""
        scopes = await self._balances.moved(seconds=MOVED_OVERLAP_SECONDS, but=self._windows.journal_id)
        windows = self._windows.of_scopes(scopes)
        if windows:
            for key, told in (await self._balances.of(windows)).items():
                for journal_id, balance in told.items():
                    self.book.tell(key, journal_id, balance)

    def tidy(self) -> None:
        """Forgets windows and minutes that are over. Every hold here has an owner in this process: none expires."""
        now = self._now_ms()
        self.book.renew(list(self.book.holds), now)
        self.book.sweep(now)
        self.book.forget(self._windows.forget_ended(self._clock.now()))

    async def _known(self, demand: Demand) -> Demand | Unknowable:
        """The demand with every window that it claims opened; without those of which nothing is known and that do not
        mind; or the budget that does."""
        new = [claim for claim in demand.budgets if claim.window.key not in self.book.windows]
        if not new:
            return demand
        born = [claim for claim in new if self._begins_empty(claim.window)]
        for claim in born:
            self._open(claim.window, {})
        unknown = [claim for claim in new if claim not in born]
        if not unknown:
            return demand
        try:
            async with asyncio.timeout(FIRST_WORD_SECONDS_MAX):
                await self._caught_up()
                found = await self._balances.of([claim.window for claim in unknown])
        except (StoreUnavailableError, TimeoutError):
            return without(demand, unknown)
        for claim in unknown:
            self._open(claim.window, found.get(claim.window.key, {}))
        return demand

    def _open(self, window: BudgetWindow, told: Mapping[str, Balance]) -> None:
        self.book.open(window, told)
        self.book.tell(window.key, self._windows.journal_id, self._windows.add(window))

    def _begins_empty(self, window: BudgetWindow) -> bool:
        return window.begins_at is not None and window.begins_at > self._alive_since

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
