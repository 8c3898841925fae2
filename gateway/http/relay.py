"""The ASGI side of an exchange: reads the request within limits, owns the connection's life, keeps silence alive.

The exchange runs in a task of its own that survives the client; the handler only watches the connection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from litestar.types import Message, Receive, Scope, Send

from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.core.shedding import Shed, shed
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.watch import HEARTBEAT_SECONDS, Watch
from gateway.surfaces.chat_completions import HEARTBEAT

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
DISCARD_BYTES_MAX: Final = 4 * BODY_BYTES_MAX
"""A body too large is read and thrown away up to here, so that its sender gets to see the refusal."""
BODY_SECONDS_MAX: Final = 60.0
HEADER_BYTES_MAX: Final = 32 * 1024
HEADER_VALUE_MAX: Final = 4096
_NOT_PRINTABLE: Final = re.compile(r"[^ -~]")
UNREAD_SECONDS_MAX: Final = 60.0
"""A client that reads nothing for so long does not get the end of its answer."""


OPEN_MAX: Final = 5_000
_SHED: Final = {
    Shed.FULL: Refusal(
        code=RefusalCode.OVERLOADED,
        message="The gateway has as many requests open as it may have. Send the request again shortly.",
        retry_after=1,
    ),
    Shed.SHARE: Refusal(
        code=RefusalCode.OVERLOADED,
        message="The gateway is nearly full, and this key has more than its share of requests open. Send the request "
        "again when one of them has ended.",
        retry_after=1,
    ),
}


def read_headers(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name, the first of each. Raises RefusedError for too many bytes of them."""
    headers: dict[str, str] = {}
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    if size > HEADER_BYTES_MAX:
        raise RefusedError(
            Refusal(
                code=RefusalCode.REQUEST_TOO_LARGE,
                status=431,
                message=f"The request's headers are longer than {HEADER_BYTES_MAX} bytes.",
            )
        )
    return headers


async def read_body(receive: Receive, headers: Mapping[str, str], *, seconds_max: float = BODY_SECONDS_MAX) -> bytes:
    """The whole body, bounded in size and time. Raises RefusedError; ConnectionError when the client left."""
    if headers.get("content-encoding", "identity").casefold() != "identity":
        raise RefusedError(
            Refusal(
                code=RefusalCode.INVALID_REQUEST,
                status=415,
                param="content-encoding",
                message="The body is compressed; send it as plain JSON.",
            )
        )
    try:
        async with asyncio.timeout(seconds_max):
            return await _collect(receive)
    except TimeoutError:
        raise late_body(seconds_max) from None


def late_body(seconds_max: float) -> RefusedError:
    """The refusal of a body that took longer."""
    return RefusedError(
        Refusal(
            code=RefusalCode.INVALID_REQUEST,
            status=408,
            message=f"The request's body did not arrive within {seconds_max:g} s.",
        )
    )


async def _collect(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError("the client left before its request was whole")
        body = message.get("body", b"")
        size += len(body)
        if size <= BODY_BYTES_MAX:
            parts.append(body)
        more = message.get("more_body", False)
        if size > BODY_BYTES_MAX and (not more or size > DISCARD_BYTES_MAX):
            raise RefusedError(
                Refusal(
                    code=RefusalCode.REQUEST_TOO_LARGE,
                    message=f"The request's body is longer than {BODY_BYTES_MAX} bytes.",
                )
            )
        if not more:
            return parts[0] if len(parts) == 1 else b"".join(parts)


class AsgiReply:
    """Implements the Reply port on an ASGI connection."""

    __slots__ = ("_beat", "_ended", "_request_id", "_send", "started")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._beat: asyncio.Task[None] | None = None
        self._ended = False
        self.started = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        if self.started:
            return
        self.started = True
        encoded = [(name.encode("latin-1"), header_value(value)) for name, value in headers.items()]
        await self._send_in_time({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, data: bytes) -> None:
        if data and not self._ended:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        if self._ended or not self.started:
            return  # a client that left before anything was said gets nothing
        self._ended = True
        await self._send_in_time({"type": "http.response.body", "body": data, "more_body": False})

    async def _send_in_time(self, message: Message) -> None:
        """Sends what no watch is kept over; after a client that does not take it, nothing more is sent."""
        try:
            async with asyncio.timeout(UNREAD_SECONDS_MAX):
                await self._send(message)
        except TimeoutError:
            self._ended = True

    def heartbeat(self) -> None:
        """A comment line, in its own task; a client that does not read gets no second one."""
        if self._ended or (self._beat is not None and not self._beat.done()):
            return
        self._beat = asyncio.get_running_loop().create_task(self._heartbeat())

    async def _heartbeat(self) -> None:
        await self.start(
            200,
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-request-id": self._request_id,
            },
        )
        await self.write(HEARTBEAT)

    async def close(self) -> None:
        """Waits for a heartbeat that is being written."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)


def header_value(text: str) -> bytes:
    """Text as a header value: one line of printable ASCII."""
    return _NOT_PRINTABLE.sub("?", text[:HEADER_VALUE_MAX]).encode("ascii")


class OpenExchanges:
    """The exchanges now running: owns their tasks, so that none outlives the gateway and none is lost.

    ``limit`` is how many may run at once; who is turned away then is said in ``core/shedding.py``.
    """

    def __init__(self, *, limit: int = OPEN_MAX, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._open: dict[asyncio.Task[None], Watch] = {}
        self._of_key: dict[str, int] = {}
        self._limit = limit
        self._heartbeat_seconds = heartbeat_seconds

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, conductor: Conductor, exchange: Exchange, reply: AsgiReply) -> tuple[asyncio.Task[None], Watch]:
        """Starts the exchange in a task of its own. Raises RefusedError where there is no room for it."""
        key_id = exchange.principal.key_id
        of_key = self._of_key.get(key_id, 0)
        reason = shed(open_total=len(self._open), open_of_key=of_key, keys_open=len(self._of_key), limit=self._limit)
        if reason is not None:
            conductor.telemetry.shed(reason)
            raise RefusedError(_SHED[reason])
        streams = exchange.admitted.request.stream
        watch = Watch(heartbeat=reply.heartbeat if streams else None, heartbeat_seconds=self._heartbeat_seconds)
        task = asyncio.get_running_loop().create_task(_run(conductor, exchange, reply, watch))
        self._open[task] = watch
        self._of_key[key_id] = of_key + 1

        def ended(task: asyncio.Task[None]) -> None:
            del self._open[task]
            left = self._of_key[key_id] - 1
            if left:
                self._of_key[key_id] = left
            else:
                del self._of_key[key_id]

        task.add_done_callback(ended)
        return task, watch

    def watches(self) -> list[Watch]:
        return list(self._open.values())

    async def wait(self, seconds: float) -> bool:
        """Waits for all of them to end; whether they did."""
        if self._open:
            await asyncio.wait(list(self._open), timeout=seconds)
        return not self._open


async def _run(conductor: Conductor, exchange: Exchange, reply: AsgiReply, watch: Watch) -> None:
    try:
        await conductor.run(exchange, reply, watch)
    finally:
        await reply.close()


async def attend(receive: Receive, task: asyncio.Task[None], watch: Watch) -> None:
    """Watches the connection until the exchange has ended; a hang-up is told to the exchange, nothing else.

    A client that neither reads nor leaves keeps ``receive`` waiting for ever: the end of the exchange ends that too.
    """
    patience = asyncio.timeout(None)
    attending = True

    def let_go(_: asyncio.Task[None]) -> None:
        if attending:
            patience.reschedule(0)

    try:
        async with patience:
            task.add_done_callback(let_go)
            while not task.done() and (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        assert task.done()
    finally:
        attending = False
    if not task.done():
        watch.hang_up()
    await asyncio.shield(task)
