"""Clients as ASGI connections on virtual time: patient, slow, deaf or gone, and each writes down what it saw.

What is sent to a client that has gone is dropped, as uvicorn does; one that reads nothing keeps ``send`` waiting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.simulation.life import Life, never
from tests.simulation.rights import KeyHolder

PROMPT_MARK: Final = "the-clockmaker-asked"
MODEL: Final = "kimi-k2-thinking"
_FILLER: Final = "tell me how the tide turns and why the boats come home "


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a client behaves. ``leaves_after`` seconds or ``leaves_at`` received messages; ``deaf_at`` stops reading."""

    leaves_after: float | None = None
    leaves_at: int | None = None
    leaves_in_upload: bool = False
    deaf_at: int | None = None
    read_seconds: float = 0.0
    retries: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class Connection:
    """One request on one connection, and all that came back. ``holder`` None: nobody's key."""

    number: int
    life: Life
    body: bytes
    asked: dict[str, Any] | None
    headers: list[tuple[bytes, bytes]]
    manners: Manners
    holder: KeyHolder | None
    now: Callable[[], float]
    order: Callable[[], int]
    opened_at: float = 0.0
    status: int | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    received: list[tuple[float, bytes]] = field(default_factory=list)
    first_content_order: int | None = None
    finished: bool = False
    finished_order: int | None = None
    left_at: float | None = None
    ended_at: float | None = None
    durable_at_end: set[str] = field(default_factory=set)
    deaf: bool = False
    on_end: Callable[[Connection], None] = lambda _: None
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _uploaded: int = 0

    @property
    def request_id(self) -> str | None:
        return self.answer_headers.get("x-request-id")

    @property
    def bytes(self) -> bytes:
        return b"".join(data for _, data in self.received)

    @property
    def is_stream(self) -> bool:
        return self.answer_headers.get("content-type", "").startswith("text/event-stream")

    @property
    def stayed(self) -> bool:
        return self.left_at is None and not self.deaf

    @property
    def is_satisfied(self) -> bool:
        """Whether it got an answer, or does not want one any more."""
        has_end = self.finished or self.left_at is not None
        return has_end and self.status is not None and self.status < 500

    async def receive(self) -> dict[str, Any]:
        if not self.life.is_alive:
            await never()
        if self._uploaded == 0:
            self._uploaded = 1
            half = len(self.body) // 2
            if self.manners.leaves_in_upload:
                return {"type": "http.request", "body": self.body[:half], "more_body": True}
            return {"type": "http.request", "body": self.body, "more_body": False}
        if self.manners.leaves_in_upload:
            self.leave()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if not self.life.passes("send"):
            await never()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert self.status is None, "two heads"
            self.status = message["status"]
            self.answer_headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert self.status is not None, "a body before the head"
        assert not self.finished, "sent after the end"
        await self._take_time()
        if self._gone.is_set():
            return
        self._take(message.get("body", b""))
        if not message.get("more_body", False):
            self.finished = True
            self.finished_order = self.order()
            self.on_end(self)

    async def _take_time(self) -> None:
        manners = self.manners
        if manners.deaf_at is not None and len(self.received) >= manners.deaf_at:
            self.deaf = True
            await self._gone.wait()
        elif manners.read_seconds:
            await asyncio.sleep(manners.read_seconds)

    def _take(self, data: bytes) -> None:
        if data:
            self.received.append((self.now(), data))
            if self.first_content_order is None and not data.startswith(b": keep-alive"):
                self.first_content_order = self.order()
        if self.manners.leaves_at is not None and len(self.received) >= self.manners.leaves_at:
            self.leave()

    def leave(self) -> None:
        if self.left_at is None and not self.finished:
            self.left_at = self.now()
            self._gone.set()


def request(chance: Random) -> tuple[bytes, dict[str, Any] | None]:
    """A body, and what it asks if that can be asked at all."""
    if chance.random() < 0.03:
        return chance.choice((b"{", b"[]", b'{"model":"kimi-k2-thinking"}', b'{"model":"no-such","messages":[]}')), None
    body: dict[str, Any] = {"model": MODEL, "stream": chance.random() < 0.75}
    body["messages"] = [{"role": "user", "content": _FILLER * chance.choice((1, 1, 4, 30))}]
    if chance.random() < 0.5:
        body["max_tokens"] = chance.choice((50, 300, 2000))
    if body["stream"] and chance.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    if chance.random() < 0.15:
        body["n"] = 2
    return b"", body


def numbered(body: bytes, asked: dict[str, Any] | None, number: int) -> bytes:
    """The body as this connection sends it: the prompt says which one it is."""
    if asked is None:
        return body
    (message,) = asked["messages"]
    content = f"{PROMPT_MARK} {number} {message['content']}"
    return json.dumps({**asked, "messages": [{**message, "content": content}]}).encode()
