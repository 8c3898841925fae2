"""A pause ends when the client leaves, and a connection can be cut; all else about the transport is the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]
Cut = Callable[[bool], Awaitable[None]]

CUT_EXTENSION: Final = "simulator.cut"
PAUSE_SECONDS_MAX: Final = 3600.0


class Hangup:
    """Knows whether the client has left, from the first :meth:`pause` or :meth:`watch` on."""

    __slots__ = ("_receive", "_sleep", "_waiting", "_watcher", "gone")

    def __init__(self, receive: Receive, sleep: Sleep) -> None:
        self.gone = False
        self._receive = receive
        self._sleep = sleep
        self._waiting: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def pause(self, seconds: float | None) -> bool:
        """Waits ``seconds`` (None: as long as the client stays); True while the client is still there."""
        self.watch()
        return not self.gone and await self._stays(seconds)

    async def _stays(self, seconds: float | None) -> bool:
        task = self._waiting = asyncio.current_task()
        assert task is not None
        try:
            await self._sleep(PAUSE_SECONDS_MAX if seconds is None else seconds)
        except asyncio.CancelledError:
            if not self.gone:
                raise
            task.uncancel()
        finally:
            self._waiting = None
        return not self.gone

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


async def cut(scope: Scope, *, reset: bool) -> None:
    """Ends the connection here: with RST or in silence. Without our server underneath it raises, which cuts it too."""
    extension: Cut | None = (scope.get("extensions") or {}).get(CUT_EXTENSION)
    if extension is None:
        raise ConnectionAbortedError("The simulator cuts this connection.")
    await extension(reset)


async def read_body(receive: Receive, bytes_max: int) -> bytes | None:
    """The request body; None when it is larger than ``bytes_max``, ConnectionResetError when the client left."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        return body if len(body) <= bytes_max else None
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        size += len(message.get("body", b""))
        if size <= bytes_max:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts) if size <= bytes_max else None
        message = await receive()
    raise ConnectionResetError("The client left while it sent its request.")


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """A whole answer."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
