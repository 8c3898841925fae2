"""Two gateways over one Redis and one database are one gateway to whoever counts requests or money."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis

from gateway.adapters.redis.allowances import RedisAllowances
from gateway.core.health import Subject
from gateway.core.money import Money
from gateway.simulator import PROVIDERS, Fault, Simulator, running
from gateway.simulator import Settings as Simulated
from tests.http.house import House, chat, eventually, serving

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def houses(anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[list[House]]:
    """Two gateways over the same simulated providers."""
    async with AsyncExitStack() as stack:
        slow = Simulated(seed=11, first_byte_ms=500)  # so that what is asked at once is under way at once
        simulators = [Simulator(provider, slow) for provider in PROVIDERS]
        addresses = await stack.enter_async_context(running(simulators))
        found = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            house = serving(database_url, tmp_path / name, addresses, redis_url=redis_url)
            simulated = {simulator.provider: simulator for simulator in simulators}
            found.append(replace(await stack.enter_async_context(house), simulators=simulated))
        for house in found:
            await eventually(lambda house=house: shared(house).state == "ok")
        yield found


def shared(house: House) -> RedisAllowances:
    allowances = house.gateway.allowances
    assert isinstance(allowances, RedisAllowances)
    return allowances


async def asked_of_both(houses: list[House], key: str, times: int) -> Counter[tuple[int, str]]:
    """The same request many times at once, half of them at each gateway: statuses and codes."""
    answers = await asyncio.gather(*(houses[n % 2].ask(chat(max_tokens=64), key=key) for n in range(times)))
    return Counter(
        (answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["code"]) for answer in answers
    )


async def test_a_limit_counts_at_both(houses: list[House]) -> None:
    """A key with five requests a minute has five, wherever they are made."""
    key = (await houses[0].make_key(rpm=5))["key"]
    assert await asked_of_both(houses, key, 20) == {(200, ""): 5, (429, "rate_limit_exceeded"): 15}
    for house in houses:
        ready = (await house.client.get("/readyz")).json()
        assert ready["shared_state"] == {"state": "ok", "generation": 1}
        metrics = (await house.client.get("/metrics")).text
        assert 'gateway_shared_state{state="ok"} 1.0' in metrics
        assert "gateway_shared_state_generation 1.0" in metrics


async def test_a_budget_counts_at_both_and_survives_a_flush(
    houses: list[House], database_url: str, redis_url: str
) -> None:
    """What both have spent is what the ledger has, before and after Redis has lost it."""
    made = await houses[0].make_key()
    with psycopg.connect(database_url) as db:
        db.execute(
            "INSERT INTO budgets (scope, period, limit_pico) VALUES (%s, 'month', %s)",
            (f"key:{made['id']}", Money.from_usd("0.01").pico),
        )
    for house in houses:
        await house.gateway.keys.refresh()
    first = await asked_of_both(houses, made["key"], 40)
    assert first[200, ""] > 0 and first[402, "budget_exceeded"] > 0
    assert set(first) == {(200, ""), (402, "budget_exceeded")}
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    second = await asked_of_both(houses, made["key"], 10)
    assert set(second) <= {(200, ""), (402, "budget_exceeded")}
    assert {shared(house).generation for house in houses} == {2}
    for house in houses:
        assert await house.gateway.shipper.flush(10)
        assert await eventually(lambda house=house: equal(house))
    spent = sum(Money.from_usd(str(row["cost"])).pico for row in await houses[0].rows_of_key(made["id"]))
    window = next(window for window in shared(houses[0]).books.windows.all() if window.scope == f"key:{made['id']}")
    figures = (await shared(houses[1]).figures([window]))[window.key]
    assert (figures.spent, figures.held) == (spent, 0)
    assert spent <= Money.from_usd("0.01").pico


async def equal(house: House) -> bool:
    return await shared(house).differences() == {}


async def test_what_one_sees_failing_the_other_leaves_alone(houses: list[House]) -> None:
    """Five failures at one worker, and the other sends nothing there; the first answer there brings it back for both;
    both show why."""
    evolink = houses[0].simulators["evolink"]
    evolink.faults.add(Fault(kind="server_error"), now=0.0)
    wanted = {"order": ["evolink"]}
    for _ in range(5):
        assert (await houses[0].ask(chat(provider=wanted))).status_code == 200
    await eventually(lambda: out_at(houses[1]))
    before = len(evolink.requests)
    answer = await houses[1].ask(chat(provider=wanted))
    assert (answer.status_code, answer.headers["x-gateway-attempts"]) == (200, "1")
    assert len(evolink.requests) == before
    states = (await houses[1].admin("GET", "/providers")).json()["data"]
    (shown,) = [each for each in states if each["provider"] == "evolink"]
    assert [(each["model"], each["reason"], each["state"]) for each in shown["out"]] == [
        ("kimi-k2-thinking", "transient", "out")
    ]
    assert {each["model"]: each["state"] for each in shown["breaker"]}["kimi-k2-thinking"] == "open"
    metrics = (await houses[1].client.get("/metrics")).text
    assert 'gateway_provider_out{account="main",model="kimi-k2-thinking",provider="evolink"} 1.0' in metrics
    assert 'gateway_gossip_messages_total{outcome="heard"}' in metrics
    evolink.faults.clear()
    await eventually(lambda: is_served_by_evolink(houses[1], wanted))
    await eventually(lambda: not out_at(houses[0]))


async def test_a_worker_that_starts_late_knows_what_others_have_seen(
    houses: list[House], database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Whose purse is empty, before its first request."""
    houses[0].simulators["evolink"].faults.add(Fault(kind="payment_required"), now=0.0)
    await houses[0].ask(chat(provider={"order": ["evolink"]}))
    (tmp_path / "late").mkdir()
    async with serving(database_url, tmp_path / "late", houses[0].addresses, redis_url=redis_url) as late:
        await eventually(lambda: out_at(late, model=None))


def out_at(house: House, model: str | None = "kimi-k2-thinking") -> bool:
    health = house.gateway.health.of(Subject("evolink", "main", model))
    return health.is_out(house.gateway.clock.now())


async def is_served_by_evolink(house: House, wanted: dict[str, list[str]]) -> bool:
    return (await house.ask(chat(provider=wanted))).headers["x-gateway-provider"] == "evolink"
