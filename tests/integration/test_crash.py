"""A gateway that is killed under load and started again has lost nothing it acknowledged, and books nothing twice."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from gateway.simulator import Settings as Simulated
from tests.http.house import chat, eventually
from tests.integration.served import Served, served

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

AT_ONCE = 16
ACKNOWLEDGED_MIN = 25
PACED = Simulated(seed=3, chunk_ms=4, tokens_per_chunk=4, first_byte_ms=10)


async def one(client: httpx.AsyncClient, key: str, number: int, acknowledged: dict[str, Decimal | None]) -> None:
    """One request; noted once its client has all of its answer."""
    streamed = number % 2 == 0
    body = chat(f"Go {number} [[out=60]]", stream=streamed)
    headers = {"authorization": f"Bearer {key}"}
    try:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError:
        return
    if answer.status_code != 200 or (streamed and not answer.content.endswith(b"data: [DONE]\n\n")):
        return
    cost = answer.headers.get("x-gateway-cost-usd")
    acknowledged[answer.headers["x-request-id"]] = None if cost is None else Decimal(cost)


async def load(ours: Served, key: str, acknowledged: dict[str, Decimal | None], stop: asyncio.Event) -> None:
    """Keeps so many requests open until the stop."""

    async def worker(first: int) -> None:
        number = first
        while not stop.is_set():
            await one(client, key, number, acknowledged)
            number += AT_ONCE

    async with httpx.AsyncClient(base_url=ours.url, timeout=20, trust_env=False) as client:
        await asyncio.gather(*(worker(first) for first in range(AT_ONCE)))


async def test_a_kill_under_load(anyio_backend: str, database_url: str, tmp_path: Path):
    """kill -9, twice: what a client has is in the ledger once; every upstream call has one row, open ones flagged."""
    acknowledged: dict[str, Decimal | None] = {}
    async with served(tmp_path, database_url, PACED) as ours:
        key = await ours.make_key()
        for round_ in range(1, 3):
            stop = asyncio.Event()
            clients = asyncio.create_task(load(ours, key, acknowledged, stop))
            enough = ACKNOWLEDGED_MIN * round_
            await eventually(lambda enough=enough: len(acknowledged) >= enough)
            stop.set()
            assert await ours.end(signal.SIGKILL) == -signal.SIGKILL
            await clients
            await ours.start()

        async def is_whole() -> bool:
            return set(ours.attempts()) <= {row["attempt_id"] for row in await ours.ledger()}

        await eventually(is_whole)
        rows = await ours.ledger()
        assert await ours.end() == 0, ours.log()

    assert max(Counter(row["attempt_id"] for row in rows).values()) == 1
    succeeded = Counter(row["request_id"] for row in rows if row["status"] == "succeeded")
    assert {request_id: succeeded[request_id] for request_id in acknowledged} == dict.fromkeys(acknowledged, 1)
    costs = {row["request_id"]: Decimal(row["cost"]) for row in rows}
    assert all(costs[request_id] == cost for request_id, cost in acknowledged.items() if cost is not None)
    seen = set(ours.attempts())
    cut_short = [row for row in rows if row["status"] == "abandoned"]
    assert cut_short
    for row in rows:
        if row["status"] == "abandoned":
            assert row["usage_source"] == "estimated"
            assert Decimal(row["cost"]) > 0
        else:
            assert row["attempt_id"] in seen
