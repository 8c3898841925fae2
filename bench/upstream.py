"""A fake provider that costs next to nothing: every answer is bytes made beforehand; a marker in the prompt picks one.

`[[pace=5]]` anywhere in the body: one event every 5 ms, else all at once. `[[chunks=24]]`: so many deltas, else 500.
Shapes and sizes are those of Kimi answers: about 1,100 bytes without a stream, about 270 bytes per delta.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import re
import sys
from typing import Any, Final, cast

import uvloop

from bench.process import LOOPBACK, allow_many_sockets

DELTAS: Final = 500
USAGE: Final = {
    "prompt_tokens": 96, "completion_tokens": 203, "total_tokens": 299,
    "cached_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0},
}  # fmt: skip
_IDENTITY: Final = {"id": "chatcmpl-6a21c0ffee5e11dea5ed00c0", "created": 1_763_000_000, "model": "kimi-k2-thinking"}
_MARKER: Final = re.compile(rb"\[\[(pace|chunks)=(\d{1,5})\]\]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
_MARKERS_WITHIN: Final = 1_024
"""Markers are looked for at both ends of a body only, so that a large one costs no search."""


def _plain() -> bytes:
    message = {
        "role": "assistant",
        "content": "The tide follows the moon, and the harbour master follows the tide. " * 4,
        "reasoning_content": "The user asks for one fact; I recall it, check it twice, and answer. " * 5,
    }
    document = {
        **_IDENTITY,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    body = json.dumps(document, separators=(",", ":")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
    document = {**_IDENTITY, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
    return _http_chunk(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n")


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@functools.lru_cache(maxsize=8)
def stream_events(deltas: int) -> tuple[bytes, ...]:
    """A stream as HTTP chunks, one per event: reasoning, then content, finish, usage, [DONE] and the end."""
    text = " a measured word of prose,"
    events = [_event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])]
    for number in range(deltas):
        name = "reasoning_content" if number < deltas * 2 // 5 else "content"
        padded = f"{number:04d}{text}".ljust(60 if name == "content" else 50)
        events.append(_event([{"index": 0, "delta": {name: padded}, "finish_reason": None}]))
    finish = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}
    events += [_event([finish]), _event([], USAGE), _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
    return tuple(events)


@functools.lru_cache(maxsize=8)
def _burst(deltas: int) -> bytes:
    return _STREAM_HEAD + b"".join(stream_events(deltas))


_PLAIN: Final = _plain()
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_MISSING: Final = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Provider(asyncio.Protocol):
    """One connection with keep-alive; no pipelining, as no client of ours pipelines."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._needed = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end)
            self._needed = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) >= self._needed:
            request, self._buffer, self._needed = self._buffer, bytearray(), 0
            self._answer(request)

    def _answer(self, request: bytearray) -> None:
        assert self._transport is not None
        if not request.startswith(b"POST "):
            self._transport.write(_MISSING)
            return
        ends = bytes(request[: _MARKERS_WITHIN * 2]) + bytes(request[-_MARKERS_WITHIN:])
        if not _STREAM.search(ends):
            self._transport.write(_PLAIN)
            return
        wish = {name: int(value) for name, value in _MARKER.findall(ends)}
        deltas, pace = wish.get(b"chunks", DELTAS), wish.get(b"pace", 0)
        if not pace:
            self._transport.write(_burst(deltas))
            return
        self._transport.write(_STREAM_HEAD)
        self._step(stream_events(deltas), 0, pace / 1000, self._loop.time())

    def _step(self, events: tuple[bytes, ...], index: int, pace_seconds: float, started_at: float) -> None:
        """One event now, the next at its own moment from the start, so that delays do not add up."""
        if self._transport is None:
            return
        self._transport.write(events[index])
        if index + 1 < len(events):
            due = started_at + (index + 1) * pace_seconds
            self._timer = self._loop.call_at(due, self._step, events, index + 1, pace_seconds, started_at)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Provider, LOOPBACK, port, backlog=2048)
    gc.freeze()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    allow_many_sockets()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
