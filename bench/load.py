"""A load generator that costs next to nothing per answer: one object per connection, keep-alive, no body kept."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final, cast

from bench.process import LOOPBACK

ANSWER_SECONDS_MAX: Final = 120.0
_TAIL_BYTES: Final = 48
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_LAST_CHUNK: Final = b"0\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came back. ``tail`` is the last bytes of the message; of a stream only they are kept."""

    status: int
    streamed: bool
    tail: bytes
    seconds: float

    @property
    def good(self) -> bool:
        """Whole, and what was asked for: a stream with its [DONE], or an answer that carries usage."""
        return self.status == 200 and (b"[DONE]" in self.tail if self.streamed else self.tail.endswith(b"}"))


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._head = b""
        self._status = 0
        self._left: int | None = None
        self._tail = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        assert self._transport is not None
        assert self._waiting is None or self._waiting.done(), "one request at a time"
        self._head, self._status, self._left, self._tail = b"", 0, None, b""
        self._waiting = self._loop.create_future()
        self._sent_at = time.perf_counter()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[: end + 4], self._head[end + 4 :]
            self._status = int(head[9:12])
            length = _LENGTH.search(head)
            self._left = None if _CHUNKED.search(head) else int(length[1]) if length else 0
            if not data and self._left != 0:
                return
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
        if self._left is None:
            # An event ends in two line feeds, so these five bytes can only be the end.
            if self._tail.endswith(_LAST_CHUNK):
                self._finish(streamed=True)
            return
        self._left -= len(data)
        if self._left <= 0:
            self._finish(streamed=False)

    def _finish(self, *, streamed: bool) -> None:
        if self._waiting is not None and not self._waiting.done():
            seconds = time.perf_counter() - self._sent_at
            self._waiting.set_result(Answer(status=self._status, streamed=streamed, tail=self._tail, seconds=seconds))


@dataclass(slots=True, kw_only=True)
class Load:
    """How one load went."""

    good: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def note(self, answer: Answer) -> None:
        if answer.good:
            self.good += 1
            self.latencies.append(answer.seconds)
        else:
            self.note_bad(f"status {answer.status}" if answer.status != 200 else "incomplete")

    def note_bad(self, what: str) -> None:
        self.bad[what] = self.bad.get(what, 0) + 1

    @property
    def median_seconds(self) -> float:
        return median(self.latencies) if self.latencies else float("nan")


def post(port: int, body: bytes, *, key: str) -> bytes:
    """A chat completion request as bytes."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {LOOPBACK}:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(port: int) -> Connection:
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, LOOPBACK, port)
    return protocol


async def closed_loop(port: int, request: bytes, *, count: int, concurrency: int, stagger_seconds: float = 0.0) -> Load:
    """``count`` requests, ``concurrency`` at a time, each as soon as the one before it was answered.

    ``stagger_seconds``: the first ones begin so far apart in all, so that paced streams do not tick together.
    """
    load, left = Load(), count

    async def worker(number: int) -> None:
        nonlocal left
        await asyncio.sleep(stagger_seconds * number / concurrency)
        connection = await connect(port)
        while left > 0:
            left -= 1
            if not connection.is_open:
                connection = await connect(port)
            await _ask(connection, request, load)
        connection.close()

    await asyncio.gather(*(worker(number) for number in range(min(concurrency, count))))
    return load


async def open_loop(port: int, request: bytes, *, count: int, rate: float) -> Load:
    """``count`` requests, one every ``1/rate`` seconds whether or not the last was answered."""
    load, idle, loop = Load(), [await connect(port)], asyncio.get_running_loop()
    started_at = loop.time()

    async def one() -> None:
        connection = idle.pop() if idle else await connect(port)
        await _ask(connection, request, load)
        if connection.is_open:
            idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, started_at + number / rate - loop.time()))
            group.create_task(one())
    for connection in idle:
        connection.close()
    return load


async def hold_open(
    port: int, request: bytes, *, streams: int, ramp_per_second: float, at_full: Callable[[], None]
) -> Load:
    """``streams`` slow streams, opened at a steady rate; ``at_full`` is called once when all of them are open."""
    load, loop = Load(), asyncio.get_running_loop()
    started_at = loop.time()

    async def one() -> None:
        connection = await connect(port)
        await _ask(connection, request, load)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            await asyncio.sleep(max(0.0, started_at + number / ramp_per_second - loop.time()))
            group.create_task(one())
        await asyncio.sleep(0.5)
        at_full()
    return load


async def _ask(connection: Connection, request: bytes, load: Load) -> None:
    try:
        load.note(await asyncio.wait_for(connection.ask(request), ANSWER_SECONDS_MAX))
    except (OSError, TimeoutError) as error:
        load.note_bad(type(error).__name__)
        connection.close()
