"""Limits and budgets as clients meet them: a key is made by the administration, and the official SDK understands."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest

from tests.http.fake_upstream import Call, json_answer
from tests.http.house import MODEL, House, Relay, chat, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ANSWER = {
    "id": "cmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Because."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}
HELLO = [{"role": "user", "content": "Hello"}]
BODY = {"model": MODEL, "messages": HELLO, "max_tokens": 64}


class Gate:
    """A provider that answers nobody before it is opened."""

    def __init__(self, relay: Relay) -> None:
        self.opened = asyncio.Event()
        self.relay = relay
        relay.upstream.script = self._script

    async def _script(self, call: Call) -> None:
        await self.opened.wait()
        await call.send(json_answer(ANSWER))

    @property
    def called(self) -> int:
        return len(self.relay.upstream.calls)


@pytest.fixture
async def gate(relay: Relay) -> AsyncIterator[Gate]:
    held = Gate(relay)
    yield held
    held.opened.set()


@pytest.fixture
def house(relay: Relay) -> House:
    return relay.house


def sdk(house: House, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0, timeout=20)


async def price_of_one(house: House) -> Decimal:
    """What a request holds, as the refusal says it."""
    key = (await house.make_key(budget="0.000000000001", period="total"))["key"]
    answer = await house.ask(BODY, key=key)
    assert answer.status_code == 402
    found = re.search(r"this request needs \$([0-9.]+)\.", answer.json()["error"]["message"])
    assert found is not None
    return Decimal(found[1])


def told(answers: list[httpx.Response]) -> Counter[tuple[int, str]]:
    return Counter(
        (each.status_code, "" if each.status_code == 200 else each.json()["error"]["code"]) for each in answers
    )


@pytest.mark.parametrize("fits", [1, 5])
async def test_a_budget_lets_exactly_as_many_through_as_it_bears(house: House, gate: Gate, fits: int):
    """Twenty times as many at once: the others are told 402, before the first has been answered."""
    made = await house.make_key(budget=str(fits * await price_of_one(house)), period="month")
    asking = [asyncio.create_task(house.ask(BODY, key=made["key"])) for _ in range(20 * fits)]
    await eventually(lambda: sum(task.done() for task in asking) == 19 * fits)
    await eventually(lambda: gate.called == fits)  # an intent is synced first
    gate.opened.set()
    answers = await asyncio.gather(*asking)
    assert told(answers) == {(200, ""): fits, (402, "budget_exceeded"): 19 * fits}
    assert gate.called == fits
    assert house.gateway.allowances.book.holds == {}
    rows = await eventually(lambda: rows_of(house, made["id"], fits))
    assert all(row["usage_source"] == "provider" for row in rows)


async def rows_of(house: House, key_id: str, count: int) -> list[dict[str, Any]]:
    found = await house.rows_of_key(key_id)
    return found if len(found) == count else []


async def test_a_budget_that_is_spent_says_so(house: House, gate: Gate):
    """The second request finds what the first has cost, with its window and its reset, in OpenAI's envelope."""
    gate.opened.set()
    made = await house.make_key(name="spent", budget=str(await price_of_one(house)), period="day")
    assert (await house.ask(BODY, key=made["key"])).status_code == 200
    for streamed in (False, True):
        answer = await house.ask({**BODY, "stream": streamed}, key=made["key"])
        assert answer.status_code == 402
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "budget_exceeded"
        assert re.search(
            r'The budget of the key "spent", \$[0-9.]+ a day, has \$[0-9.]+ available; this request needs \$[0-9.]+\. '
            r"It is reset at \d{4}-\d\d-\d\dT00:00:00Z\.",
            error["message"],
        )
        assert answer.headers["x-request-id"] in error["message"]


async def test_the_sdk_raises_what_it_should_for_a_budget(house: House):
    """An error with the status and the code, streaming or not."""
    key = (await house.make_key(budget="0.000000000001", period="total"))["key"]
    async with sdk(house, key) as client:
        for streamed in (False, True):
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model=MODEL, messages=HELLO, stream=streamed)  # type: ignore[call-overload]
            assert (caught.value.status_code, caught.value.code) == (402, "budget_exceeded")


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_sdk_raises_rate_limit_errors(house: House, gate: Gate, streamed: bool):
    """Requests per minute: the second is a RateLimitError with retry-after and the limits as headers."""
    gate.opened.set()
    key = (await house.make_key(rpm=1, tpm=100_000))["key"]
    async with sdk(house, key) as client:
        raw = await client.chat.completions.with_raw_response.create(**BODY)
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"1m[01](\.\d+)?s", raw.headers["x-ratelimit-reset-requests"])
        assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**BODY, stream=streamed)
    assert caught.value.code == "rate_limit_exceeded"
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert int(headers["x-ratelimit-remaining-tokens"]) < 100_000


async def test_requests_per_minute_are_exact_in_a_race(house: House, gate: Gate):
    """A hundred at once for seven."""
    gate.opened.set()
    key = (await house.make_key(rpm=7))["key"]
    answers = await asyncio.gather(*(house.ask(BODY, key=key) for _ in range(100)))
    assert told(answers) == {(200, ""): 7, (429, "rate_limit_exceeded"): 93}


async def test_tokens_per_minute_are_input_and_output_limit_together(house: House, gate: Gate):
    """What a request may use counts when it is admitted; one that can never fit is told so."""
    gate.opened.set()
    key = (await house.make_key(tpm=200))["key"]
    answer = await house.ask({**BODY, "max_tokens": 500}, key=key)
    assert answer.status_code == 429
    assert "will never fit. Lower max_tokens." in answer.json()["error"]["message"]
    assert (await house.ask(BODY, key=key)).status_code == 200
    assert (await house.ask(BODY, key=key)).status_code == 200, "the first one was trued up"


async def test_concurrency_is_exact_and_refuses_at_once(house: House, gate: Gate):
    """Two under way, eight refused while they are; a client that asks one after the other never meets the limit."""
    key = (await house.make_key(concurrency=2))["key"]
    asking = [asyncio.create_task(house.ask(BODY, key=key)) for _ in range(10)]
    await eventually(lambda: sum(task.done() for task in asking) == 8)
    gate.opened.set()
    assert told(await asyncio.gather(*asking)) == {(200, ""): 2, (429, "rate_limit_exceeded"): 8}
    single = (await house.make_key(concurrency=1))["key"]
    for streamed in (False, False, True, False):
        answer = await house.ask({**BODY, "stream": streamed}, key=single)
        assert answer.status_code == (502 if streamed else 200), answer.text  # the fake does not stream


async def test_a_team_shares_its_budget(house: House, gate: Gate):
    """Two keys of one team, at once: as many as the team's budget bears, and the refusal names the team."""
    keys = [(await house.make_key(team="sharing"))["key"] for _ in range(2)]
    limit = str(3 * await price_of_one(house))
    made = await house.admin("PUT", "/budgets", json={"team": "sharing", "period": "month", "limit": limit})
    assert made.status_code in (200, 201), made.text
    asking = [asyncio.create_task(house.ask(BODY, key=keys[number % 2])) for number in range(20)]
    await eventually(lambda: sum(task.done() for task in asking) == 17)
    gate.opened.set()
    answers = await asyncio.gather(*asking)
    assert told(answers) == {(200, ""): 3, (402, "budget_exceeded"): 17}
    refused = next(each for each in answers if each.status_code == 402)
    assert 'The budget of the team "sharing"' in refused.json()["error"]["message"]


async def test_a_dry_run_holds_and_counts_nothing(house: House, gate: Gate):
    """The plan is free of charge, and free of limits."""
    gate.opened.set()
    key = (await house.make_key(rpm=1))["key"]
    for _ in range(3):
        answer = await house.client.post("/v1/route", json=chat(), headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200
    assert (await house.ask(BODY, key=key)).status_code == 200
