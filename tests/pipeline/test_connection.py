"""The connection's side: an exchange outlives its client, and nothing waits for ever on one that does not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.core.refusal import RefusedError
from gateway.http.relay import (
    BODY_BYTES_MAX,
    BODY_SECONDS_MAX,
    DISCARD_BYTES_MAX,
    HEADER_BYTES_MAX,
    AsgiReply,
    OpenExchanges,
    attend,
    header_value,
    read_body,
    read_headers,
)
from gateway.surfaces.chat_completions import HEARTBEAT
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import ALICE, FOREVER, MODEL, USAGE, World, answer, refusal, stream, unstreamed
from tests.wire.transcripts import ANSWER, DONE, HELLO, closing, finish


class Client:
    """The other end of an ASGI connection. ``reading`` cleared: what is sent waits, as behind a full socket."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self._done = asyncio.Event()
        self.is_gone = False

    async def receive(self) -> dict[str, Any]:
        await self._done.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.is_gone:
            await self.reading.wait()
            self.sent.append(dict(message))
        if message["type"] == "http.response.body" and not message["more_body"]:
            self._done.set()

    def leave(self) -> None:
        self.is_gone = True
        self.reading.set()
        self._done.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def head(self) -> dict[str, Any]:
        (start,) = (message for message in self.sent if message["type"] == "http.response.start")
        return start


class Connection:
    """One request over ASGI: the exchange in its task, the handler watching."""

    def __init__(self, world: World, *, streamed: bool = True) -> None:
        self.world = world
        self.client = Client()
        self.open = OpenExchanges()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], "stream": streamed}
        exchange = world.conductor.prepare("req_1", ALICE, json.dumps(body).encode(), {})
        reply = AsgiReply(self.client.send, "req_1")
        self.task, self.watch = self.open.begin(world.conductor, exchange, reply)
        self.handler = asyncio.ensure_future(attend(self.client.receive, self.task, self.watch))

    async def ended(self) -> Connection:
        await self.handler
        assert self.task.done()
        await asyncio.sleep(0)
        assert len(self.open) == 0
        self.world.check()
        return self


@pytest.mark.parametrize("streamed", [True, False])
@on_virtual_time
async def test_an_answer_over_asgi(streamed: bool) -> None:
    """Head, pieces, end; the handler returns when the exchange has ended."""
    world = World().scripted(evolink=answer() if streamed else unstreamed())
    connection = await Connection(world, streamed=streamed).ended()
    assert connection.client.head["status"] == 200
    assert (b"x-request-id", b"req_1") in connection.client.head["headers"]
    assert connection.client.sent[-1]["more_body"] is False
    if streamed:
        assert connection.client.body == ANSWER + finish() + DONE
    else:
        assert json.loads(connection.client.body)["usage"]["cost"] > 0


@on_virtual_time
async def test_a_refusal_over_asgi() -> None:
    """Its status and envelope, once."""
    client = (await Connection(World().scripted(evolink=refusal(400))).ended()).client
    assert client.head["status"] == 400
    assert json.loads(client.body)["error"]["code"] == "invalid_request_error"


@on_virtual_time
async def test_silence_over_asgi_beats() -> None:
    """The first comment brings the head with the request id; the answer follows."""
    world = World(names=("moonshot",)).scripted(moonshot=stream(25.0, ANSWER, finish(), DONE))
    client = (await Connection(world).ended()).client
    assert client.sent[1]["body"] == client.sent[2]["body"] == HEARTBEAT
    assert (b"x-request-id", b"req_1") in client.head["headers"]
    assert client.body == HEARTBEAT * 2 + ANSWER + finish() + DONE


@on_virtual_time
async def test_a_client_that_leaves_ends_its_exchange() -> None:
    """The handler returns once the attempt is settled."""
    world = World().scripted(evolink=stream(ANSWER, FOREVER))
    connection = Connection(world)
    asyncio.get_running_loop().call_later(3, connection.client.leave)
    await connection.ended()
    assert [entry.status for entry in world.journal.entries()] == ["aborted"]


@on_virtual_time
async def test_a_client_that_reads_nothing_does_not_hold_the_handler() -> None:
    """Neither while the answer comes, nor at its end: the handler returns, and the server closes the connection."""
    for script in (stream(ANSWER, HELLO, finish(), closing(USAGE), DONE), stream(closing(USAGE), finish(), DONE)):
        world = World().scripted(evolink=script)
        connection = Connection(world)
        connection.client.reading.clear()
        started = asyncio.get_running_loop().time()
        await connection.ended()
        assert asyncio.get_running_loop().time() - started <= 120
        assert len(world.journal.entries()) == 1


@on_virtual_time
async def test_a_heartbeat_that_cannot_be_written_is_not_followed_by_another() -> None:
    """One waits, no queue of them builds up; it ends with the exchange."""
    world = World(names=("moonshot",)).scripted(moonshot=stream(FOREVER))
    connection = Connection(world)
    connection.client.reading.clear()
    asyncio.get_running_loop().call_later(29, connection.client.reading.set)
    await connection.ended()
    assert connection.client.body.count(HEARTBEAT) == 1


@on_virtual_time
async def test_an_exchange_survives_its_handler() -> None:
    """A server that cancels the handler does not cancel what must be settled."""
    world = World().scripted(evolink=stream(ANSWER, 5.0, finish(), closing(USAGE), DONE))
    connection = Connection(world)
    await asyncio.sleep(1)
    connection.handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connection.handler
    assert not connection.task.done()
    assert await connection.open.wait(10)
    assert [entry.status for entry in world.journal.entries()] == ["succeeded"]


@on_virtual_time
async def test_waiting_for_open_exchanges_has_an_end() -> None:
    """It says whether they ended."""
    connection = Connection(World(names=("moonshot",)).scripted(moonshot=stream(15.0, ANSWER, finish(), DONE)))
    assert not await connection.open.wait(2)
    assert connection.open.watches() == [connection.watch]
    await connection.ended()
    assert await connection.open.wait(0)


def receiving(*bodies: bytes, last_more: bool = False, pause: float = 0.0):
    """An ASGI ``receive`` of a request body in pieces."""
    pieces = list(bodies)

    async def receive() -> dict[str, Any]:
        if pause:
            await asyncio.sleep(pause)
        if not pieces:
            return {"type": "http.disconnect"}
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces) or last_more}

    return receive


@on_virtual_time
async def test_a_body_is_read_whole() -> None:
    """In one piece or in many."""
    assert await read_body(receiving(b"{}"), {}) == b"{}"
    assert await read_body(receiving(b"{", b"", b"}"), {"content-encoding": "Identity"}) == b"{}"


@pytest.mark.parametrize(
    ("receive", "headers", "status"),
    [
        (receiving(b"x" * (BODY_BYTES_MAX + 1)), {}, 413),
        (receiving(*([b"x" * (1 << 24)] * 9), last_more=True), {}, 413),
        (receiving(*([b"x"] * 9), pause=BODY_SECONDS_MAX / 5), {}, 408),
        (receiving(b"{}"), {"content-encoding": "gzip"}, 415),
    ],
    ids=["too long", "endless", "too slow", "compressed"],
)
@on_virtual_time
async def test_a_body_has_its_limits(receive: Any, headers: Mapping[str, str], status: int) -> None:
    """In size, in time, and in form; one that is too long is read a while so that its sender sees the answer."""
    assert DISCARD_BYTES_MAX > BODY_BYTES_MAX
    with pytest.raises(RefusedError) as caught:
        await read_body(receive, headers)
    assert caught.value.refusal.http_status == status


@on_virtual_time
async def test_a_client_that_leaves_in_its_request_is_gone() -> None:
    """There is nobody to refuse."""
    with pytest.raises(ConnectionResetError):
        await read_body(receiving(b"{", last_more=True), {})


@on_virtual_time
async def test_headers_have_their_limits() -> None:
    """The first of each name counts; too many bytes of them are 431."""
    scope: Any = {"headers": [(b"X-Api-Key", b"one"), (b"x-api-key", b"two")]}
    assert read_headers(scope) == {"x-api-key": "one"}
    with pytest.raises(RefusedError) as caught:
        read_headers({"headers": [(b"x", b"y" * HEADER_BYTES_MAX)]})  # type: ignore[typeddict-item]
    assert caught.value.refusal.http_status == 431


@on_virtual_time
async def test_a_header_is_one_line_of_ascii() -> None:
    """Whatever a warning quotes, it cannot begin a header of its own."""
    assert header_value("a\r\nset-cookie: b=ü") == b"a??set-cookie: b=?"
    assert len(header_value("x" * 10_000)) == 4_096
