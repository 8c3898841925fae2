"""What one worker knows of the shared state and tells it: its open holds, its own postings, and the latest news.

All of it is absolute, so that it can be told again whenever it is not certain what arrived. Between a snapshot and the
loss of the connection every change is noted as well, in its order; at any other time the next snapshot has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gateway.adapters.redis.packing import TOLD_END, OpenHold, told_balances, told_cost, told_end, told_hold
from gateway.core.allowance import Balance, Posting
from gateway.core.budget import BudgetWindow
from gateway.core.postings import KnownWindows

ENDED_MAX: Final = 10_000


class Books:
    """``on_news`` is called when there is something to tell."""

    def __init__(self, journal_id: str, on_news: Callable[[], None]) -> None:
        self.windows = KnownWindows(journal_id)
        self.holds: dict[str, OpenHold] = {}
        self.asked: set[str] = set()
        """Holds that are being asked for: they may exist already."""
        self._news: list[tuple[Any, ...]] = []
        self._ended: dict[str, int] = {}
        self._is_noting = False
        self._on_news = on_news

    def know(self, window: BudgetWindow) -> None:
        """A claim has named this window."""
        if window not in self.windows:
            posted = self.windows.add(window)
            if posted.rows:
                self.note(told_balances(window, {self.windows.journal_id: posted}))

    def post(self, posting: Posting) -> None:
        for window, balance in self.windows.post(posting):
            self.note(told_balances(window, {self.windows.journal_id: balance}))
        hold = self.holds.get(posting.hold_id)
        if hold is not None:
            hold.amount -= min(max(posting.cost.pico, 0), hold.amount)
            self.note(told_cost(posting.hold_id, posting.cost.pico))

    def release(self, hold_id: str, tokens: int) -> None:
        if self.holds.pop(hold_id, None) is None:
            return
        if self._is_noting:
            self.note(told_end(hold_id, tokens))
        elif len(self._ended) < ENDED_MAX:
            self._ended[hold_id] = tokens

    def give_up(self, hold_id: str) -> None:
        """Nobody waits any more for a hold that may exist; nothing was bought with it."""
        if hold_id not in self.holds:
            self.note(told_end(hold_id, 0))

    def take_local(self, hold_id: str, hold: OpenHold) -> None:
        """A hold that was granted while the shared state could not be asked; it is told when it can."""
        self.holds[hold_id] = hold
        self.note(told_hold(hold_id, hold))

    def learn(self, window: BudgetWindow, balances: dict[str, Balance]) -> None:
        """What others have posted in a window."""
        self.note(told_balances(window, balances))

    def note(self, told: tuple[Any, ...]) -> None:
        if self._is_noting:
            self._news.append(told)
            self._on_news()

    def news(self, most: int) -> list[tuple[Any, ...]]:
        """What is to be told next, which is not kept any longer."""
        told, self._news = self._news[:most], self._news[most:]
        return told

    def snapshot(self) -> tuple[list[tuple[Any, ...]], list[str]]:
        """All of it, and the holds that are open or may be; from now on, changes are noted."""
        self._news, self._is_noting = [], True
        own = self.windows.journal_id
        told = [told_end(hold_id, tokens) for hold_id, tokens in self._ended.items()]
        self._ended = {}
        told += [
            told_balances(window, {own: posted})
            for window in self.windows.all()
            if (posted := self.windows.posted(window.key)).rows
        ]
        told += [told_hold(hold_id, hold) for hold_id, hold in self.holds.items()]
        return told, [*self.holds, *(self.asked - self.holds.keys())]

    def stop_noting(self) -> None:
        """The connection is lost: what was noted may have arrived or not, and the next snapshot has it."""
        for told in self._news:
            if told[0] == TOLD_END and len(self._ended) < ENDED_MAX:
                self._ended[told[1]] = told[2]
        self._news, self._is_noting = [], False
