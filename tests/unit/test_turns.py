"""Waiting is in turn: key by key, nobody lost, nobody overtaken, nobody kept from what they alone want."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from gateway.pipeline.turns import QueueFullError, Ticket, Turns
from tests.pipeline.virtual_time import on_virtual_time

ACCOUNT = frozenset({"account:e/main"})
OTHER = frozenset({"account:m/main"})
LATER = 3_600.0
"""So late that only a wake can be the reason for a turn."""


@dataclass
class Room:
    """So many places that requests of keys want; who gets one is noted in order."""

    turns: Turns = field(default_factory=Turns)
    free: Counter[str] = field(default_factory=Counter)
    served: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def ask(self, key_id: str, wants: frozenset[str] = ACCOUNT, *, again_after: float = LATER) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._ask(key_id, wants, again_after))

    async def _ask(self, key_id: str, wants: frozenset[str], again_after: float) -> None:
        ticket, is_served = Ticket(key_id, wants), False
        try:
            while not is_served:
                await self.turns.wait(ticket, again_after=again_after)
                self.asked.append(key_id)
                place = next((place for place in sorted(wants) if self.free[place]), None)
                if place is not None:
                    self.free[place] -= 1
                    self.served.append(key_id)
                    is_served = True
        finally:
            self.turns.leave(ticket, is_served=is_served)

    async def release(self, *places: str) -> None:
        for place in places:
            self.free[place] += 1
        self.turns.wake()
        await settled()

    def check_empty(self) -> None:
        assert self.turns.waiting == 0
        assert not self.turns.is_wanted("account:e/main")
        assert not self.turns.is_wanted("account:m/main")


async def settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


(PLACE,) = ACCOUNT
(OTHER_PLACE,) = OTHER


@on_virtual_time
async def test_a_noisy_key_delays_another_one_by_one_turn():
    """250 of its requests wait, another key's one comes last, and is served second."""
    room = Room()
    tasks = [room.ask("noisy") for _ in range(250)]
    await settled()
    tasks.append(room.ask("quiet"))
    await settled()
    for _ in range(2):
        await room.release(PLACE)
    assert room.served == ["noisy", "quiet"]
    for _ in range(249):
        await room.release(PLACE)
    await asyncio.gather(*tasks)
    room.check_empty()


@on_virtual_time
async def test_keys_are_served_one_request_each():
    """Round and round, each key's requests in the order in which they came."""
    room = Room()
    tasks = [room.ask(key_id) for key_id in ("a", "a", "a", "b", "b", "c")]
    await settled()
    for _ in tasks:
        await room.release(PLACE)
    assert room.served == ["a", "b", "c", "a", "b", "a"]
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_whoever_finds_nothing_keeps_the_place():
    """A turn is only a hint; asking in vain costs nothing."""
    room = Room()
    tasks = [room.ask(key_id) for key_id in ("a", "b", "c")]
    await settled()
    for _ in range(3):
        await room.release()
    assert room.asked == ["a", "a", "a"]
    for _ in tasks:
        await room.release(PLACE)
    assert room.served == ["a", "b", "c"]
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_two_places_at_once_serve_two():
    """Who is served passes the turn on: one wake is enough for all that is free."""
    room = Room()
    tasks = [room.ask(key_id) for key_id in ("a", "b", "c")]
    await settled()
    await room.release(PLACE, PLACE)
    assert room.served == ["a", "b"]
    await room.release(PLACE)
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_somebody_asks_after_a_while_without_being_woken():
    """The earliest of all who wait: another worker's requests end unseen."""
    room = Room()
    tasks = [room.ask("a", again_after=1.0), room.ask("b", again_after=0.5)]
    await asyncio.sleep(0.4)
    room.free[PLACE] += 2
    assert room.served == []
    await asyncio.sleep(0.2)
    assert room.served == ["a", "b"]
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_those_who_want_something_else_are_not_kept_waiting():
    """The first waits for an account that stays full; the second one's has room."""
    room = Room()
    tasks = [room.ask("a", ACCOUNT), room.ask("b", OTHER), room.ask("c", ACCOUNT | OTHER)]
    await settled()
    await room.release(OTHER_PLACE)
    assert room.served == ["b"]
    await room.release(OTHER_PLACE)
    assert room.served == ["b", "c"]
    await room.release(PLACE)
    assert room.served == ["b", "c", "a"]
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_asking_in_vain_does_not_turn_the_order_round():
    """Many who want different things all ask at every wake; the order among them stays as it was."""
    room = Room()
    mixed = [frozenset({PLACE, f"other-{number}"}) for number in range(5)]
    tasks = [room.ask(f"key-{number}", wants) for number, wants in enumerate(mixed)]
    await settled()
    await room.release()
    await room.release()
    for _ in tasks:
        await room.release(PLACE)
    assert room.served == [f"key-{number}" for number in range(5)]
    await asyncio.gather(*tasks)


@on_virtual_time
async def test_what_is_waited_for_is_known_until_nobody_does():
    """Also while the one who waits has the turn and has not asked yet: a newcomer who asks now would overtake."""
    turns, ticket = Turns(), Ticket("a", ACCOUNT)
    waiting = asyncio.create_task(turns.wait(ticket, again_after=LATER))
    await settled()
    assert turns.is_wanted(PLACE)
    assert not turns.is_wanted(OTHER_PLACE)
    turns.wake()
    assert turns.is_wanted(PLACE)
    await waiting
    assert turns.is_wanted(PLACE)
    turns.leave(ticket, is_served=True)
    assert not turns.is_wanted(PLACE)


@on_virtual_time
async def test_no_turn_is_lost_with_one_who_leaves():
    """Cancelled before the turn, in the very moment of the turn, and while asking: the next one has it."""
    room = Room()
    before, during, last = room.ask("a"), room.ask("b"), room.ask("c")
    await settled()
    before.cancel()
    room.free[PLACE] += 1
    room.turns.wake()  # the first is gone already, but has not been told
    during.cancel()  # it has the turn, and will never use it
    await settled()
    assert room.served == ["c"]
    await last
    assert before.cancelled()
    assert during.cancelled()
    room.check_empty()


@on_virtual_time
async def test_a_key_of_which_one_gives_up_keeps_its_place():
    """Only who is served goes behind the others."""
    room = Room()
    tasks = [room.ask(key_id) for key_id in ("a", "a", "b")]
    await settled()
    tasks[0].cancel()
    await settled()
    await room.release(PLACE)
    assert room.served == ["a"]
    await room.release(PLACE)
    await asyncio.gather(*tasks, return_exceptions=True)
    room.check_empty()


@on_virtual_time
async def test_what_comes_free_while_somebody_asks_is_asked_for_again():
    """A question under way may have missed it; the next turn comes at once, once, and not after the timer."""
    turns, ticket = Turns(), Ticket("a", ACCOUNT)
    waiting = asyncio.create_task(turns.wait(ticket, again_after=LATER))
    await settled()
    turns.wake()
    await waiting
    turns.wake()
    turns.wake()
    started = asyncio.get_running_loop().time()
    await turns.wait(ticket, again_after=LATER)
    assert asyncio.get_running_loop().time() == started
    await turns.wait(ticket, again_after=2.0)
    assert asyncio.get_running_loop().time() == started + 2.0
    turns.leave(ticket, is_served=False)


@on_virtual_time
async def test_one_key_does_not_fill_the_queue():
    """There is room for others when it has all that it may have."""
    room = Room(turns=Turns(waiting_max=10, waiting_of_key_max=2))
    tasks = [room.ask(key_id) for key_id in ("a", "a", "a", "b")]
    await settled()
    assert room.turns.waiting == 3
    assert isinstance(tasks[2].exception(), QueueFullError)
    await room.release(*[PLACE] * 3)
    assert sorted(room.served) == ["a", "a", "b"]


@on_virtual_time
async def test_the_queue_is_bounded_for_a_key_and_for_all():
    """One more is told so at once; who leaves makes room."""
    turns = Turns(waiting_max=3, waiting_of_key_max=2)
    tickets = [Ticket(key_id, ACCOUNT) for key_id in ("a", "a", "b")]
    tasks = [asyncio.create_task(turns.wait(ticket, again_after=LATER)) for ticket in tickets]
    await settled()
    for key_id in ("a", "c"):
        with pytest.raises(QueueFullError):
            await turns.wait(refused := Ticket(key_id, ACCOUNT), again_after=LATER)
        turns.leave(refused, is_served=False)
    assert turns.waiting == 3
    tasks[0].cancel()
    await settled()
    turns.leave(tickets[0], is_served=False)
    tasks.append(asyncio.create_task(turns.wait(Ticket("c", ACCOUNT), again_after=LATER)))
    await settled()
    assert turns.waiting == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    turns._disarm()


@on_virtual_time
async def test_in_any_storm_everybody_is_served_or_gone_and_nothing_is_left():
    """A thousand requests of ten keys for three kinds of room, cancelled at random, released at random."""
    chance, room = random.Random(3), Room()
    wants = (ACCOUNT, OTHER, ACCOUNT | OTHER)
    tasks: list[asyncio.Task[None]] = []
    for _ in range(1_000):
        tasks.append(room.ask(f"key-{chance.randrange(10)}", chance.choice(wants), again_after=chance.choice((1, 60))))
        if chance.random() < 0.6:
            await settled()
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await room.release(chance.choice((PLACE, OTHER_PLACE)))
    gone = [task for task in tasks if task.cancelled() or task.cancelling()]
    while not all(task.done() for task in tasks):
        await room.release(PLACE, OTHER_PLACE)
    assert len(room.served) == len(tasks) - len([task for task in tasks if task.cancelled()])
    assert len(gone) > 100
    room.check_empty()
