"""What the database says of windows that nobody has opened yet is asked once for all who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from gateway.core.allowance import Balance
from gateway.core.budget import BudgetWindow
from gateway.pipeline.ports import Balances, Clock, StoreUnavailableError

FIRST_WORD_SECONDS_MAX: Final = 10.0
SILENT_SECONDS: Final = 2.0
"""A database that has not answered is not waited for again so soon: whoever needs it is told at once."""

Found = Mapping[str, Mapping[str, Balance]]
Opened = Callable[[Mapping[str, BudgetWindow], Found], Awaitable[None]]


class _Question:
    """Windows that the database is asked for together. ``answer``: whether it has said."""

    __slots__ = ("answer", "windows")

    def __init__(self) -> None:
        self.windows: dict[str, BudgetWindow] = {}
        self.answer: asyncio.Task[bool] | None = None


class FirstWord:
    """``opened`` is told what the database has said; ``caught_up`` returns when it knows what dead workers left."""

    def __init__(
        self, balances: Balances, *, clock: Clock, caught_up: Callable[[], Awaitable[None]], opened: Opened
    ) -> None:
        self._balances = balances
        self._clock = clock
        self._caught_up = caught_up
        self._opened = opened
        self._question: _Question | None = None  # what is asked next
        self._asking = asyncio.Lock()
        self._answers: set[asyncio.Task[bool]] = set()
        self._silent_until = clock.monotonic()

    async def of(self, windows: Sequence[BudgetWindow]) -> bool:
        """Whether the database has said what is posted in these windows, and ``opened`` was told. Whoever asks while
        it is being asked is in the next question, so that a thousand at once are two questions."""
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
        await self._opened(question.windows, found)
        return True

    def close(self) -> None:
        """Nobody waits any more."""
        for answer in self._answers:
            answer.cancel()
