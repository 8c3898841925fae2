"""While PostgreSQL is away known keys go on, unknown ones are told so at once, and nothing that was spent is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from tests.http.house import House, chat, eventually, open_house
from tests.integration.lines import Line

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def line(anyio_backend: str, database_url: str) -> AsyncIterator[Line]:
    line = Line(database_url)
    await line.open()
    yield line
    await line.cut()


@pytest.fixture
async def house(line: Line, tmp_path: Path) -> AsyncIterator[House]:
    """A gateway whose database hangs on a line that can be cut."""
    async with open_house(line.url, tmp_path) as house:
        yield house


async def test_an_outage(house: House, line: Line):
    """Requests of a known key are answered during an outage, and stand in the ledger exactly once after it."""
    unseen = (await house.make_key())["key"]
    before = await house.ask(chat())
    await line.cut()

    async def has_noticed() -> bool:
        return (await house.client.get("/readyz")).json()["database"]["reachable"] is False

    answers = [before, *[await house.ask(chat(stream=number % 2 == 0)) for number in range(10)]]
    await eventually(has_noticed)
    answers += [await house.ask(chat()) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    ready = await house.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")

    async with asyncio.timeout(2):
        unknown = await house.ask(chat(), key=unseen)
    assert unknown.status_code == 503
    error = unknown.json()["error"]
    assert (error["code"], error["type"]) == ("store_unavailable", "api_error")
    assert unknown.headers["x-request-id"] in error["message"]
    assert int(unknown.headers["retry-after"]) > 0
    malformed = await house.ask(chat(), key="kgw_nonsense")
    assert malformed.status_code == 401

    await line.open()

    async def is_whole() -> bool:
        answer = await house.admin("GET", "/ledger")
        return answer.status_code == 200 and len(answer.text.splitlines()) == len(answers)

    await eventually(is_whole)
    rows = await house.ledger()
    assert sorted(row["request_id"] for row in rows) == sorted(answer.headers["x-request-id"] for answer in answers)

    async def is_known() -> bool:
        return (await house.ask(chat(), key=unseen)).status_code == 200

    await eventually(is_known, seconds=2)


async def test_the_administration_during_an_outage(house: House, line: Line):
    """Whatever needs the database is 503 with a time to come back, soon; the rest of the administration works."""
    await line.cut()
    for method, path in (("GET", "/keys"), ("GET", "/keys/key_1"), ("GET", "/requests/req_1"), ("GET", "/ledger"),
                         ("GET", "/reports/spend"), ("DELETE", "/keys/key_1")):  # fmt: skip
        async with asyncio.timeout(12):
            answer = await house.admin(method, path)
        assert answer.status_code == 503, (path, answer.text)
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert answer.headers["retry-after"]
    assert (await house.admin("GET", "/providers")).status_code == 200
    assert (await house.admin("GET", "/prices")).status_code == 200


async def test_a_key_that_is_revoked_during_an_outage_elsewhere(house: House, line: Line, database_url: str):
    """A change that another replica made meanwhile is seen within a second of the line's return."""
    made = await house.make_key()
    assert (await house.ask(chat(), key=made["key"])).status_code == 200
    await line.cut()
    assert (await house.ask(chat(), key=made["key"])).status_code == 200

    def revoke() -> None:
        with psycopg.connect(database_url) as db:
            db.execute("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", (made["id"],))

    await asyncio.to_thread(revoke)
    assert (await house.ask(chat(), key=made["key"])).status_code == 200
    await line.open()

    async def is_refused() -> bool:
        return (await house.ask(chat(), key=made["key"])).status_code == 401

    await eventually(is_refused, seconds=5)
