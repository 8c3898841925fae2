"""What one journal has posted is known whole by its worker: by scope and day, and so in whatever window is asked for.

Both implementations of allowances keep this: a window is the sum of what every journal has posted in it, and each
worker tells its own part as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Final

import msgspec

from gateway.core.allowance import NOTHING_POSTED, Balance, BudgetClaim, Demand, Posting, Unknowable
from gateway.core.budget import BudgetMode, BudgetWindow, OnOutage

MOVED_EVERY_SECONDS: Final = 2.0
MOVED_OVERLAP_SECONDS: Final = 65.0
"""A posting is looked for at least this long after it was made: its transaction may commit late."""
KEEP_AFTER_END: Final = timedelta(hours=1)
MERGE_AFTER: Final = timedelta(days=40)
"""Days that lie back further are in no window but the whole of time."""


_NONE: Final[dict[str, BudgetWindow]] = {}


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

    __slots__ = ("_by_scope", "_posted", "journal_id", "own")

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self.own = OwnPostings()
        self._by_scope: dict[str, dict[str, BudgetWindow]] = {}
        self._posted: dict[str, Balance] = {}

    def __contains__(self, window: BudgetWindow) -> bool:
        return window.key in self._posted

    def add(self, window: BudgetWindow) -> Balance:
        """A window is known from now on; returns what our own journal has posted in it."""
        self._by_scope.setdefault(window.scope, {})[window.key] = window
        posted = self._posted[window.key] = self.own.of(window)
        return posted

    def post(self, posting: Posting) -> list[tuple[BudgetWindow, Balance]]:
        """Counts a posting; returns the known windows it counts in, with our balances there."""
        told, day, cost = [], posting.day, posting.cost.pico
        for scope in posting.scopes:
            self.own.add(scope, day, cost)
            for key, window in self._by_scope.get(scope, _NONE).items():
                if window.holds_day(day):
                    posted, rows = self._posted[key]
                    after = self._posted[key] = Balance(posted + cost, rows + 1)
                    told.append((window, after))
        return told

    def all(self) -> list[BudgetWindow]:
        return self.of_scopes(self._by_scope)

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


def without(demand: Demand, unknown: Iterable[BudgetClaim]) -> Demand | Unknowable:
    """The demand without claims of which nothing is known, unless one of them refuses then."""
    left_out = list(unknown)
    for budget, _ in left_out:
        if budget.mode is not BudgetMode.SOFT and budget.on_outage is OnOutage.REFUSE:
            return Unknowable(budget=budget)
    return msgspec.structs.replace(demand, budgets=tuple(claim for claim in demand.budgets if claim not in left_out))
