"""Whatever is sent, the answer has its documented status and envelope, names the request, and costs nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from gateway.core import api_key
from gateway.core.grants import COMMAND_LINE
from gateway.http.protocol import HEAD_BYTES_MAX, BoundedHttpProtocol
from tests.http.conftest import Connect
from tests.http.house import ADMIN_TOKEN, MODEL, House, chat, eventually
from tests.http.raw_client import request_of, status_of

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PATH = "/v1/chat/completions"
BUSY_SECOND = 2.0
"""A second, on a machine that is busy with other tests."""


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Checks an error answer against its documented form; returns the error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    document = answer.json()
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert isinstance(error["type"], str)
    assert answer.headers["x-request-id"]
    assert answer.headers["x-request-id"] in error["message"]
    return error


@pytest.fixture(autouse=True)
async def _nothing_in_the_books(house: House) -> AsyncIterator[None]:
    """No test of this module may leave a row or reach a provider."""
    before = len(await house.ledger())
    yield
    assert len(await house.ledger()) == before
    assert all(not simulator.requests for simulator in house.simulators.values())


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


BODIES: dict[str, tuple[Any, str, str | None]] = {
    "empty": (b"", "invalid_request_error", None),
    "no JSON": (b"{'model': 1}", "invalid_request_error", None),
    "cut JSON": (b'{"model": "kimi', "invalid_request_error", None),
    "two documents": (b"{}{}", "invalid_request_error", None),
    "no UTF-8": (b'{"model": "\xff"}', "invalid_request_error", None),
    "a lone surrogate": (b'{"model": "kimi-k2-thinking", "messages": [{"role": "user", "content": "\\ud800"}]}',
                         "invalid_request_error", None),
    "a list": (b"[]", "invalid_request_error", None),
    "a number": (b"17", "invalid_request_error", None),
    "NaN": (b'{"model": "kimi-k2-thinking", "temperature": NaN}', "invalid_request_error", None),
    "no model": ({"messages": []}, "invalid_request_error", "model"),
    "model of a wrong type": (chat(model=17), "invalid_request_error", "model"),
    "no messages": ({"model": MODEL}, "invalid_request_error", "messages"),
    "messages of a wrong type": (chat(messages="hi"), "invalid_request_error", "messages"),
    "no message": (chat(messages=[]), "invalid_request_error", "messages"),
    "a message of a wrong type": (chat(messages=[17]), "invalid_request_error", "messages[0]"),
    "an unknown role": (chat(messages=[{"role": "boss", "content": "x"}]), "invalid_request_error", "messages[0].role"),
    "stream of a wrong type": (chat(stream="yes"), "invalid_request_error", "stream"),
    "temperature of a wrong type": (chat(temperature="hot"), "invalid_request_error", "temperature"),
    "temperature too high": (chat(temperature=1.2), "invalid_request_error", "temperature"),
    "no output": (chat(max_tokens=0), "invalid_request_error", "max_tokens"),
    "tools of a wrong type": (chat(tools={}), "invalid_request_error", "tools"),
    "a tool name of two letters": (chat(tools=[tool("ab")]), "invalid_request_error", "tools[0].function.name"),
    "a tool twice": (chat(tools=[tool("abc"), tool("abc")]), "invalid_request_error", "tools[1].function.name"),
    "context overflow": (chat("x" * 262_000 * 5, max_tokens=16_384), "context_length_exceeded", "messages"),
    "output beyond the model": (chat(max_tokens=262_145), "invalid_request_error", "max_tokens"),
    "deep nesting": (b'{"model": "kimi-k2-thinking", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
                     "invalid_request_error", None),
    "deep nesting in a tool": (b'{"model": "kimi-k2-thinking", "messages": [], "tools": '
                               + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "invalid_request_error", None),
    "preferences of a wrong type": (chat(provider="evolink"), "invalid_request_error", "provider"),
    "an order of a wrong type": (chat(provider={"order": "evolink"}), "invalid_request_error", "provider.order"),
    "a price of a wrong type": (chat(provider={"max_price": {"prompt": []}}), "invalid_request_error",
                                "provider.max_price.prompt"),
}  # fmt: skip


@pytest.mark.parametrize("path", [PATH, "/v1/route"])
@pytest.mark.parametrize("name", BODIES)
async def test_bodies(house: House, name: str, path: str):
    """What is wrong with a body is a 400 that names the field, on a real call and on a dry run."""
    body, code, param = BODIES[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await house.client.post(path, content=data, headers={"authorization": f"Bearer {house.key}"})
    refused(answer, 400, code, param)


async def test_an_unknown_model(house: House):
    """A model that nobody knows is a 404 with the code model_not_found."""
    refused(await house.ask(chat(model="gpt-nothing")), 404, "model_not_found", "model")


@pytest.mark.parametrize("path", [PATH, "/admin/keys"])
async def test_a_body_of_20_megabytes(house: House, path: str):
    """A body that is too large is refused as such, after its sender got it all out."""
    body = json.dumps(chat("x" * 20_000_000)).encode()
    key = house.key if path == PATH else ADMIN_TOKEN
    answer = await house.client.post(path, content=body, headers={"authorization": f"Bearer {key}"})
    refused(answer, 413, "request_too_large")


async def test_a_body_of_20_megabytes_in_chunks(house: House):
    """The limit holds as well for a body whose length nobody told."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield b" " * 65_536

    answer = await house.client.post(PATH, content=parts(), headers={"authorization": f"Bearer {house.key}"})
    refused(answer, 413, "request_too_large")


def mistyped(secret: str) -> str:
    return secret[:-1] + ("0" if secret[-1] != "0" else "1")


WRONG_KEYS: dict[str, Callable[[str], dict[str, str]]] = {
    "none": lambda key: {},
    "empty": lambda key: {"authorization": "Bearer"},
    "another scheme": lambda key: {"authorization": f"Basic {key}"},
    "malformed": lambda key: {"authorization": "Bearer sk-1234567890"},
    "mistyped": lambda key: {"authorization": f"Bearer {mistyped(key)}"},
    "not ASCII": lambda key: {"authorization": "Bearer kgw_ä"},
    "unknown": lambda key: {"authorization": f"Bearer {api_key.new_secret(bytes(32))}"},
    "unknown in x-api-key": lambda key: {"x-api-key": api_key.new_secret(bytes(32))},
    "the admin token": lambda key: {"authorization": f"Bearer {ADMIN_TOKEN}"},
}


@pytest.mark.parametrize("path", [PATH, "/v1/route", "/v1/models", "/admin/keys"])
@pytest.mark.parametrize("name", WRONG_KEYS)
async def test_wrong_keys(house: House, name: str, path: str):
    """No key, a malformed one and an unknown one are 401 everywhere; the admin token is no inference key."""
    headers = {k: v.encode() for k, v in WRONG_KEYS[name](house.key).items()}
    method = "GET" if path in ("/v1/models", "/admin/keys") else "POST"
    answer = await house.client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
    if path == "/admin/keys" and name == "the admin token":
        assert answer.status_code == 200
    else:
        refused(answer, 401, "invalid_api_key")


async def test_a_key_in_x_api_key(house: House):
    """The header x-api-key is as good as Authorization."""
    answer = await house.client.post("/v1/route", json=chat(), headers={"x-api-key": house.key})
    assert answer.status_code == 200


async def test_an_expired_key(house: House):
    """A key is refused from its moment of expiry on."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    made = await house.make_key(expires=past)
    refused(await house.ask(chat(), key=made["key"]), 401, "invalid_api_key")


async def test_a_revoked_key(house: House):
    """A revoked key is refused at once where it was revoked, though it was known a moment ago."""
    made = await house.make_key()
    answer = await house.client.post("/v1/route", json=chat(), headers={"authorization": f"Bearer {made['key']}"})
    assert answer.status_code == 200
    assert (await house.admin("DELETE", f"/keys/{made['id']}")).status_code == 200
    refused(await house.ask(chat(), key=made["key"]), 401, "invalid_api_key")


async def test_a_key_that_was_revoked_elsewhere(house: House):
    """A key that somebody else revokes, by command line or another replica, is refused within a second."""
    made = await house.make_key()
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await house.client.post("/v1/route", json=chat(), headers=headers)).status_code == 200
    await house.gateway.administration.keys.revoke(made["id"], by=COMMAND_LINE)

    async def is_refused() -> bool:
        return (await house.client.post("/v1/route", json=chat(), headers=headers)).status_code == 401

    await eventually(is_refused, seconds=BUSY_SECOND)


async def test_a_finance_key_on_inference(house: House):
    """A key that reads money may not spend it."""
    made = await house.make_key(role="finance")
    refused(await house.ask(chat(), key=made["key"]), 403, "role_not_allowed")


ADMIN_ROUTES = [
    ("GET", "/keys"), ("POST", "/keys"), ("GET", "/keys/key_1"), ("DELETE", "/keys/key_1"),
    ("POST", "/keys/key_1/rotate"), ("GET", "/ledger"), ("GET", "/reports/spend"), ("GET", "/requests/req_1"),
    ("GET", "/reports/savings"), ("GET", "/providers"), ("GET", "/prices"), ("POST", "/config/reload"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
async def test_an_inference_key_on_the_administration(house: House, method: str, path: str):
    """Who calls models has no business in the administration."""
    arguments = {"json": {"name": "x"}} if method == "POST" else {}
    refused(await house.admin(method, path, token=house.key, **arguments), 403, "role_not_allowed")


WRITES = [("POST", "/keys"), ("DELETE", "/keys/key_1"), ("POST", "/keys/key_1/rotate"), ("POST", "/config/reload")]


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_a_finance_key_reads_only(house: House, method: str, path: str):
    """The role finance reads everything and changes nothing."""
    made = await house.make_key(role="finance")
    arguments = {"json": {"name": "x"}} if method == "POST" else {}
    refused(await house.admin(method, path, token=made["key"], **arguments), 403, "role_not_allowed")
    assert (await house.admin("GET", "/reports/spend", token=made["key"])).status_code == 200


async def test_a_key_without_the_model(house: House):
    """A key that may call another model only is told so, and so by an alias."""
    made = await house.make_key(models=["kimi-k2-thinking-turbo"])
    for name in (MODEL, "kimi-thinking"):
        refused(await house.ask(chat(model=name), key=made["key"]), 403, "model_not_allowed", "model")


async def test_a_key_without_the_provider(house: House):
    """A key whose providers do not sell the model is told so."""
    made = await house.make_key(providers=["evolink"])
    asked = await house.ask(chat(model="kimi-k2-0905-preview"), key=made["key"])
    refused(asked, 403, "provider_not_allowed")


async def test_the_routes_say_which_method(house: House):
    """The wrong method for a path is 405, before any key is asked for."""
    for method, path in (("GET", PATH), ("GET", "/v1/route"), ("PUT", PATH), ("POST", "/v1/models")):
        answer = await house.client.request(method, path)
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]
    answer = await house.admin("PUT", "/keys")
    refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/admin/nothing", "/v1/chat/completions/no", "/%00", "/ä"])
async def test_unknown_paths(house: House, path: str):
    """A path that is not there is 404 in the same envelope."""
    answer = await house.client.get(path)
    refused(answer, 404, "not_found")


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/admin/keys", "/healthz"])
async def test_headers_that_are_too_long(house: House, path: str):
    """More than 32 KiB of headers is 431 on every path."""
    headers = {"authorization": f"Bearer {house.key}", "x-much": "m" * 40_000}
    answer = await house.client.request("POST" if path == PATH else "GET", path, headers=headers)
    refused(answer, 431, "request_too_large")


@pytest.mark.parametrize("line", [b"x-more: " + b"m" * 4096 + b"\r\n", b"m" * 4096])
async def test_headers_without_end(house: House, connect: Connect, line: bytes):
    """Headers that never end are not kept: after a megabyte their sender gets 431 and is left alone."""
    wire = await connect(house.url)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nx-much: "
    await wire.send((head + line * (HEAD_BYTES_MAX // len(line) + 1))[: HEAD_BYTES_MAX + 1])
    answer = await wire.read_all()
    assert status_of(answer) == 431
    assert b'"code":"request_too_large"' in answer


async def test_a_head_that_does_not_come(house: House, connect: Connect, monkeypatch: pytest.MonkeyPatch):
    """A connection on which no whole head arrives in time is closed, whether it began one or not."""
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds_max", 0.1)
    for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: ga"):
        wire = await connect(house.url)
        await wire.send(begun)
        assert await wire.read_all() == b""


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_a_compressed_body(house: House, coding: str):
    """A compressed body is 415 and says how to send it instead."""
    answer = await house.client.post(
        PATH,
        content=gzip.compress(b"{}"),
        headers={"authorization": f"Bearer {house.key}", "content-encoding": coding},
    )
    refused(answer, 415, "invalid_request_error", "content-encoding")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_wrong_content_type(house: House, content_type: str):
    """JSON is JSON whatever it is called, as most servers of this API have it; what is none is 400."""
    headers = {"authorization": f"Bearer {house.key}", "content-type": content_type}
    answer = await house.client.post("/v1/route", content=json.dumps(chat()), headers=headers)
    assert answer.status_code == 200
    answer = await house.client.post(PATH, content=b"model=kimi-k2-thinking", headers=headers)
    refused(answer, 400, "invalid_request_error")


async def test_a_chunked_upload(house: House):
    """A body in small chunks, as a proxy may send it, is a body like any other."""

    async def parts() -> AsyncIterator[bytes]:
        for byte in json.dumps(chat()).encode():
            yield bytes([byte])

    answer = await house.client.post("/v1/route", content=parts(), headers={"authorization": f"Bearer {house.key}"})
    assert answer.status_code == 200
    assert answer.json()["model"] == MODEL


async def test_a_body_that_does_not_come(house: House, connect: Connect, monkeypatch: pytest.MonkeyPatch):
    """A body that does not arrive in time is 408."""
    monkeypatch.setattr(house.gateway.services, "body_seconds_max", 0.1)
    wire = await connect(house.url)
    whole = request_of(chat(), key=house.key)
    await wire.send(whole[:-5])
    answer = await wire.read_until(b"}}")
    assert status_of(answer) == 408
    assert b'"code":"invalid_request_error"' in answer


async def test_a_client_that_leaves_while_it_uploads(house: House, connect: Connect):
    """Half a request is no request: nothing is answered, logged as a defect, or kept."""
    for end in ("close", "reset"):
        wire = await connect(house.url)
        await wire.send(request_of(chat(), key=house.key)[:-5])
        await getattr(wire, end)()
    await eventually(lambda: not house.server.server_state.tasks)
    assert len(house.gateway.services.exchanges) == 0


async def test_expect_continue(house: House, connect: Connect):
    """A client that asks before it sends is told to go on, unless its key is none."""
    head, _, body = request_of(chat(), key=house.key, path="/v1/route", expect="100-continue").partition(b"\r\n\r\n")
    wire = await connect(house.url)
    await wire.send(head + b"\r\n\r\n")
    assert (await wire.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    await wire.send(body)
    assert status_of(await wire.read_until(b"candidates")) == 200
    wire = await connect(house.url)
    await wire.send(head.replace(house.key.encode(), b"kgw_none") + b"\r\n\r\n")
    assert status_of(await wire.read_until(b"}}")) == 401


async def test_requests_in_one_pipe(house: House, connect: Connect):
    """Two requests on one connection, the second sent before the first is answered, get their answers in order."""
    wire = await connect(house.url)
    good, bad = request_of(chat(), key=house.key, path="/v1/route"), request_of(b"[]", key=house.key, close=True)
    await wire.send(good + bad)
    came = await wire.read_all()
    assert came.count(b"HTTP/1.1 200") == came.count(b"HTTP/1.1 400") == 1
    assert came.index(b"HTTP/1.1 200") < came.index(b"HTTP/1.1 400")


async def test_what_is_not_even_http(house: House, connect: Connect):
    """Bytes that are no request are refused and end their connection, and nothing else."""
    wire = await connect(house.url)
    await wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert status_of(await wire.read_all()) == 400
    async with asyncio.timeout(5):
        assert (await house.client.get("/healthz")).json() == {"status": "ok"}
