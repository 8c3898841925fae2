"""What two processes say to each other over a pair of sockets: questions and answers, and that one of them ended.

A message is its length in four bytes, then JSON. Neither side trusts the other to answer: every question has a
deadline, and when one process ends, however it ends, the other's :meth:`Link.run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar

import msgspec

MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024
LENGTH_BYTES: Final = 4

LOGGER: Final = logging.getLogger("gateway")

T = TypeVar("T")

Handler = Callable[[str, Any], Awaitable[object]]
"""Answers a question by its name and content; what is told without a question is answered to nobody."""


class LinkLostError(Exception):
    """The other process has ended, or does not answer."""


class AnswerError(Exception):
    """The other process answered that it could not; the text is its reason, in an operator's words."""


class Message(msgspec.Struct, kw_only=True):
    """One message. ``number`` pairs a question with its answer."""

    kind: Literal["ask", "answer", "refusal", "tell"]
    number: int = 0
    what: str = ""
    content: msgspec.Raw = msgspec.Raw(b"null")


def tell_at_once(end: socket.socket, what: str, content: object) -> None:
    """Says something without an event loop: for a process that ends before it has one."""
    with contextlib.suppress(OSError):
        end.sendall(_frame(Message(kind="tell", what=what, content=_raw(content))))


class Link:
    """One end. Questions may be asked from any task while :meth:`run` runs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._lost = False

    @classmethod
    async def open(cls, end: socket.socket, handler: Handler) -> Link:
        """Takes over one end of a pair of stream sockets."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, handler)

    async def ask(self, what: str, content: object = None, *, answer: type[T], seconds_max: float) -> T:
        """The other's answer. Raises LinkLostError, AnswerError."""
        if self._lost:
            raise LinkLostError("the other process has ended")
        number = next(self._numbers)
        asked: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            self._write(Message(kind="ask", number=number, what=what, content=_raw(content)))
            async with asyncio.timeout(seconds_max):
                return msgspec.json.decode(await asked, type=answer)
        except TimeoutError:
            raise LinkLostError(f"no answer within {seconds_max:g} s") from None
        finally:
            del self._asked[number]

    def tell(self, what: str, content: object) -> None:
        """Says something that wants no answer."""
        self._write(Message(kind="tell", what=what, content=_raw(content)))

    async def run(self) -> None:
        """Takes what the other says until it has ended; then every open question is lost."""
        try:
            while True:
                head = await self._reader.readexactly(LENGTH_BYTES)
                size = int.from_bytes(head)
                assert size <= MESSAGE_BYTES_MAX
                await self._take(msgspec.json.decode(await self._reader.readexactly(size), type=Message))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._lost = True
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(LinkLostError("the other process has ended"))
            for task in self._answering:
                task.cancel()
            self._writer.close()

    async def _take(self, message: Message) -> None:
        if message.kind == "tell":
            await self._answer(message)  # in order, and also when it is the last thing that is said
            return
        if message.kind == "ask":
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        asked = self._asked.get(message.number)
        if asked is None or asked.done():
            return  # it came too late
        if message.kind == "answer":
            asked.set_result(message.content)
        else:
            asked.set_exception(AnswerError(msgspec.json.decode(message.content, type=str)))

    async def _answer(self, message: Message) -> None:
        try:
            answer = await self._handler(message.what, msgspec.json.decode(message.content))
        except AnswerError as error:
            reply = Message(kind="refusal", number=message.number, content=_raw(str(error)))
        except Exception as defect:
            LOGGER.exception("defect")
            reply = Message(
                kind="refusal", number=message.number, content=_raw(f"{type(defect).__name__}, see the log")
            )
        else:
            reply = Message(kind="answer", number=message.number, content=_raw(answer))
        if message.kind == "ask":
            self._write(reply)

    def _write(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(_frame(message))


def _raw(content: object) -> msgspec.Raw:
    return content if isinstance(content, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(content))


def _frame(message: Message) -> bytes:
    data = msgspec.json.encode(message)
    assert len(data) <= MESSAGE_BYTES_MAX
    return len(data).to_bytes(LENGTH_BYTES) + data
