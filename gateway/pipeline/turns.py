"""Who waits for room waits in turn: one request of each key after another, so that a noisy key starves nobody.

A turn is only a hint that something may be free again: who has it asks, and goes back to the head of the queue if there
was nothing. Whoever comes while others wait for the same waits behind them. Bounded in number and in time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Final

WAITING_MAX: Final = 1_000
WAITING_OF_KEY_MAX: Final = 250
WAIT_SECONDS_MAX: Final = 8.0
"""Shorter than the first heartbeat of a stream, so that whoever waits in vain is still told by a status."""


class QueueFullError(Exception):
    """Too many wait already."""


class Ticket:
    """One request's place in a queue."""

    __slots__ = ("key_id", "turn")

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.turn: asyncio.Future[None] | None = None


class _Queue:
    """Those who wait for the same, by key; the key that is first has the next turn."""

    __slots__ = ("keys", "timer")

    def __init__(self) -> None:
        self.keys: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None


class Turns:
    """Queues by what is waited for, on one event loop."""

    def __init__(self, *, waiting_max: int = WAITING_MAX, waiting_of_key_max: int = WAITING_OF_KEY_MAX) -> None:
        self._waiting_max = waiting_max
        self._waiting_of_key_max = waiting_of_key_max
        self._queues: dict[str, _Queue] = {}
        self.waiting = 0

    def has_waiting(self, group: str) -> bool:
        """Whether somebody waits for this already: then nobody may overtake."""
        return group in self._queues

    async def wait(self, group: str, ticket: Ticket, *, again_after: float, again: bool) -> None:
        """Returns when it is this ticket's turn to ask, at the latest after ``again_after`` seconds, when somebody
        has to ask; ``again``: it had its turn and found nothing, so it goes first. Raises QueueFullError."""
        queue = self._join(group, ticket, again=again)
        loop = asyncio.get_running_loop()
        ticket.turn = loop.create_future()
        due = loop.time() + again_after
        if queue.timer is None or queue.timer.when() > due:
            if queue.timer is not None:
                queue.timer.cancel()
            queue.timer = loop.call_at(due, self._timed, group)
        try:
            await ticket.turn
        except asyncio.CancelledError:
            had_turn = ticket.turn.done() and not ticket.turn.cancelled()
            self._leave(group, ticket)
            if had_turn:
                self.wake(group)  # the turn is somebody else's now
            raise

    def wake(self, group: str) -> None:
        """Something may be free: the first of the next key has a turn."""
        queue = self._queues.get(group)
        if queue is None:
            return
        key_id, tickets = next(iter(queue.keys.items()))
        ticket = tickets[0]
        self._leave(group, ticket)
        if key_id in queue.keys:
            queue.keys.move_to_end(key_id)
        assert ticket.turn is not None
        if not ticket.turn.done():
            ticket.turn.set_result(None)

    def wake_all(self) -> None:
        """Something may be free for anybody: every queue has a turn."""
        for group in list(self._queues):
            self.wake(group)

    def _timed(self, group: str) -> None:
        queue = self._queues.get(group)
        if queue is not None:
            queue.timer = None
        self.wake(group)

    def _join(self, group: str, ticket: Ticket, *, again: bool) -> _Queue:
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = _Queue()
        tickets = queue.keys.setdefault(ticket.key_id, deque())
        if not again and (self.waiting >= self._waiting_max or len(tickets) >= self._waiting_of_key_max):
            self._drop_if_empty(group, queue, ticket.key_id)
            raise QueueFullError
        if again:
            tickets.appendleft(ticket)
            queue.keys.move_to_end(ticket.key_id, last=False)
        else:
            tickets.append(ticket)
        self.waiting += 1
        return queue

    def _leave(self, group: str, ticket: Ticket) -> None:
        queue = self._queues.get(group)
        tickets = None if queue is None else queue.keys.get(ticket.key_id)
        if queue is None or tickets is None or ticket not in tickets:
            return
        tickets.remove(ticket)
        self.waiting -= 1
        self._drop_if_empty(group, queue, ticket.key_id)

    def _drop_if_empty(self, group: str, queue: _Queue, key_id: str) -> None:
        if not queue.keys[key_id]:
            del queue.keys[key_id]
        if not queue.keys:
            if queue.timer is not None:
                queue.timer.cancel()
            self._queues.pop(group, None)
