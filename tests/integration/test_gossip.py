"""Replicas hear each other in order and at most once over a real server, whatever becomes of it, and nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import redis

from gateway.adapters.clock import SystemClock
from gateway.adapters.redis import gossip as redis_gossip
from gateway.adapters.redis.gossip import RedisGossip
from gateway.core.failure import Failure, FailureClass
from gateway.core.happenings import Answered, Checked, Ended, Sent
from gateway.core.health import WELL, HealthChanged, after_failure
from gateway.pipeline.ports import BalanceTold, Message
from tests.http.house import eventually
from tests.prove.valkey import Valkey, valkey

pytestmark = [pytest.mark.anyio, pytest.mark.integration]
STREAM = "{kgw}:gossip"


class Replica:
    """One worker's gossip, and what it has heard."""

    def __init__(self, url: str, name: str, *, entries_max: int = redis_gossip.ENTRIES_MAX) -> None:
        self.gossip = RedisGossip(url, name, clock=SystemClock(), entries_max=entries_max)
        self.heard: list[Message] = []
        self.gossip.on_heard(self.heard.append)

    def tell(self, *numbers: int) -> None:
        for number in numbers:
            self.gossip.tell(numbered(number))

    @property
    def numbers(self) -> list[int]:
        return [int(each.attempt_id) for each in self.heard if isinstance(each, Ended)]


def numbered(number: int) -> Ended:
    return Ended(attempt_id=str(number), at=0.0, is_warm=False)


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.gossip.run(stop)) for each in replicas]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def until(happened: Callable[[], bool]) -> None:
    assert await eventually(happened)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Valkey]:
    """A server that the test may kill."""
    with valkey(tmp_path / "own") as server:
        yield server


def every_kind() -> list[Message]:
    out = after_failure(
        WELL,
        Failure(kind=FailureClass.MODEL_GONE, message="a secret of nobody"),
        SystemClock().now(),
        began=SystemClock().now(),
        jitter=0.5,
    )
    return [
        Sent(
            attempt_id="a", provider="p", account="main", model="m", tenant="t", at=1.5, digests=(1, 2**64 - 1),
            tokens=(10, 20), family=3, turn=1, follows=4, output_tokens=5,
        ),
        Answered(attempt_id="a", at=2.5, input_tokens=20, cached_tokens=10, output_tokens=3, seconds=1.0),
        numbered(7),
        Checked(provider="p", model="m", tenant="t", at=2.0, fault=None),
        HealthChanged("p", None, "m", out),
        BalanceTold("p", "main", Decimal("49.58894"), "USD", 3.5),
    ]  # fmt: skip


async def test_every_message_is_heard_as_it_was_told(redis_url: str) -> None:
    """By the other, not by the one who told it."""
    one, two = Replica(redis_url, "one"), Replica(redis_url, "two")
    async with running(one, two):
        for message in every_kind():
            one.gossip.tell(message)
        await until(lambda: len(two.heard) == 6)
        two.tell(1)
        await until(lambda: bool(one.heard))
    assert two.heard == every_kind()[:4] + two.heard[4:5] + every_kind()[5:]
    told = two.heard[4]
    assert isinstance(told, HealthChanged)
    assert (told.subject, told.health.kind) == (("p", None, "m"), FailureClass.MODEL_GONE)
    assert told.health.out_until is not None and told.health.out_until.tzinfo is not None
    assert one.numbers == [1]
    with redis.Redis.from_url(redis_url) as client:
        assert b"secret" not in b"".join(members[b"m"] for _, members in client.xrange(STREAM))


async def test_ten_thousand_in_order_and_nobody_waits(redis_url: str) -> None:
    """Told in one turn of the loop, as fast as they can be made."""
    one, two = Replica(redis_url, "one"), Replica(redis_url, "two")
    async with running(one, two):
        one.tell(*range(10_000))
        assert two.heard == []
        await until(lambda: len(two.heard) >= 10_000)
        assert two.numbers == list(range(10_000))
        await until(lambda: one.gossip.counts.told == 10_000)
    assert (one.gossip.counts.dropped, two.gossip.counts.heard, two.gossip.counts.skipped) == (0, 10_000, 0)
    assert 0 <= two.gossip.counts.lag_seconds < 20


async def test_a_worker_that_starts_late_hears_the_recent_past(redis_url: str) -> None:
    """Its own former life included; what is older than an hour is not heard."""
    one = Replica(redis_url, "one")
    with redis.Redis.from_url(redis_url) as client:
        seconds, _ = client.time()
        old = msgspec.msgpack.encode((redis_gossip.VERSION, "one", [numbered(99)]))
        client.xadd(STREAM, {"m": old}, id=f"{(seconds - 3_700) * 1000}-0")
    async with running(one):
        one.tell(*range(500))
        await until(lambda: one.gossip.counts.told == 500)
    late, again = Replica(redis_url, "late"), Replica(redis_url, "one-again")
    async with running(late, again):
        await until(lambda: len(late.heard) == 500 and len(again.heard) == 500)
        again.tell(500)
        await until(lambda: len(late.heard) == 501)
    assert late.numbers == list(range(501))


async def test_a_server_that_is_killed_costs_what_was_on_its_way(own_server: Valkey) -> None:
    """What is told meanwhile is heard once it is back; nothing twice, and nothing out of order."""
    one, two = Replica(own_server.url, "one"), Replica(own_server.url, "two")
    async with running(one, two):
        one.tell(1, 2)
        await until(lambda: two.numbers == [1, 2])
        own_server.kill()
        one.tell(*range(3, 6))
        await asyncio.sleep(0.3)
        one.tell(6, 7)
        own_server.start()
        await until(lambda: two.numbers[-1] == 7)
        two.tell(8)
        await until(lambda: one.numbers == [8])
    assert two.numbers == sorted(set(two.numbers))
    assert {1, 2, 6, 7} <= set(two.numbers)
    assert one.gossip.counts.told + one.gossip.counts.dropped == 7


async def test_a_flush_loses_the_past_and_nothing_else(redis_url: str) -> None:
    """The stream begins again; who was reading reads on."""
    one, two = Replica(redis_url, "one"), Replica(redis_url, "two")
    async with running(one, two):
        one.tell(1)
        await until(lambda: two.numbers == [1])
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        one.tell(2)
        await until(lambda: two.numbers == [1, 2])


async def test_a_server_that_does_not_answer_keeps_nobody_waiting(own_server: Valkey) -> None:
    """Words wait, the oldest are forgotten, and the newest are told when it goes on; a claim is then one's own."""
    one, two = Replica(own_server.url, "one"), Replica(own_server.url, "two")
    async with running(one, two):
        one.tell(0)
        await until(lambda: two.numbers == [0])
        own_server.stop()
        loop = asyncio.get_running_loop()
        before = loop.time()
        one.tell(*range(1, 30_001))
        assert await one.gossip.claim("something", 5)
        assert loop.time() - before < 2
        own_server.go_on()
        await until(lambda: two.numbers[-1] == 30_000)
    counts = one.gossip.counts
    assert counts.told + counts.dropped == 30_001
    assert counts.dropped >= 30_000 - redis_gossip.WAITING_MAX - 1
    assert two.numbers == sorted(set(two.numbers))


async def test_what_cannot_be_read_is_skipped(redis_url: str) -> None:
    """Another version, garbage, a kind of tomorrow: counted, and the next one is heard."""
    two = Replica(redis_url, "two")
    pack = msgspec.msgpack.encode
    strange = [
        pack((2, "one", [numbered(1)])),
        pack((1, "one", [["x", "what comes tomorrow"]])),
        pack((1, "one", 5)),
        b"\xc1garbage",
        b"",
    ]
    with redis.Redis.from_url(redis_url) as client:
        for payload in strange:
            client.xadd(STREAM, {"m": payload})
        client.xadd(STREAM, {"m": pack((1, "one", [numbered(6)]))})
    async with running(two):
        await until(lambda: two.numbers == [6])
    assert two.gossip.counts.skipped == 5


async def test_the_stream_is_bounded(redis_url: str) -> None:
    """However much is told, about as many entries are kept as shall be: the server forgets whole hundreds."""
    one = Replica(redis_url, "one", entries_max=100)
    async with running(one):
        for number in range(600):
            one.tell(number)
            await until(lambda: one.gossip.counts.told == number + 1)  # noqa: B023
    with redis.Redis.from_url(redis_url) as client:
        assert 100 <= client.xlen(STREAM) <= 250


async def test_one_replica_has_a_claim(redis_url: str) -> None:
    """Until it gives it back, or its time is over; whoever has no server has it too."""
    one, two = Replica(redis_url, "one"), Replica(redis_url, "two")
    alone = Replica("redis://127.0.0.1:1/0", "alone")
    async with running(one, two):
        one.tell(1)
        two.tell(2)
        await until(lambda: bool(one.heard and two.heard))
        assert await one.gossip.claim("probe", 30)
        assert not await two.gossip.claim("probe", 30)
        two.gossip.give_back("probe")
        assert not await two.gossip.claim("probe", 30)
        one.gossip.give_back("probe")
        await asyncio.sleep(0)
        assert await one.gossip.claim("other", 0.001)
        assert await two.gossip.claim("probe", 30)
        assert await alone.gossip.claim("probe", 30)
