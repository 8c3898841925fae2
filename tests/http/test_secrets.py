"""No secret, prompt or answer is anywhere but where it has to be (L13), whatever happens to a request.

Everything that a gateway says and keeps is searched: its log at its most talkative, answers, metrics, database, Redis
and data directory, in plain and in hex, for secrets that are nothing like any other word.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
from psycopg import sql
from pydantic import SecretStr

from gateway.adapters.logs import ConsoleFormatter, JsonFormatter
from gateway.core import api_key
from gateway.simulator import PROVIDERS
from tests.http.fake_upstream import LAST_CHUNK, STREAM_HEAD, Call, FakeUpstream, chunk, fake_upstream, json_answer
from tests.http.house import ADMIN_TOKEN, House, around_now, chat, eventually, serving
from tests.integration.receiver import Receiver, receiving
from tests.wire.transcripts import DONE, closing, delta, finish, totals, whole

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CREDENTIALS = {
    "MOONSHOT_API_KEY": "moonshine-credential-41d7",
    "COMETAPI_KEY": "comet-tail-credential-93e1",
    "EVOLINK_API_KEY": "evolving-credential-5c08",
}
WEBHOOK_SECRET = "hook-line-and-sinker-77aa"
PROMPT = "the violet heron asks"
ANSWER = "the indigo walrus answers"
ELSEWHERE = ("httpx", "httpcore", "aiohttp.access")
"""Who writes the log of the test's own client and receiver."""
MISTYPED = "sk-a-mistyped-secret-2b6f"


@dataclass
class Searched:
    """What must not be found, and everything that was said, by where. ``spoken`` are words of prompts and answers."""

    secrets: dict[str, str]
    spoken: dict[str, str]
    answers: list[tuple[str, str]] = field(default_factory=list)

    def note(self, answer: httpx.Response) -> httpx.Response:
        """Keeps an answer, headers and all."""
        said = f"{dict(answer.headers)}\n{answer.text}"
        self.answers.append((f"{answer.request.method} {answer.request.url} {answer.status_code}", said))
        return answer

    def found_in(self, where: str, text: str, words: Mapping[str, str]) -> Iterator[str]:
        for name, word in words.items():
            for form in (word, word.encode().hex(), json.dumps(word)[1:-1]):
                if form in text:
                    yield f"{name} in {where}: …{text[max(0, text.index(form) - 200) :][:400]}…"
                    break


@asynccontextmanager
async def talkative(
    database_url: str, redis_url: str, folder: Path
) -> AsyncIterator[tuple[House, FakeUpstream, Receiver, Searched]]:
    """A gateway with every kind of secret, over one scripted upstream."""
    async with fake_upstream() as upstream, receiving() as receiver, serving(
        database_url, folder, dict.fromkeys(PROVIDERS, upstream.address),
        redis_url=redis_url, credentials=CREDENTIALS, log_level="debug",
        alert_webhook_url=SecretStr(receiver.url), alert_webhook_secret=SecretStr(WEBHOOK_SECRET),
    ) as house:  # fmt: skip
        secrets = {**CREDENTIALS, "the admin token": ADMIN_TOKEN, "the webhook's secret": WEBHOOK_SECRET}
        secrets |= {"the webhook's path": "very-private", "a key": house.key, "a mistyped key": MISTYPED}
        yield house, upstream, receiver, Searched(secrets, {"a prompt": PROMPT, "an answer": ANSWER})


def quoting(call: Call) -> dict[str, Any]:
    """An error that says back what it was sent."""
    said = f"You sent Authorization: {call.headers['authorization']} and {call.body.decode()}"
    return {"error": {"message": said, "type": "odd", "code": call.headers["authorization"].split()[1]}}


async def quote(call: Call, status: int) -> None:
    await call.send(json_answer(quoting(call), status))


async def quote_in_pieces(call: Call) -> None:
    """The same, cut in the middle of the credential."""
    data = json_answer({"error": {"message": quoting(call)["error"]["message"], "type": "invalid_request_error"}}, 400)
    middle = data.index(b"credential") + 3
    await call.send(data[:middle])
    await call.send(data[middle:])


async def quote_in_a_stream(call: Call) -> None:
    event = b"data: " + json.dumps(quoting(call)).encode() + b"\n\n"
    await call.send(STREAM_HEAD, chunk(delta(content=ANSWER)), chunk(event), LAST_CHUNK)


async def no_answer(call: Call) -> None:
    await call.send(json_answer({"said": quoting(call)}))


async def garbage(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 30\r\n\r\n<h1>" + call.body[:26])


async def cut(call: Call) -> None:
    await call.send(STREAM_HEAD, chunk(delta(content=ANSWER)))
    call.cut()


async def make_traffic(house: House, upstream: FakeUpstream, searched: Searched) -> None:
    """Answers, refusals and failures of every kind, each with the prompt in it."""

    async def ask(key: str | None = None, **fields: Any) -> httpx.Response:
        return searched.note(await house.ask(chat(PROMPT, **fields), key=key))

    async def answering(call: Call) -> None:
        if call.json.get("stream"):
            events = (delta(content=ANSWER), finish("stop"), closing(totals(10, 5)), DONE)
            await call.stream(*events)
        else:
            await call.send(json_answer(whole(totals(10, 5), content=ANSWER)))

    async def make(**fields: Any) -> dict[str, Any]:
        made = await house.make_key(**fields)
        searched.secrets[f"the key {fields['name']}"] = made["key"]
        return made

    upstream.script = answering
    assert (await ask()).status_code == 200
    assert ANSWER in (await ask(stream=True)).text
    for secret in (MISTYPED, api_key.new_secret(bytes(range(32)))):
        searched.secrets[f"an unknown key {len(secret)}"] = secret
        assert (await ask(secret)).status_code == 401
        assert (await house.admin("GET", "/keys", token=secret)).status_code == 401
    poor = await make(name="poor", budget="0.0000001", period="day")
    assert (await ask(poor["key"])).status_code == 402
    slow = await make(name="slow", rpm=1)
    assert [(await ask(slow["key"])).status_code for _ in range(2)] == [200, 429]
    rotated = await make(name="rotated", budget="0.5", period="month")
    again = (await house.admin("POST", f"/keys/{rotated['id']}/rotate", json={"grace": "1h"})).json()
    searched.secrets["the rotated key"] = again["key"]
    assert (await ask(again["key"])).status_code == 200
    searched.note(await house.client.get(f"/nothing?key={house.key}&q={PROMPT}"))
    searched.note(await house.admin("POST", "/keys", json={"name": "x", "grant": PROMPT, house.key: 1}))
    soft = await make(name="soft", budget="0.000001", period="month", budget_mode="soft")
    assert (await ask(soft["key"])).status_code == 200
    for stream in (False, True):
        for status in (400, 401, 402, 403, 404, 429, 500, 503):
            house.gateway.health._states.clear()
            upstream.script = lambda call, status=status: quote(call, status)  # type: ignore[misc]
            assert (await ask(stream=stream)).status_code >= 400
        for script in (quote_in_pieces, no_answer, garbage, cut, quote_in_a_stream):
            house.gateway.health._states.clear()
            upstream.script = script
            await ask(stream=stream)


async def everything_read(house: House, searched: Searched) -> None:
    """Every page of the administration and of operations."""
    key_id = (await house.admin("GET", "/keys")).json()["data"][0]["id"]
    request_id = (await house.ledger())[0]["request_id"]
    for path in (
        "/keys", f"/keys/{key_id}", "/teams", "/budgets", "/organisation", "/providers", "/prices", "/audit?limit=1000",
        "/reports/spend", f"/requests/{request_id}", "/ledger?format=csv",
    ):  # fmt: skip
        answer = searched.note(await house.admin("GET", path))
        assert answer.status_code == 200, path
    searched.note(await house.admin("GET", "/ledger", params=around_now()))
    for path in ("/metrics", "/readyz", "/healthz", "/schema/openapi.json"):
        assert searched.note(await house.client.get(path)).status_code == 200


def stored(house: House, redis_url: str) -> Iterator[tuple[str, str]]:
    """Every row of every table, every value in Redis, every file in the data directory."""
    with psycopg.connect(house.database_url) as db:
        tables = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert {"ledger", "audit_entries", "api_keys"} <= {name for (name,) in tables}, tables
        for (name,) in tables:
            query = sql.SQL("SELECT each::text FROM {} AS each").format(sql.Identifier(name))
            yield f"the table {name}", "\n".join(row for (row,) in db.execute(query))
    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter())
        assert keys
        for key in keys:
            kind = client.type(key).decode()
            read = {"string": client.get, "hash": client.hgetall, "set": client.smembers,
                    "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
                    "list": lambda key: client.lrange(key, 0, -1),
                    "stream": client.xrange}[kind]  # fmt: skip
            yield f"Redis, {key!r}", f"{key!r} {read(key)!r}"
    files = [path for path in house.settings.data_dir.rglob("*") if path.is_file()]
    assert any(path.stat().st_size for path in files)
    for path in files:
        yield f"the file {path.name}", path.read_bytes().decode("latin-1")


async def test_nothing_leaks(
    anyio_backend: str,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not into the log, an error, a metric, the audit, the ledger, the database, Redis, the journal or an alert."""
    caplog.set_level(logging.DEBUG)
    async with talkative(database_url, redis_url, tmp_path) as (house, upstream, receiver, searched):
        await make_traffic(house, upstream, searched)
        with monkeypatch.context() as broken:
            broken.setattr(house.gateway.services, "body_seconds_max", "soon")
            assert searched.note(await house.ask(chat(PROMPT))).status_code == 500
        await everything_read(house, searched)
        await eventually(lambda: receiver.deliveries)
        request_id = (await house.ledger())[0]["request_id"]
        kept = list(stored(house, redis_url))
        assert len(searched.answers) > 40
    # What is looked for where it must not be is found where it may be: the search sees these places.
    seen = {where.split()[1] for where, text in kept if request_id in text or house.key[-4:] in text}
    assert {"table", "file"} <= seen
    everywhere = searched.secrets | searched.spoken
    found = [hit for where, text in kept for hit in searched.found_in(where, text, everywhere)]
    ours = [record for record in caplog.records if not record.name.startswith(ELSEWHERE)]
    assert {"defect"} <= {record.getMessage() for record in ours}
    for record in ours:
        for form in (JsonFormatter(), ConsoleFormatter()):
            found += searched.found_in(
                f"the log of {record.name}", form.format(record), searched.secrets | searched.spoken
            )
    for where, said in searched.answers:
        found += searched.found_in(where, said, searched.secrets)
        if "/v1/" not in where:
            found += searched.found_in(where, said, searched.spoken)
    for delivery in receiver.deliveries:
        found += searched.found_in("an alert", f"{delivery.headers} {delivery.body!r}", searched.secrets)
    assert not found, "\n".join(found[:20])
