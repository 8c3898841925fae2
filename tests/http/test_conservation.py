"""Money in is money out: what three providers billed, what the ledger says and what is reported is one sum (law L1)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from gateway.simulator import Fault
from gateway.simulator import Settings as Simulated
from tests.http.house import House, chat, eventually, exact, open_house

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

REQUESTS = 300
AT_ONCE = 24
PICO = 10**12
FAULTS = [
    Fault(kind="server_error", share=0.05),
    Fault(kind="close_before_response", share=0.03),
    Fault(kind="error_in_ok", share=0.03),
    Fault(kind="bad_gateway_html", share=0.03),
    Fault(kind="reset_mid_body", share=0.04, after_chunks=3),
    Fault(kind="missing_done", share=0.05),
    Fault(kind="missing_usage", share=0.03),
    Fault(kind="usage_placement", share=0.2, placement="both"),
    Fault(kind="cached_spelling", share=0.2, spelling="top"),
    Fault(kind="split", share=0.1, mode="utf8"),
]
Sums = Counter[tuple[str, str, str]]


@pytest.fixture(scope="module")
async def busy_house(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    simulated = Simulated(seed=23, tokens_per_chunk=4, break_billing="stop")
    async with open_house(module_database_url, tmp_path_factory.mktemp("busy"), simulated=simulated) as house:
        for simulator in house.simulators.values():
            for fault in FAULTS:
                simulator.faults.add(fault, now=0.0)
        house.simulators["evolink"].faults.add(Fault(kind="rate_limit_rpm", count=3), now=0.0)
        yield house


async def play(house: House) -> list[Any]:
    """Growing conversations, streamed and not, with and without tools; answers by request."""
    chance, room = random.Random(99), asyncio.Semaphore(AT_ONCE)
    stories = [f"Story {number}. " * 200 for number in range(10)]

    async def ask(number: int, body: dict[str, Any]) -> Any:
        async with room:
            return await house.ask(body, x_gateway_tags=f"half={number % 2}")

    bodies = []
    for number in range(REQUESTS):
        story = stories[number % len(stories)] + "More. " * (number // len(stories) * 30)
        body = chat(f"{story} [[out={chance.randint(5, 120)}]]", stream=number % 2 == 0)
        if number % 5 == 0:
            body["model"] = "kimi-k2-thinking-turbo"
        if number % 7 == 0:
            body["provider"] = {"order": [chance.choice(["moonshot", "cometapi"])]}
        if number % 11 == 0:
            body["n"] = 2
        bodies.append(body)
    return await asyncio.gather(*(ask(number, body) for number, body in enumerate(bodies)))


def billed(house: House, estimated: set[str]) -> Sums:
    """What the providers billed for what they told, in pico-dollars by provider, model and class."""
    sums: Sums = Counter()
    for name, simulator in house.simulators.items():
        for line in simulator.bill.lines:
            if line.attempt_id in estimated:
                assert line.told != "told" or line.ended != "complete"
                continue
            for kind in ("input", "cached", "output"):
                sums[name, line.model, kind] += getattr(line, f"{kind}_pico")
                sums[name, line.model, f"{kind} tokens"] += getattr(line, f"{kind}_tokens")
    return +sums


def ledgered(rows: list[dict[str, Any]]) -> Sums:
    sums: Sums = Counter()
    for row in rows:
        cached = row["cached_tokens"] or 0
        tokens = {"input": row["input_tokens"] - cached, "cached": cached, "output": row["output_tokens"]}
        for kind, count in tokens.items():
            cost = Decimal(row[f"{kind}_cost"]) * PICO
            assert cost == int(cost)
            sums[row["provider"], row["model"], kind] += int(cost)
            sums[row["provider"], row["model"], f"{kind} tokens"] += count
    return +sums


async def test_three_books_agree(busy_house: House):
    """After 300 requests with faults: Σ bills = Σ ledger = Σ report, by provider, model and class, difference 0."""
    house = busy_house
    answers = await play(house)
    await eventually(lambda: len(house.gateway.services.exchanges) == 0)
    rows = await house.ledger()
    estimated = {row["attempt_id"] for row in rows if row["usage_source"] == "estimated"}
    assert billed(house, estimated) == ledgered([row for row in rows if row["attempt_id"] not in estimated])

    calls = [call.attempt_id for simulator in house.simulators.values() for call in simulator.requests if call.model]
    assert sorted(calls) == sorted(row["attempt_id"] for row in rows)
    assert {answer.headers["x-request-id"] for answer in answers} == {row["request_id"] for row in rows}
    failed = [answer for answer in answers if answer.status_code != 200]
    assert all(answer.json()["error"]["code"] == "upstream_error" for answer in failed)
    assert len(failed) <= REQUESTS * 0.05, Counter(answer.text[:200] for answer in failed)
    assert estimated
    assert len(rows) > REQUESTS

    report = exact((await house.admin("GET", "/reports/spend", params={"group_by": "provider,model,tag:half"})).text)
    told: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        told[row["provider"], row["model"], row["tags"]["half"]] += Decimal(row["cost"])  # type: ignore[assignment]
    reported = {(row["provider"], row["model"], row["tag:half"]): Decimal(row["cost"]) for row in report["rows"]}
    assert reported == dict(told)
    assert Decimal(report["total"]["cost"]) == sum(reported.values())
    assert report["total"]["requests"] == REQUESTS
    assert report["total"]["attempts"] == len(rows)
