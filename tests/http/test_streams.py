"""What a client reads of a stream is what the upstream wrote, however it was cut, and never ends without a word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from gateway.http.relay import OpenExchanges
from tests.http.conftest import Connect
from tests.http.fake_upstream import LAST_CHUNK, STREAM_HEAD, Call, chunk, json_answer
from tests.http.house import Relay, chat, events_of, exact
from tests.http.raw_client import request_of, status_of, unchunked
from tests.wire.transcripts import ANSWER, DONE, HELLO, ROLE, THOUGHT, closing, delta, finish, sse, totals, whole

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

USAGE = totals(1200, 40, cached_tokens=1024, prompt_tokens_details={"cached_tokens": 1024})
ODD = sse({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "kimi-k2-thinking", "new_field": [1e2],
           "choices": [{"index": 0, "delta": {"content": "ö\u2028", "x": None}, "logprobs": None}]})  # fmt: skip
PASSING = ANSWER + ODD + finish(in_choice=USAGE)
TRANSCRIPT = PASSING + closing(USAGE) + DONE


def cuts(name: str) -> Iterator[bytes]:
    """The transcript in pieces."""
    chance = random.Random(name)
    left = TRANSCRIPT
    while left:
        size = {"whole": len(left), "bytes": 1, "events": left.find(b"\n\n") + 2}.get(name) or chance.randint(1, 60)
        yield left[:size]
        left = left[size:]


@pytest.mark.parametrize("name", ["whole", "events", "bytes", "random 1", "random 2", "random 3"])
async def test_the_bytes_however_they_were_cut(relay: Relay, name: str):
    """The client reads the upstream's bytes, all but the usage chunk nobody asked for; the ledger has the usage."""

    async def script(call: Call) -> None:
        assert call.json["stream_options"] == {"include_usage": True}
        await call.stream(*cuts(name))

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True))
    assert answer.content == PASSING + DONE
    assert answer.headers["content-type"].startswith("text/event-stream")
    (row,) = await relay.house.rows(answer.headers["x-request-id"])
    assert (row["status"], row["usage_source"]) == ("succeeded", "provider")
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (1200, 1024, 40)


async def test_the_closing_usage_for_who_asks(relay: Relay):
    """Who asks for usage gets the upstream's chunk with normalised figures and the cost; all else stays as it came."""

    async def script(call: Call) -> None:
        await call.stream(TRANSCRIPT)

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True, stream_options={"include_usage": True}))
    assert answer.content.startswith(PASSING)
    assert answer.content.endswith(DONE)
    (row,) = await relay.house.rows(answer.headers["x-request-id"])
    (told,) = events_of(answer.content.removeprefix(PASSING).decode())[:-1]
    assert told["choices"] == []
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (1200, 40, 1240)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1024
    assert usage["completion_tokens_details"]["reasoning_tokens"] == row["reasoning_tokens"]
    assert Decimal(usage["cost"]) == Decimal(row["cost"])


async def test_lines_that_end_in_cr_lf(relay: Relay):
    """Line ends pass as they came."""
    transcript = TRANSCRIPT.replace(b"\n", b"\r\n")

    async def script(call: Call) -> None:
        await call.stream(*(transcript[at : at + 7] for at in range(0, len(transcript), 7)))

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True))
    assert answer.content == (PASSING + DONE).replace(b"\n", b"\r\n")


async def test_a_whole_answer_with_unknown_fields(relay: Relay):
    """Of an answer that is not streamed every member passes, but for its usage, which is normalised."""
    body = whole(
        totals(10, 5, cached_tokens=4, extra={"a": 1}),
        reasoning_content="",
        tool_calls=[{"id": "functions.f:0", "x": 1}],
    )

    async def script(call: Call) -> None:
        assert "stream_options" not in call.json
        await call.send(json_answer(body))

    relay.upstream.script = script
    answer = await relay.house.ask(chat())
    told, sent = exact(answer.text), exact(body.decode())
    usage = told.pop("usage")
    sent.pop("usage")
    assert told == sent
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert usage["extra"] == {"a": 1}
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_what_the_upstream_gets_to_see(relay: Relay):
    """The upstream sees our credential and none of the client's headers, nor the gateway's own words."""

    async def script(call: Call) -> None:
        await call.send(json_answer(whole(totals(10, 5))))

    relay.upstream.script = script
    answer = await relay.house.ask(
        chat(provider={"only": ["moonshot"]}, prompt_cache_key="talk-1", user="someone"),
        x_gateway_tags="env=test",
        x_session_id="talk-2",
        cookie="secret=1",
        x_forwarded_for="10.0.0.1",
    )
    assert answer.status_code == 200
    (call,) = relay.upstream.calls
    assert call.headers["authorization"] == "Bearer sk-test-m"
    seen = call.head + call.body.decode()
    for word in (relay.house.key, "env=test", "talk-2", "secret=1", "10.0.0.1", "provider", "someone"):
        assert word not in seen
    assert call.json["prompt_cache_key"] == "talk-1"
    assert "set-cookie" not in answer.headers
    assert "msh-request-id" not in answer.headers


# -- trouble before the first byte -------------------------------------------------------------------------------------


async def test_a_provider_that_dies_after_hello(relay: Relay):
    """A stream that dies before any content is tried elsewhere, and the client sees nothing of the first."""

    async def script(call: Call) -> None:
        if len(relay.upstream.calls) == 1:
            await call.send(STREAM_HEAD, chunk(ROLE))
            call.cut()
        else:
            await call.stream(TRANSCRIPT)

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True))
    assert answer.content == PASSING + DONE
    assert answer.headers["x-gateway-attempts"] == "2"
    rows = await relay.house.rows(answer.headers["x-request-id"])
    assert [row["status"] for row in rows] == ["failed", "succeeded"]
    assert rows[0]["provider"] != rows[1]["provider"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_at_status_200(relay: Relay, streamed: bool):
    """A provider that says 200 and means an error is tried elsewhere."""

    async def script(call: Call) -> None:
        if len(relay.upstream.calls) == 1:
            await call.send(json_answer({"error": {"message": "busy", "type": "engine_overloaded_error"}}))
        elif streamed:
            await call.stream(TRANSCRIPT)
        else:
            await call.send(json_answer(whole(totals(10, 5))))

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=streamed))
    assert answer.status_code == 200
    assert answer.headers["x-gateway-attempts"] == "2"


# -- trouble after it --------------------------------------------------------------------------------------------------


def broken(kind: str) -> tuple[bytes, ...]:
    """The pieces after which a stream is cut."""
    return {
        "cut": (ANSWER,),
        "cut in an event": (ANSWER, HELLO[:20]),
        "an error": (ANSWER, sse({"error": {"message": "our account 17 is broke", "type": "server_error"}})),
        "no JSON": (ANSWER, b"data: {nonsense\n\n"),
        "an end too early": (ANSWER, LAST_CHUNK),
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "cut in an event", "an error", "no JSON", "an end too early"])
async def test_a_stream_that_breaks(relay: Relay, kind: str):
    """What has begun and breaks ends with an error event in the OpenAI form, and one row that estimates."""

    async def script(call: Call) -> None:
        pieces = broken(kind)
        await call.send(STREAM_HEAD, *(piece if piece is LAST_CHUNK else chunk(piece) for piece in pieces))
        call.cut(reset=kind == "cut")

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True))
    assert answer.status_code == 200
    assert answer.content.startswith(ANSWER)
    request_id = answer.headers["x-request-id"]
    (last,) = events_of(answer.content.removeprefix(ANSWER).decode())
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["code"] == "upstream_error"
    assert request_id in last["error"]["message"]
    assert "account 17" not in answer.text
    (row,) = await relay.house.rows(request_id)
    assert (row["status"], row["usage_source"]) == ("failed", "estimated")
    assert row["output_tokens"] > 0
    assert Decimal(row["cost"]) > 0


@pytest.mark.parametrize("kind", ["no mark", "cut after its finish"])
async def test_a_stream_that_lacks_only_its_end(relay: Relay, kind: str):
    """An answer whose finish has come is whole, also without [DONE]; the client gets the mark it waits for."""

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(PASSING))
        if kind == "no mark":
            await call.send(LAST_CHUNK)
        else:
            call.cut()

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=True))
    assert answer.content == PASSING + DONE
    (row,) = await relay.house.rows(answer.headers["x-request-id"])
    assert (row["status"], row["usage_source"], row["output_tokens"]) == ("succeeded", "provider", 40)


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(relay: Relay) -> Iterator[Relay]:
    """The gateway with a heartbeat every 50 ms instead of every 10 s."""
    before = relay.house.gateway.services.exchanges
    relay.house.gateway.services.exchanges = OpenExchanges(heartbeat_seconds=0.05)
    yield relay
    relay.house.gateway.services.exchanges = before


async def parts_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for part in answer.aiter_raw():
        yield part


async def test_heartbeats_before_the_first_byte(impatient: Relay):
    """While an upstream is silent a stream carries comments; then comes its answer, whole."""
    house, go_on = impatient.house, asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await call.stream(TRANSCRIPT)

    impatient.upstream.script = script
    headers = {"authorization": f"Bearer {house.key}"}
    came = b""
    async with house.client.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=headers) as answer:
        assert answer.status_code == 200
        async for part in parts_of(answer):
            came += part
            if came.count(b": keep-alive\n\n") == 2:
                go_on.set()
    assert came.replace(b": keep-alive\n\n", b"") == PASSING + DONE
    assert answer.headers["x-request-id"]


async def test_heartbeats_in_a_stream(impatient: Relay):
    """A silence in the middle is bridged between two events, never inside of one."""
    house, go_on = impatient.house, asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(ROLE + THOUGHT + HELLO[:9]))
        await go_on.wait()
        await call.send(chunk(TRANSCRIPT[len(ROLE + THOUGHT) + 9 :]), LAST_CHUNK)

    impatient.upstream.script = script
    headers = {"authorization": f"Bearer {house.key}"}
    came = b""
    async with house.client.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=headers) as answer:
        async for part in parts_of(answer):
            came += part
            if came.endswith(b": keep-alive\n\n"):
                go_on.set()
    assert came.startswith(ROLE + THOUGHT + b": keep-alive\n\n")
    assert came.replace(b": keep-alive\n\n", b"") == PASSING + DONE


async def test_an_error_after_a_heartbeat(impatient: Relay):
    """Once a heartbeat has promised a stream, a refusal comes in the stream, with the same code."""
    house, go_on = impatient.house, asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await call.send(json_answer({"error": {"message": "broken", "type": "server_error"}}, status=500))

    impatient.upstream.script = script
    headers = {"authorization": f"Bearer {house.key}"}
    came = b""
    async with house.client.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=headers) as answer:
        async for part in parts_of(answer):
            came += part
            go_on.set()
    (event,) = events_of(came.decode())
    assert event["error"]["code"] == "upstream_error"
    assert len(await house.rows(answer.headers["x-request-id"])) == 3


async def test_no_heartbeats_without_a_stream(impatient: Relay, connect: Connect):
    """An answer that is not streamed begins with its status, whenever that comes."""
    beats = 4

    async def script(call: Call) -> None:
        await asyncio.sleep(0.05 * beats)
        await call.send(json_answer(whole(totals(10, 5))))

    impatient.upstream.script = script
    wire = await connect(impatient.house.url)
    await wire.send(request_of(chat(), key=impatient.house.key, close=True))
    came = await wire.read_all()
    assert status_of(came) == 200
    assert b"keep-alive" not in came.partition(b"\r\n\r\n")[2]


# -- clients that read in their own way --------------------------------------------------------------------------------


async def test_a_client_that_reads_slowly(relay: Relay, connect: Connect):
    """A client with a tiny window that reads bit by bit gets every byte of a long stream."""
    long = [delta(content=f"{number:06} " * 40) for number in range(2_000)]

    async def script(call: Call) -> None:
        await call.stream(ANSWER, *(b"".join(long[at : at + 50]) for at in range(0, len(long), 50)), finish(), DONE)

    relay.upstream.script = script
    wire = await connect(relay.house.url, receive_buffer=4096)
    await wire.send(request_of(chat(stream=True), key=relay.house.key, close=True))
    head, _, body = (await wire.read_all()).partition(b"\r\n\r\n")
    assert status_of(head) == 200
    assert unchunked(body) == ANSWER + b"".join(long) + finish() + DONE


async def test_streams_beside_each_other(relay: Relay):
    """Fifty streams at once, interleaved byte by byte, are not mixed up."""

    async def script(call: Call) -> None:
        number = call.json["messages"][0]["content"]
        await call.send(STREAM_HEAD, chunk(ANSWER))
        for step in range(10):
            await call.send(chunk(delta(content=f"{number}/{step}")))
            await asyncio.sleep(0.001)
        await call.send(chunk(finish(in_choice=totals(7, int(number) + 1)) + DONE), LAST_CHUNK)

    relay.upstream.script = script

    async def ask(number: int) -> dict[str, Any]:
        answer = await relay.house.ask(chat(str(number), stream=True))
        expected = b"".join(delta(content=f"{number}/{step}") for step in range(10))
        assert answer.content == ANSWER + expected + finish(in_choice=totals(7, number + 1)) + DONE
        return {"request_id": answer.headers["x-request-id"], "output_tokens": number + 1}

    told = await asyncio.gather(*(ask(number) for number in range(50)))
    rows = {row["request_id"]: row for row in await relay.house.ledger()}
    assert all(rows[each["request_id"]]["output_tokens"] == each["output_tokens"] for each in told)
