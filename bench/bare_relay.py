"""The least that a relay can do: check the bearer, decode the head, splice model and options, relay, read the usage.

It is the yardstick for the gateway and keeps nothing: no routing, no limits, no journal. `--client` chooses the HTTP
client, so that the choice is measured. Everything else is the same: raw ASGI on uvicorn, uvloop and httptools.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import msgspec
import uvicorn

from bench.process import LOOPBACK, allow_many_sockets

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLIENTS: Final = ("aiohttp", "httpx", "httpx-aiohttp")
UPSTREAM_MODEL: Final = msgspec.Raw(b'"kimi-k2-thinking"')
INCLUDE_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')
CREDENTIAL: Final = "Bearer sk-bench-upstream"

_USAGE: Final = re.compile(rb'"usage":(\{(?:[^{}]|\{[^{}]*\})*\})')


class Head(msgspec.Struct):
    """What must be known before anything is sent."""

    model: str
    stream: bool = False


class Counted(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Body(msgspec.Struct):
    usage: Counted | None = None


_decode_head: Final = msgspec.json.Decoder(Head).decode
_decode_parts: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_body: Final = msgspec.json.Decoder(Body).decode
_decode_usage: Final = msgspec.json.Decoder(Counted).decode
_encode: Final = msgspec.json.Encoder().encode


class Upstream(Protocol):
    """A client as the relay needs it."""

    async def post(self, body: bytes) -> tuple[int, bytes]: ...

    def stream(self, body: bytes) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]: ...

    async def close(self) -> None: ...


class AiohttpUpstream:
    """aiohttp with its own bookkeeping off."""

    def __init__(self, url: str) -> None:
        import aiohttp  # only the client under test is loaded, for its memory's sake

        self._url = url
        self._headers = {"authorization": CREDENTIAL, "content-type": "application/json"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept-encoding"),
        )

    async def post(self, body: bytes) -> tuple[int, bytes]:
        async with self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False) as response:
            return response.status, await response.read()

    @asynccontextmanager
    async def stream(self, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        async with self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False) as response:
            yield response.status, response.content.iter_any()

    async def close(self) -> None:
        await self._session.close()


class HttpxUpstream:
    """httpx, over its own transport or over aiohttp's."""

    def __init__(self, url: str, *, over_aiohttp: bool = False) -> None:
        import httpx

        transport = None
        if over_aiohttp:
            from httpx_aiohttp import AiohttpTransport  # type: ignore[import-not-found]  # optional

            transport = AiohttpTransport(limits=httpx.Limits(max_connections=None))
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(120, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"authorization": CREDENTIAL, "content-type": "application/json"},
            trust_env=False,
        )
        self._url = url

    async def post(self, body: bytes) -> tuple[int, bytes]:
        response = await self._client.post(self._url, content=body)
        return response.status_code, response.content

    @asynccontextmanager
    async def stream(self, body: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        async with self._client.stream("POST", self._url, content=body) as response:
            yield response.status_code, response.aiter_raw()

    async def close(self) -> None:
        await self._client.aclose()


def upstream_of(client: str, url: str) -> Upstream:
    if client == "aiohttp":
        return AiohttpUpstream(url)
    return HttpxUpstream(url, over_aiohttp=client == "httpx-aiohttp")


class Relay:
    """The ASGI application."""

    def __init__(self, client: str, url: str, key: str) -> None:
        self._client, self._url = client, url
        self._bearer = f"Bearer {key}".encode()
        self._upstream: Upstream | None = None
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif (b"authorization", self._bearer) not in scope["headers"]:
            await _respond(send, 401, b"{}")
        else:
            await self._chat(await _read(receive), send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._upstream = upstream_of(self._client, self._url)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._upstream.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _chat(self, body: bytes, send: Send) -> None:
        assert self._upstream is not None
        head = _decode_head(body)
        parts = _decode_parts(body)
        parts["model"] = UPSTREAM_MODEL
        if head.stream:
            parts["stream_options"] = INCLUDE_USAGE
            await self._relay(_encode(parts), send)
            return
        status, answer = await self._upstream.post(_encode(parts))
        self._count(_decode_body(answer).usage)
        await _respond(send, status, answer)

    async def _relay(self, body: bytes, send: Send) -> None:
        assert self._upstream is not None
        usage: bytes | None = None
        async with self._upstream.stream(body) as (status, pieces):
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            async for piece in pieces:
                if b'"usage":{' in piece and (found := _USAGE.findall(piece)):
                    usage = found[-1]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._count(_decode_usage(usage) if usage else None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, usage: Counted | None) -> None:
        self.requests += 1
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    parts = [body]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts) if len(parts) > 1 else body


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bare_relay", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="URL of chat/completions")
    parser.add_argument("--key", required=True, help="the bearer that clients must show")
    parser.add_argument("--client", choices=CLIENTS, default="aiohttp")
    given = parser.parse_args()
    allow_many_sockets()
    uvicorn.run(
        Relay(given.client, given.upstream, given.key), host=LOOPBACK, port=given.port, loop="uvloop",
        http="httptools", lifespan="on", access_log=False, log_level="warning", backlog=2048,
    )  # fmt: skip


if __name__ == "__main__":
    main()
