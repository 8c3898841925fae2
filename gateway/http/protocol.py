"""The HTTP protocol with bounds: a request means one thing and is whole within a time and a size, or it is refused.

uvicorn's own waits for ever for a request that does not end and keeps all of its head. The parser is strict about what
frames a body; what it lets pass and a proxy in front might read otherwise is refused here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, ClassVar, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX: Final = 1024 * 1024
"""What a connection may send before its request's head is whole; a whole head has a smaller limit of its own. So much
may come between two pieces of a body, too: a chunk's extensions, or trailers."""

_HOST: Final = re.compile(rb"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")
_VERSIONS: Final = frozenset({"1.0", "1.1"})


class _Part(Enum):
    """Which part of a request is awaited."""

    HEAD = auto()
    BODY = auto()
    NEXT = auto()


class _FaultError(Exception):
    """The request's head means two things, or none."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which a sender cannot make wait or keep without limit."""

    head_seconds_max: ClassVar = 30.0
    body_seconds_max: ClassVar = 75.0
    """Longer than the routes themselves wait for a body: they have an answer for it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._part = _Part.HEAD
        self._held_bytes = 0
        self._fault: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await(self.head_seconds_max)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    # -- the parser tells ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._part = _Part.HEAD
        self._held_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is _Part.HEAD:  # what comes after a body is a trailer, and says nothing here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_wait()
        self._fault = _fault(self.parser.get_http_version(), self.headers, upgrades=self.parser.should_upgrade())
        if self._fault is not None:
            raise _FaultError
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what follows is not HTTP any more to whoever sent it
        self._part = _Part.BODY
        self._await(self.body_seconds_max)

    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = _Part.NEXT
        self._end_wait()
        super().on_message_complete()

    # -- the connection tells ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._part is _Part.NEXT:
            if self._timer is None and self.cycle.response_complete:
                self._await(self.head_seconds_max)  # an empty line, after which a request may come or not
            return
        self._held_bytes += len(data)
        if self._held_bytes > HEAD_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request_too_large", "The request does not end.")
        elif self._timer is None:
            self._await(self.head_seconds_max)

    def _unsupported_upgrade_warning(self) -> None:
        """Every client may ask for another protocol; that it does not get it is nothing to warn of."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "invalid_request_error", self._fault or msg)

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        """Ends the connection, with an answer where the client cannot take it for a part of another one."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:  # type: ignore[redundant-expr]  # None before the first request
            is_awaited = True
        else:
            is_awaited = self._part is _Part.BODY and not self.pipeline and not cycle.response_started
        if is_awaited:
            self.transport.write(_answer(status, code, message))
        self.transport.close()

    def _await(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._out_of_time)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        if self._part is _Part.BODY and self.pipeline:
            self._await(self.body_seconds_max)  # it is not read while the request before it is answered
        else:
            self.transport.close()


def _fault(version: str, headers: Sequence[tuple[bytes, bytes]], *, upgrades: bool) -> str | None:
    """What is wrong with a head that the parser takes."""
    if version not in _VERSIONS:
        return "This is HTTP/1.1."
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return "A request has one Host header."
    if hosts and hosts[0] and _HOST.fullmatch(hosts[0].strip()) is None:
        return "The Host header is a name or an address, and a port if need be."
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return "The only transfer coding is chunked, in HTTP/1.1."
    if upgrades and (codings or any(name == b"content-length" and value.strip(b"0") for name, value in headers)):
        return "There is no other protocol to upgrade to; send the request without the Upgrade header."
    return None


def _answer(status: HTTPStatus, code: str, message: str) -> bytes:
    """A whole answer in the envelope of every other error."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = msgspec.json.encode({"error": error})
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body
