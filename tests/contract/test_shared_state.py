"""One suite for the port SharedState: in memory and in PostgreSQL, a generation is founded by one worker only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from gateway.adapters.memory import MemorySharedState
from gateway.adapters.postgres.shared_state import PostgresSharedState
from gateway.pipeline.ports import LIVE_SECONDS, SharedState, StoreUnavailableError

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "postgres"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[SharedState]:
    if request.param == "memory":
        yield MemorySharedState()
        return
    state = PostgresSharedState(request.getfixturevalue("database_url"))
    yield state
    await state.close()


async def test_a_number_is_given_once(shared: SharedState) -> None:
    """Of many who have seen the same last number, one gets the next; it is above what an older server has."""
    assert (await shared.seen("w1")).generation == 0
    given = await asyncio.gather(*(shared.next_generation(after=0, above=0) for _ in range(8)))
    assert sorted(given, key=str) == [1, *[None] * 7]
    assert await shared.next_generation(after=0, above=5) is None
    assert await shared.next_generation(after=1, above=5) == 6
    assert (await shared.seen("w1")).generation == 6


async def test_who_was_seen_lives_until_it_leaves(shared: SharedState) -> None:
    """Everybody who was seen is known to everybody, itself included from the first time."""
    assert (await shared.seen("w1")).live == {"w1"}
    assert (await shared.seen("w2")).live == {"w1", "w2"}
    assert (await shared.seen("w1")).live == {"w1", "w2"}
    await shared.leave("w2")
    assert (await shared.seen("w1")).live == {"w1"}


async def test_who_was_not_seen_lately_does_not_live(database_url: str) -> None:
    """A worker that was killed is not waited for longer than it takes to notice; its row goes after a day."""
    shared = PostgresSharedState(database_url)
    for name in ("w-late", "w-old"):
        await shared.seen(name)
    with psycopg.connect(database_url) as db:
        age = "UPDATE workers SET seen_at = now() - %s * interval '1 second' WHERE worker_id = %s"
        db.execute(age, (LIVE_SECONDS + 0.1, "w-late"))
        db.execute(age, (86_401, "w-old"))
    assert (await shared.seen("w1")).live == {"w1"}
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT worker_id FROM workers ORDER BY worker_id").fetchall()
    assert [name for (name,) in rows] == ["w-late", "w1"]
    await shared.close()


async def test_a_database_that_is_away_is_said_to_be() -> None:
    """Nothing is made up."""
    shared = PostgresSharedState("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailableError):
        await shared.seen("w1")
    with pytest.raises(StoreUnavailableError):
        await shared.next_generation(after=0, above=0)
    await shared.close()
