"""A provider that sends exactly what a test tells it to, byte by byte, and notes how each connection ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"msh-request-id: upstream-1\r\ntransfer-encoding: chunked\r\n\r\n"
)


def json_answer(body: Any, status: int = 200) -> bytes:
    """A whole answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def chunk(data: bytes) -> bytes:
    """Data in chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class Reader(asyncio.StreamReader):
    """Notices the end of what is sent when it comes, not when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: BaseException) -> None:
        super().set_exception(exc)
        self.ended.set()


@dataclass
class Call:
    """One request as it arrived, and the means to answer it. ``left`` is set once the caller is gone."""

    head: str
    body: bytes
    writer: asyncio.StreamWriter
    left: asyncio.Event

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, str]:
        pairs = (line.partition(":") for line in self.head.splitlines()[1:] if line)
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    async def send(self, *parts: bytes) -> None:
        """Sends each part in a packet of its own, as far as the kernel lets us."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def stream(self, *events: bytes) -> None:
        """A whole stream, one chunk for each of these."""
        await self.send(STREAM_HEAD, *(chunk(event) for event in events), LAST_CHUNK)

    def cut(self, *, reset: bool = False) -> None:
        """Ends the connection in the middle."""
        if reset:
            raw = self.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


class FakeUpstream:
    """Answers every call by the script; calls are kept in the order of their arrival."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.tells_of_questions = False
        """Whether free questions (GET) are scripted and kept too, or answered 404 beside it all."""
        self.script: Script = _nothing
        self.address = ""
        self._arrived = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()

    async def call(self, number: int = 1) -> Call:
        """The call with that number, once it has arrived."""
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: len(self.calls) >= number)
        return self.calls[number - 1]

    async def serve(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer_one(self, reader: Reader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        sizes = (int(line.split(":")[1]) for line in head.lower().splitlines() if "content-length:" in line)
        call = Call(head, await reader.readexactly(next(sizes, 0)), writer, reader.ended)
        if head.startswith("GET ") and not self.tells_of_questions:
            await call.send(json_answer({}, 404))
            return True
        async with self._arrived:
            self.calls.append(call)
            self._arrived.notify_all()
        answering = asyncio.ensure_future(self.script(call))
        leaving = asyncio.ensure_future(reader.ended.wait())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            return answering.done() and not answering.exception() and not writer.is_closing()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def stop(self) -> None:
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _nothing(_: Call) -> None:
    await asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    """A fake provider on a free port of the loopback."""
    upstream = FakeUpstream()

    def protocol() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(Reader(), upstream.serve)  # type: ignore[arg-type]

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    upstream.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()
        await server.wait_closed()
