"""A request means one thing only, to the gateway and to whatever is in front of it, or it is refused and ends there.

What is hidden behind or inside a request is an order to make a key, with the right token: no such key may come about.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from gateway.http.protocol import HEAD_BYTES_MAX, BoundedHttpProtocol
from tests.http.conftest import Connect
from tests.http.fake_upstream import LAST_CHUNK, STREAM_HEAD, Call, chunk
from tests.http.house import ADMIN_TOKEN, House, Relay, chat, eventually
from tests.http.raw_client import request_of, status_of
from tests.wire.transcripts import DONE, HELLO

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

HIDDEN = request_of({"name": "smuggled"}, key=ADMIN_TOKEN, path="/admin/keys")
BODY = json.dumps(chat()).encode()


@pytest.fixture(autouse=True)
async def _nothing_was_smuggled(house: House) -> AsyncIterator[None]:
    """Whatever a test sends, the hidden order is not carried out."""
    yield
    keys = (await house.admin("GET", "/keys?limit=1000")).json()["data"]
    assert "smuggled" not in {key["name"] for key in keys}


def answers_in(came: bytes) -> int:
    return came.count(b"HTTP/1.1 ")


def chunked(body: bytes) -> bytes:
    return chunk(body) + LAST_CHUNK


def post(
    house: House, *lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1", host: bytes = b"gateway"
) -> bytes:
    """A dry run with these header lines and this body, as they are."""
    head = [b"POST /v1/route " + version, b"host: " + host, b"authorization: Bearer " + house.key.encode(), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


LENGTH = b"content-length: %d" % len(BODY)
CHUNKED = b"transfer-encoding: chunked"
AMBIGUOUS: dict[str, tuple[list[bytes], bytes]] = {
    "length and chunks": ([b"content-length: 5", CHUNKED], LAST_CHUNK + HIDDEN),
    "chunks and length": ([CHUNKED, b"content-length: 5"], LAST_CHUNK + HIDDEN),
    "two lengths": ([LENGTH, b"content-length: 0"], BODY + HIDDEN),
    "the same length twice": ([LENGTH, LENGTH], BODY + HIDDEN),
    "a list of lengths": ([LENGTH + b", 0"], BODY + HIDDEN),
    "a length with a sign": ([b"content-length: +%d" % len(BODY)], BODY + HIDDEN),
    "a negative length": ([b"content-length: -1"], HIDDEN),
    "a length in hex": ([b"content-length: 0x10"], BODY + HIDDEN),
    "no length": ([b"content-length: "], HIDDEN),
    "a length beyond all numbers": ([b"content-length: 99999999999999999999999"], HIDDEN),
    "another coding": ([b"transfer-encoding: xchunked"], chunked(BODY) + HIDDEN),
    "a coding before chunked": ([b"transfer-encoding: gzip, chunked"], chunked(BODY) + HIDDEN),
    "a coding after chunked": ([b"transfer-encoding: chunked, identity"], chunked(BODY) + HIDDEN),
    "chunked twice": ([CHUNKED, CHUNKED], chunked(BODY) + HIDDEN),
    "chunked and identity": ([CHUNKED, b"transfer-encoding: identity"], chunked(BODY) + HIDDEN),
    "chunked in quotes": ([b'transfer-encoding: "chunked"'], chunked(BODY) + HIDDEN),
    "chunked after a vertical tab": ([b"transfer-encoding: \x0bchunked"], chunked(BODY) + HIDDEN),
    "chunked on a folded line": ([b"transfer-encoding:", b" chunked"], chunked(BODY) + HIDDEN),
    "a space before the colon": ([b"transfer-encoding : chunked", b"content-length: 0"], chunked(BODY) + HIDDEN),
    "a folded line": ([LENGTH, b"x-a: b", b" c"], BODY + HIDDEN),
    "a space in a name": ([LENGTH, b"x a: b"], BODY + HIDDEN),
    "a NUL in a name": ([LENGTH, b"x\0a: b"], BODY + HIDDEN),
    "a NUL in a value": ([LENGTH, b"x-a: b\0c"], BODY + HIDDEN),
    "no name": ([LENGTH, b": b"], BODY + HIDDEN),
    "no colon": ([LENGTH, b"xyz"], BODY + HIDDEN),
    "a bare LF": ([LENGTH, b"x-a: b\ncontent-length: 0"], BODY + HIDDEN),
    "a bare CR": ([LENGTH, b"x-a: b\rcontent-length: 0"], BODY + HIDDEN),
    "a size of a chunk in 0x": ([CHUNKED], b"0x5\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a size with a sign": ([CHUNKED], b"+5\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a negative size": ([CHUNKED], b"-5\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a size after a space": ([CHUNKED], b" 5\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a size before a space": ([CHUNKED], b"5 \r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a size beyond all numbers": ([CHUNKED], b"10000000000000005\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a size and a bare LF": ([CHUNKED], b"5\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "an extension and a bare LF": ([CHUNKED], b"5;a\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a bare CR in an extension": ([CHUNKED], b"5;a\rb\r\nhello\r\n" + LAST_CHUNK + HIDDEN),
    "a chunk longer than its size": ([CHUNKED], b"5\r\nhello!\r\n" + LAST_CHUNK + HIDDEN),
    "a second host": ([LENGTH, b"host: other"], BODY + HIDDEN),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_what_frames_a_request_is_said_once(house: House, connect: Connect, name: str):
    """A request whose end two readers may see at two places is a 400 in the envelope, and ends its connection."""
    lines, body = AMBIGUOUS[name]
    wire = await connect(house.url)
    await wire.send(post(house, *lines, body=body))
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (400, 1)
    head, _, said = came.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    error = json.loads(said)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_request_error"


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/1.2", b"HTTP/0.9", b"HTTP/1.1x", b"http/1.1", b""])
async def test_other_versions(house: House, connect: Connect, version: bytes):
    """What is not HTTP/1.0 or 1.1 is no request."""
    wire = await connect(house.url)
    await wire.send(post(house, LENGTH, body=BODY + HIDDEN, version=version))
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (400, 1)


@pytest.mark.parametrize(
    "method", [b"CONNECT gateway:443", b"PRI *", b"get /healthz", b"GET\t/healthz", b" GET /healthz"]
)
async def test_other_first_lines(house: House, connect: Connect, method: bytes):
    """A proxy's methods and misspelt ones are refused."""
    wire = await connect(house.url)
    await wire.send(method + b" HTTP/1.1\r\nhost: gateway\r\n\r\n" + HIDDEN)
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (400, 1)


async def test_http_1_0(house: House, connect: Connect):
    """HTTP/1.0 is answered and closed, whatever it says about keeping alive, and knows no chunks."""
    for lines, status in (([LENGTH], 200), ([LENGTH, b"connection: keep-alive"], 200), ([CHUNKED], 400)):
        wire = await connect(house.url)
        body = chunked(BODY) if lines == [CHUNKED] else BODY
        await wire.send(post(house, *lines, body=body + HIDDEN, version=b"HTTP/1.0"))
        came = await wire.read_all()
        assert (status_of(came), answers_in(came)) == (status, 1)


async def test_nothing_follows_the_last_request(house: House, connect: Connect):
    """After a request that closes, its connection ends with its answer."""
    wire = await connect(house.url)
    await wire.send(post(house, LENGTH, b"connection: close", body=BODY + HIDDEN))
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (200, 1)
    assert b'"candidates"' in came


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
async def test_other_protocols(house: House, connect: Connect, protocol: bytes):
    """Who asks for another protocol gets HTTP and the end of the connection; a body would be lost, and is refused."""
    upgrade = b"connection: upgrade\r\nupgrade: " + protocol
    wire = await connect(house.url)
    await wire.send(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n" + upgrade + b"\r\n\r\n" + HIDDEN)
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (200, 1)
    wire = await connect(house.url)
    await wire.send(post(house, LENGTH, upgrade, body=BODY + HIDDEN))
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (400, 1)
    assert b"without the Upgrade header" in came


async def test_a_body_is_never_a_request(house: House, connect: Connect):
    """The body of a GET that nobody reads is not the next request on its connection."""
    wire = await connect(house.url)
    head = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN)
    await wire.send(head + HIDDEN + post(house, LENGTH, b"connection: close", body=BODY))
    came = await wire.read_all()
    assert answers_in(came) == 2
    assert came.index(b'"status":"ok"') < came.index(b'"candidates"')


async def test_a_trailer_is_no_header(house: House, connect: Connect):
    """A key that comes after the body is no key; a chunk's extension says nothing."""
    wire = await connect(house.url)
    lines = b"POST /v1/route HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n" + CHUNKED + b"\r\n\r\n"
    await wire.send(lines + chunk(BODY) + b"0\r\nauthorization: Bearer " + house.key.encode() + b"\r\n\r\n")
    assert status_of(await wire.read_all()) == 401
    wire = await connect(house.url)
    extended = b"%x;a=b\r\n%s\r\n" % (len(BODY), BODY) + LAST_CHUNK
    await wire.send(post(house, CHUNKED, b"connection: close", body=extended))
    assert status_of(await wire.read_all()) == 200


@pytest.mark.parametrize(
    "token",
    [
        b"\xff\xfe",
        "\u043a\u043b\u044e\u0447".encode(),
        b"k" * 3000,
        b"",
        b"\t",
        b"kgw_\xe4",
        ADMIN_TOKEN.encode() + b"\xe4",
    ],
)
async def test_whatever_is_sent_as_a_token(house: House, connect: Connect, token: bytes):
    """Bytes that are no text are no token, and no defect."""
    wire = await connect(house.url)
    await wire.send(
        b"GET /admin/keys HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer "
        + token
        + b"\r\n\r\n"
    )
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (401, 1)


# -- which path it is --------------------------------------------------------------------------------------------------

TARGETS = {
    b"/admin/keys": 401, b"http://good.example/admin/keys": 401, b"http://a@good.example/admin/keys?x=/healthz": 401,
    b"/%61dmin/keys": 401, b"/admin%2fkeys": 401, b"/admin/keys?x#/healthz": 401, b"/admin/keys/": 401,
    b"//admin/keys": 401, b"/admin//keys": 401, b"/healthz/../admin/keys": 404, b"/healthz/..%2fadmin%2fkeys": 404,
    b"/admin/keys%23": 404, b"/admin/keys;x": 404, b"/ADMIN/keys": 404, b"/healthz%00/../admin/keys": 404,
    b"/healthz%3F/admin/keys": 404, b"/.%2e/admin/keys": 404, b"/v1/models/../../admin/keys": 401,
    b"http://good.example": 400, b"*": 404, b"admin/keys": 400, b"/admin/keys\x80": 400,
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.decode("latin-1"))
async def test_the_path_decides_and_nothing_else(house: House, connect: Connect, target: bytes):
    """However a path is written, whoever has no key does not get to see what is behind it."""
    wire = await connect(house.url)
    await wire.send(b"GET " + target + b" HTTP/1.1\r\nhost: good.example\r\nconnection: close\r\n\r\n")
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (TARGETS[target], 1)
    assert b'"data"' not in came


@pytest.mark.parametrize(
    "host", [b"good.example/public?", b"x#", b"a@b", b"a b", b"a,b", b"a\\b", b"[::1", b"a:b", "ä".encode()]
)
async def test_a_host_is_a_host(house: House, connect: Connect, host: bytes):
    """A host that would make another address of the path is refused, with a good token, too."""
    wire = await connect(house.url)
    await wire.send(
        b"GET /admin/keys HTTP/1.1\r\nhost: "
        + host
        + b"\r\nauthorization: Bearer "
        + ADMIN_TOKEN.encode()
        + b"\r\n\r\n"
    )
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (400, 1)


@pytest.mark.parametrize("host", [b"gateway", b"gateway:8080", b"my_host.internal", b"127.0.0.1:1", b"[::1]:8080", b""])
async def test_hosts_that_are_some(house: House, connect: Connect, host: bytes):
    """Every name and address is good, and none of them gets into an answer."""
    wire = await connect(house.url)
    await wire.send(b"GET /schema/openapi.json HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n")
    came = await wire.read_all()
    assert status_of(came) == 200
    assert b"my_host" not in came


async def test_no_host(house: House, connect: Connect):
    """HTTP/1.1 asks for a Host."""
    wire = await connect(house.url)
    await wire.send(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert status_of(await wire.read_all()) == 400


# -- slow, long and deep -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endless",
    [
        b"0\r\nx-a: " + b"t" * HEAD_BYTES_MAX,
        b"0\r\n" + b"x-a: b\r\n" * (HEAD_BYTES_MAX // 8),
        b"5;" + b"e" * HEAD_BYTES_MAX,
    ],
)
async def test_trailers_and_extensions_without_end(house: House, connect: Connect, endless: bytes):
    """What is neither head nor body is not kept either: after a megabyte its sender is refused."""
    wire = await connect(house.url)
    await wire.send(post(house, CHUNKED, body=chunk(BODY) + endless + b"more"))
    came = await wire.read_all()
    assert (status_of(came), answers_in(came)) == (431, 1)
    assert b'"code":"request_too_large"' in came


async def test_a_document_that_does_not_come(house: House, connect: Connect, monkeypatch: pytest.MonkeyPatch):
    """The administration waits for a body no longer than inference does: 408."""
    monkeypatch.setattr(house.gateway.services, "body_seconds_max", 0.1)
    wire = await connect(house.url)
    await wire.send(request_of({"name": "smuggled"}, key=ADMIN_TOKEN, path="/admin/keys")[:-1])
    answer = await wire.read_until(b"}}")
    assert status_of(answer) == 408
    assert b'"code":"invalid_request_error"' in answer


async def test_a_body_that_nobody_reads_and_does_not_come(
    house: House, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    """A connection whose request does not end is closed, though its answer was given long ago."""
    monkeypatch.setattr(BoundedHttpProtocol, "body_seconds_max", 0.1)
    for lines in (b"content-length: 5", CHUNKED):
        wire = await connect(house.url)
        await wire.send(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n" + lines + b"\r\n\r\n")
        assert status_of(await wire.read_all()) == 200


async def test_empty_lines_keep_nothing_open(house: House, connect: Connect, monkeypatch: pytest.MonkeyPatch):
    """An empty line between two requests is let pass, and starts the time within which the second has to come."""
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds_max", 0.1)
    wire = await connect(house.url)
    await wire.send(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
    await wire.read_until(b"ok")
    await wire.send(b"\r\n")
    await wire.read_all()


async def test_deep_documents(house: House):
    """A document that nests without end is 400 for the administration, too."""
    for deep in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
        answer = await house.admin("POST", "/keys", content=b'{"name": "x", "tags": {"a": ' + deep + b"}}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request_error")


async def test_a_client_that_leaves_while_it_sends_a_document(
    house: House, connect: Connect, caplog: pytest.LogCaptureFixture
):
    """Half a document is none, and no defect."""
    caplog.set_level(logging.WARNING)
    wire = await connect(house.url)
    await wire.send(request_of({"name": "smuggled"}, key=ADMIN_TOKEN, path="/admin/keys")[:-1])
    await eventually(lambda: house.server.server_state.tasks)
    await wire.close()
    await eventually(lambda: not house.server.server_state.tasks)
    assert not caplog.records


# -- behind a request that is being answered ---------------------------------------------------------------------------


async def test_garbage_behind_a_stream(relay: Relay, connect: Connect):
    """What is no request, sent while a stream is answered, ends the connection and never gets into the stream."""

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(HELLO))
        await call.left.wait()

    relay.upstream.script = script
    wire = await connect(relay.house.url)
    await wire.send(request_of(chat(stream=True), key=relay.house.key))
    came = await wire.read_until(b"\n\n")
    await wire.send(b"\x16\x03\x01\x02\x00\x01\r\n\r\n" + HIDDEN)
    came += await wire.read_all()
    assert (status_of(came), answers_in(came)) == (200, 1)
    await eventually(lambda: len(relay.house.gateway.services.exchanges) == 0)


async def test_a_body_that_waits_for_its_turn(relay: Relay, connect: Connect, monkeypatch: pytest.MonkeyPatch):
    """A request that is not read while the one before it is answered does not run out of time, nor end that answer."""
    monkeypatch.setattr(BoundedHttpProtocol, "body_seconds_max", 0.1)
    may_end = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD, chunk(HELLO))
        await may_end.wait()
        await call.send(chunk(DONE), LAST_CHUNK)

    relay.upstream.script = script
    wire = await connect(relay.house.url)
    second = post(relay.house, LENGTH, b"connection: close", body=BODY)
    await wire.send(request_of(chat(stream=True), key=relay.house.key) + second[:-1])
    came = await wire.read_until(b"\n\n")
    late = await connect(relay.house.url)  # its time begins after that of the second request, and ends after it
    await late.send(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1\r\n\r\n")
    await late.read_all()
    may_end.set()
    came += await wire.read_until(b"[DONE]")
    await wire.send(second[-1:])
    came += await wire.read_all()
    assert (answers_in(came), came.count(b"HTTP/1.1 200")) == (2, 2)
    assert b'"candidates"' in came
