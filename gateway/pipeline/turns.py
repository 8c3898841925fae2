"""Who waits for room waits in turn: one request of each key after another, so that a noisy key starves nobody.

A turn is only a hint that something may be free again: who has it asks, keeps its place if there was nothing, and
passes it on. Those who want the same ask one after the other; who wants something else is not kept waiting by them.
Bounded in number and in time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import Final

WAITING_MAX: Final = 1_000
WAITING_OF_KEY_MAX: Final = 250
WAIT_SECONDS_MAX: Final = 8.0
"""Shorter than the first heartbeat of a stream, so that whoever waits in vain is still told by a status."""


class QueueFullError(Exception):
    """Too many wait already."""


class Ticket:
    """One request's place in the queue, and what it wants: any one of these will do."""

    __slots__ = ("has_turn", "is_owed", "key_id", "turn", "wants")

    def __init__(self, key_id: str, wants: frozenset[str]) -> None:
        self.key_id = key_id
        self.wants = wants
        self.turn: asyncio.Future[None] | None = None
        self.has_turn = False
        self.is_owed = False  # something more came free while it was asking

    @property
    def is_leaving(self) -> bool:
        return self.turn is not None and self.turn.cancelled()


class Turns:
    """All who wait, key by key, on one event loop. The key that is first has the next turn."""

    def __init__(self, *, waiting_max: int = WAITING_MAX, waiting_of_key_max: int = WAITING_OF_KEY_MAX) -> None:
        self._waiting_max = waiting_max
        self._waiting_of_key_max = waiting_of_key_max
        self._keys: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._groups: Counter[frozenset[str]] = Counter()  # those who want the same
        self._wanted: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(len(tickets) for tickets in self._keys.values())

    def is_wanted(self, what: str) -> bool:
        """Whether somebody waits for this already: then nobody may overtake."""
        return what in self._wanted

    async def wait(self, ticket: Ticket, *, again_after: float) -> None:
        """Returns when it is this ticket's turn to ask, at the latest after about ``again_after`` seconds, when
        somebody has to ask. Raises QueueFullError. Whoever has waited must ``leave``."""
        if ticket.turn is None:
            self._join(ticket)
        elif ticket.is_owed:
            ticket.is_owed = False
            return
        ticket.has_turn = False
        loop = asyncio.get_running_loop()
        ticket.turn = loop.create_future()
        due = loop.time() + again_after
        if self._timer is None or self._timer.when() > due:
            self._disarm()
            self._timer = loop.call_at(due, self._timed)
        await ticket.turn

    def leave(self, ticket: Ticket, *, is_served: bool) -> None:
        """Gives the place up; a key that was served goes behind the others. Nothing happens for a ticket without a
        place."""
        tickets = self._keys.get(ticket.key_id)
        if tickets is None or ticket not in tickets:
            return
        tickets.remove(ticket)
        self._groups -= Counter((ticket.wants,))
        self._wanted -= Counter(ticket.wants)
        if not tickets:
            del self._keys[ticket.key_id]
        elif is_served:
            self._keys.move_to_end(ticket.key_id)
        if not self._keys:
            self._disarm()
        if ticket.has_turn:
            self.wake()  # what it did not need, or gave up, may be enough for the next

    def wake(self) -> None:
        """Something may be free: of those who want the same, the first of the next key has a turn."""
        told: set[frozenset[str]] = set()
        for tickets in self._keys.values():
            for ticket in tickets:
                if ticket.wants in told or ticket.is_leaving:
                    continue
                told.add(ticket.wants)
                if ticket.has_turn:
                    ticket.is_owed = True
                else:
                    assert ticket.turn is not None
                    ticket.has_turn = True
                    ticket.turn.set_result(None)
                if len(told) == len(self._groups):
                    return

    def _timed(self) -> None:
        self._timer = None
        self.wake()

    def _join(self, ticket: Ticket) -> None:
        tickets = self._keys.get(ticket.key_id, ())
        if self.waiting >= self._waiting_max or len(tickets) >= self._waiting_of_key_max:
            raise QueueFullError
        self._keys.setdefault(ticket.key_id, deque()).append(ticket)
        self._groups[ticket.wants] += 1
        self._wanted.update(ticket.wants)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
