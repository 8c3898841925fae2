"""A client on a bare socket, which may stop, hang up or misbehave wherever it likes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

READ_SECONDS_MAX = 20.0


@dataclass
class Wire:
    """One connection to the gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str, *, receive_buffer: int | None = None) -> Wire:
        parts = urlsplit(url)
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
        limit = 2**16 if receive_buffer is None else receive_buffer
        return cls(*await asyncio.open_connection(sock=raw, limit=limit))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark; what is there if the connection ends before."""
        came = b""
        async with asyncio.timeout(READ_SECONDS_MAX):
            while mark not in came:
                part = await self.reader.read(65_536)
                if not part:
                    break
                came += part
        return came

    async def read_all(self) -> bytes:
        async with asyncio.timeout(READ_SECONDS_MAX):
            return await self.reader.read()

    def half_close(self) -> None:
        """Says that nothing more will be sent, and still reads."""
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def reset(self) -> None:
        """Ends the connection with RST."""
        raw = self.writer.get_extra_info("socket")
        assert raw is not None
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)


def request_of(
    body: Any, *, key: str, path: str = "/v1/chat/completions", close: bool = False, **headers: str
) -> bytes:
    """A whole POST request; header names are written with underscores."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: gateway",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *(["connection: close"] if close else []),
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def unchunked(body: bytes) -> bytes:
    """The content of a body in chunked coding, as far as it came."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        content, body = content + rest[:length], rest[length + 2 :]
    return content
