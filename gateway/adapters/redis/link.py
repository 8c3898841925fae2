"""One connection to Redis, for one worker: commands go out in the order they were given, and so do their answers.

Many wait on it at once and nobody holds it: a waiter that is cancelled disturbs nobody, what was told before a request
asked is known when it is answered, and commands of one turn of the event loop leave in one write. A server that is
silent for too long ends the link, for all who wait, once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import parse_url

CONNECT_SECONDS_MAX: Final = 1.0
REPLY_SECONDS_MAX: Final = 0.25
GRACE_SECONDS: Final = 0.05
"""Once more: a busy event loop hears its own timers before what the server said meanwhile."""


class LinkLostError(Exception):
    """The server cannot be asked, or did not answer in time: what it did of the last commands is not known."""


class Link(asyncio.Protocol):
    """An open connection. ``on_lost`` is called once, when it is lost; not when it is closed."""

    def __init__(self, on_lost: Callable[[Link, str], None], *, reply_seconds_max: float = REPLY_SECONDS_MAX) -> None:
        self._on_lost = on_lost
        self._reply_seconds_max = reply_seconds_max
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_reply_error)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._leaving: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self._had_grace = False
        self.is_open = False

    @classmethod
    async def open(
        cls, url: str, on_lost: Callable[[Link, str], None], *, reply_seconds_max: float = REPLY_SECONDS_MAX
    ) -> Link:
        """Connects and introduces itself. Raises LinkLostError."""
        link = cls(on_lost, reply_seconds_max=reply_seconds_max)
        try:
            where = parse_url(url)
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await link._connect(where)
                await link._introduce(where)
        except (OSError, TimeoutError, ValueError, hiredis.HiredisError) as error:
            link.close()
            raise LinkLostError(type(error).__name__) from None  # its words may quote the URL
        except BaseException:
            link.close()
            raise
        return link

    async def _connect(self, where: Any) -> None:
        if "path" in where:
            await self._loop.create_unix_connection(lambda: self, where["path"])
            return
        context = _tls(where) if "connection_class" in where else None
        await self._loop.create_connection(
            lambda: self, where.get("host", "localhost"), where.get("port", 6379), ssl=context
        )

    async def _introduce(self, where: Any) -> None:
        if where.get("password") is not None:
            credentials = [where["username"]] if where.get("username") else []
            await self.send("AUTH", *credentials, where["password"])
        if where.get("db"):
            await self.send("SELECT", where["db"])

    def send(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Sends a command with whatever else leaves in this turn of the loop; the answer, or LinkLostError, or the
        server's error, is in the future."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(LinkLostError("not connected"))
            return answer
        if not self._leaving:
            self._loop.call_soon(self._write)
        self._leaving.append(hiredis.pack_command(command))  # type: ignore[arg-type]
        self._waiting.append((answer, self._loop.time()))
        if self._watch is None:
            self._watch = self._loop.call_later(self._reply_seconds_max, self._look)
        return answer

    def close(self) -> None:
        """Whoever still waits is told that nobody will answer."""
        self._end("closed")

    # --- the transport's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._had_grace = False
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                answer, _ = self._waiting.popleft()
                if answer.done():
                    continue
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self._lose("it does not speak Redis")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the connection ended" if exc is None else type(exc).__name__)

    def _write(self) -> None:
        if self._transport is not None and self.is_open:
            self._transport.write(b"".join(self._leaving))
        self._leaving.clear()

    def _look(self) -> None:
        """Whether the oldest command has waited for too long."""
        self._watch = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + self._reply_seconds_max - self._loop.time()
        if left <= 0 and self._had_grace:
            self._lose("it does not answer in time")
            return
        if left <= 0:
            self._had_grace = True
            left = GRACE_SECONDS
        self._watch = self._loop.call_later(left, self._look)

    def _lose(self, why: str) -> None:
        if self.is_open:
            self._end(why)
            self._on_lost(self, why)

    def _end(self, why: str) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(LinkLostError(why))
                answer.exception()  # nobody may be waiting; that is no defect


def _reply_error(text: str) -> Exception:
    return hiredis.ReplyError(text)


def _tls(where: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=where.get("ssl_ca_certs"))
    if where.get("ssl_certfile"):
        context.load_cert_chain(where["ssl_certfile"], where.get("ssl_keyfile"))
    requirement = str(where.get("ssl_cert_reqs", "required")).lower()
    context.check_hostname = str(where.get("ssl_check_hostname", "true")).lower() in ("true", "1", "yes")
    if requirement == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
