"""A client that leaves ends its upstream call and leaves exactly one row, with what it may have cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Settings as Simulated
from tests.http.conftest import Connect
from tests.http.fake_upstream import STREAM_HEAD, Call, chunk
from tests.http.house import House, Relay, chat, eventually, open_house, open_relay
from tests.http.raw_client import Wire, request_of
from tests.wire.transcripts import ANSWER, DONE, delta, finish, totals

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PROMPTLY_SECONDS_MAX = 3.0
"""On a busy machine; an answer that nobody cut short would take longer."""
SLOW = Simulated(seed=5, chunk_ms=20, first_byte_ms=150, abort_billing="stop")


@pytest.fixture(scope="module")
async def slow_house(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    """A gateway over simulators that take their time."""
    async with open_house(module_database_url, tmp_path_factory.mktemp("slow"), simulated=SLOW) as house:
        yield house


async def leave_before_headers(wire: Wire, house: House) -> None:
    await eventually(lambda: any(map(_in_flight, house.simulators.values())))
    await wire.close()


async def leave_after_the_first_chunk(wire: Wire, house: House) -> None:
    await wire.read_until(b"\n\n")
    await wire.close()


async def leave_in_the_middle(wire: Wire, house: House) -> None:
    came = b""
    while came.count(b"\n\n") < 12:
        came += await wire.read_until(b"\n\n")
    await wire.close()


async def leave_with_a_reset(wire: Wire, house: House) -> None:
    await wire.read_until(b"\n\n")
    await wire.reset()


async def leave_by_half(wire: Wire, house: House) -> None:
    await wire.read_until(b"\n\n")
    wire.half_close()
    await wire.read_all()


LEAVING = [
    leave_before_headers, leave_after_the_first_chunk, leave_in_the_middle, leave_with_a_reset, leave_by_half,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEAVING)
async def test_hang_ups(slow_house: House, connect: Connect, leave: Any):
    """Wherever a client hangs up: one row, aborted and estimated, and its provider sees the call end at once."""
    house = slow_house
    made = await house.make_key()
    wire = await connect(house.url)
    await wire.send(request_of(chat("Talk [[out=400]]", stream=True), key=made["key"]))
    await leave(wire, house)
    ended = asyncio.get_running_loop().time() + PROMPTLY_SECONDS_MAX
    row = await house.only_row(made["id"])
    simulator = house.simulators[row["provider"]]
    await eventually(lambda: not _in_flight(simulator), seconds=PROMPTLY_SECONDS_MAX)
    (call,) = [call for call in simulator.requests if call.attempt_id == row["attempt_id"]]
    assert asyncio.get_running_loop().time() < ended
    assert call.ended in ("aborted", None)
    assert (row["status"], row["usage_source"]) == ("aborted", "estimated")
    assert Decimal(row["cost"]) > 0
    if leave is not leave_before_headers:
        (line,) = [line for line in simulator.bill.lines if line.attempt_id == row["attempt_id"]]
        assert abs(line.output_tokens - row["output_tokens"]) <= 3  # what was on its way when the client left
        assert line.told == "untold"


async def test_a_hang_up_without_a_stream(slow_house: House, connect: Connect):
    """A client that leaves while a whole answer is being made leaves one row, too."""
    house = slow_house
    made = await house.make_key()
    wire = await connect(house.url)
    await wire.send(request_of(chat("Talk [[out=400]]"), key=made["key"]))
    await eventually(lambda: any(s.accounts and _in_flight(s) for s in house.simulators.values()))
    await wire.close()
    row = await house.only_row(made["id"])
    assert (row["status"], row["usage_source"]) == ("aborted", "estimated")
    await eventually(lambda: not any(map(_in_flight, house.simulators.values())), seconds=PROMPTLY_SECONDS_MAX)


def _in_flight(simulator: Any) -> int:
    return sum(account.limiter.in_flight for account in simulator.accounts.values())


async def test_many_hang_ups_at_once(slow_house: House, connect: Connect):
    """Forty clients that leave in the same moment leave forty rows and nothing that still runs."""
    house = slow_house
    made = await house.make_key()
    wires = [await connect(house.url) for _ in range(40)]
    for wire in wires:
        await wire.send(request_of(chat("Talk [[out=400]]", stream=True), key=made["key"]))
    await asyncio.gather(*(wire.read_until(b"\n\n") for wire in wires))
    await asyncio.gather(*(wire.reset() for wire in wires))
    await eventually(lambda: len(house.gateway.services.exchanges) == 0, seconds=5)
    rows = await house.rows_of_key(made["id"])
    assert [row["status"] for row in rows] == ["aborted"] * 40
    assert len({row["request_id"] for row in rows}) == 40
    assert not any(map(_in_flight, house.simulators.values()))


# -- over a scripted upstream ------------------------------------------------------------------------------------------


async def test_the_upstream_connection_is_closed_at_once(relay: Relay, connect: Connect):
    """The upstream's connection ends promptly after the client's, also while the upstream is silent."""

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(ANSWER))
        await call.left.wait()

    relay.upstream.script = script
    made = await relay.house.make_key()
    wire = await connect(relay.house.url)
    await wire.send(request_of(chat(stream=True), key=made["key"]))
    call = await relay.upstream.call()
    await wire.read_until(b"hello")
    await wire.close()
    async with asyncio.timeout(PROMPTLY_SECONDS_MAX):
        await call.left.wait()
    row = await relay.house.only_row(made["id"])
    assert (row["status"], row["usage_source"]) == ("aborted", "estimated")
    assert len(relay.upstream.calls) == 1


async def test_a_client_that_leaves_after_the_last_event(relay: Relay, connect: Connect):
    """A client that leaves as soon as it has read [DONE] has its answer: succeeded, with the provider's usage."""

    async def script(call: Call) -> None:
        await call.stream(ANSWER, finish(in_choice=totals(9, 3)), DONE)

    relay.upstream.script = script
    made = await relay.house.make_key()
    wire = await connect(relay.house.url)
    await wire.send(request_of(chat(stream=True), key=made["key"]))
    await wire.read_until(b"data: [DONE]\n\n")
    await wire.reset()
    row = await relay.house.only_row(made["id"])
    assert (row["status"], row["usage_source"], row["output_tokens"]) == ("succeeded", "provider", 3)


@pytest.fixture(scope="module")
async def draining_relay(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Relay]:
    """A gateway that reads on to the usage after a hang-up, and has little patience with clients that do not read."""

    def edit(text: str) -> str:
        return text.replace('# on_client_abort   = "cancel"', 'on_client_abort = "drain" #').replace(
            "idle = 120", "idle = 0.5"
        )

    folder = tmp_path_factory.mktemp("draining")
    async with open_relay(module_database_url, folder, edits={"providers.toml": edit}) as relay:
        yield relay


async def test_a_hang_up_in_drain_mode(draining_relay: Relay, connect: Connect):
    """In drain mode the upstream is read on, and the row has the usage it told in the end."""
    relay, go_on = draining_relay, asyncio.Event()
    relay.reset()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(ANSWER))
        await go_on.wait()
        await call.send(chunk(delta(content="more") + finish(in_choice=totals(9, 300)) + DONE), b"0\r\n\r\n")

    relay.upstream.script = script
    made = await relay.house.make_key()
    wire = await connect(relay.house.url)
    body = chat(stream=True, provider={"only": ["moonshot"]})
    await wire.send(request_of(body, key=made["key"]))
    await wire.read_until(b"hello")
    await wire.close()
    await eventually(lambda: all(watch.client_gone for watch in relay.house.gateway.services.exchanges.watches()))
    go_on.set()
    row = await relay.house.only_row(made["id"])
    assert (row["status"], row["usage_source"], row["output_tokens"]) == ("aborted", "provider", 300)


async def test_a_client_that_does_not_read(draining_relay: Relay, connect: Connect):
    """A client that stays and reads nothing is gone once the patience for it is over; its upstream call ends."""
    relay = draining_relay
    relay.reset()
    big = chunk(delta(content="x" * 60_000))

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(ANSWER))
        for _ in range(1_000):
            await call.send(big)

    relay.upstream.script = script
    made = await relay.house.make_key()
    wire = await connect(relay.house.url, receive_buffer=4096)
    await wire.send(request_of(chat(stream=True, provider={"only": ["evolink"]}), key=made["key"]))
    call = await relay.upstream.call()
    async with asyncio.timeout(10):
        await call.left.wait()
    row = await relay.house.only_row(made["id"])
    assert (row["status"], row["usage_source"]) == ("aborted", "estimated")
    assert len(relay.house.gateway.services.exchanges) == 0


async def test_a_shutdown_in_mid_stream(anyio_backend: str, database_url: str, tmp_path: Path, connect: Connect):
    """A stop lets open streams finish: the client reads its answer to the end, and the books have it."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(ANSWER))
        await go_on.wait()
        await call.send(chunk(finish(in_choice=totals(9, 300)) + DONE), b"0\r\n\r\n")

    async with open_relay(database_url, tmp_path) as relay:
        relay.upstream.script = script
        wire = await connect(relay.house.url)
        await wire.send(request_of(chat(stream=True), key=relay.house.key))
        await wire.read_until(b"hello")
        relay.house.gateway.begin_shutdown()
        ready = await relay.house.client.get("/readyz")
        assert (ready.status_code, ready.json()["problems"]) == (503, ["shutting down"])
        assert (await relay.house.client.get("/healthz")).status_code == 200
        late = await relay.house.ask(chat())
        assert (late.status_code, late.json()["error"]["code"]) == (503, "overloaded")
        assert late.headers["retry-after"]
        relay.house.server.should_exit = True
        go_on.set()
        came = await wire.read_all()
    assert b"data: [DONE]" in came
