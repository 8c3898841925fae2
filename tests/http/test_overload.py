"""A gateway that is full says so at once, and who asks for much does not keep out who asks for little."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.http.relay import OpenExchanges
from gateway.simulator import Settings as Simulated
from tests.http.fake_upstream import Call
from tests.http.house import Relay, chat, eventually
from tests.http.raw_client import Wire, request_of
from tests.http.test_bad_input import refused
from tests.http.test_streams import TRANSCRIPT
from tests.integration.served import served

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
def small(relay: Relay) -> Iterator[Relay]:
    """The gateway with room for ten."""
    before = relay.house.gateway.services.exchanges
    relay.house.gateway.services.exchanges = OpenExchanges(limit=10)
    yield relay
    relay.house.gateway.services.exchanges = before


async def sheds(relay: Relay) -> dict[str, str]:
    lines = (await relay.house.client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("gateway_shed_total{")]
    return {line.split('"')[1]: line.rpartition(" ")[2] for line in found}


async def test_a_busy_key_leaves_room_for_others(small: Relay):
    """One key gets nine of ten; another gets the last; then all is full, until something ends."""
    house, go_on = small.house, asyncio.Event()
    other = (await house.make_key())["key"]

    async def script(call: Call) -> None:
        await go_on.wait()
        await call.stream(TRANSCRIPT)

    small.upstream.script = script
    asked = [asyncio.create_task(house.ask(chat(stream=True))) for _ in range(9)]
    await eventually(lambda: len(house.gateway.services.exchanges) == 9)
    answer = await house.ask(chat(stream=True))
    refused(answer, 503, "overloaded")
    assert "share" in answer.text
    assert answer.headers["retry-after"] == "1"
    asked.append(asyncio.create_task(house.ask(chat(stream=True), key=other)))
    await eventually(lambda: len(house.gateway.services.exchanges) == 10)
    answer = await house.ask(chat(stream=True), key=other)
    refused(answer, 503, "overloaded")
    assert "as many requests open" in answer.text
    assert await sheds(small) == {"share": "1.0", "full": "1.0"}
    go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 10
    assert [(await house.ask(chat(stream=True))).status_code for _ in range(12)] == [200] * 12


async def test_the_limit_is_a_setting(anyio_backend: str, database_url: str, tmp_path: Path):
    """GATEWAY_CONCURRENCY_MAX is how many requests one process has open."""
    slow = Simulated(seed=3, chunk_ms=50, tokens_per_chunk=1)
    async with served(tmp_path, database_url, slow, GATEWAY_CONCURRENCY_MAX="1") as ours:
        key = await ours.make_key()
        wire = await Wire.open(ours.url)
        await wire.send(request_of(chat("Talk [[out=500]]", stream=True), key=key))
        await wire.read_until(b"\n\n")
        async with httpx.AsyncClient(base_url=ours.url, trust_env=False, timeout=20) as client:
            headers = {"authorization": f"Bearer {key}"}
            answer = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        refused(answer, 503, "overloaded")
        await wire.close()
