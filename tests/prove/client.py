"""A client that keeps what it was told: whether an answer came whole, under which id, and at what cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from bench.audit import pico

ANSWER_SECONDS_MAX: Final = 120.0
DONE: Final = b"data: [DONE]"


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of one request. ``status`` None: no head came. ``complete``: all of an answer, as HTTP and SSE end."""

    status: int | None = None
    request_id: str | None = None
    complete: bool = False
    usage: dict[str, Any] | None = None
    trouble: str = ""

    @property
    def cost_pico(self) -> int | None:
        cost = (self.usage or {}).get("cost")
        return None if cost is None else pico(cost)


class Client:
    """Asks for chat completions over connections of its own; ``async with`` for as long as it asks."""

    def __init__(self, *, url: str, secret: str, is_fresh: bool = False) -> None:
        """``is_fresh``: each request has a connection of its own, and so any of several workers."""
        self.url = url
        self.is_fresh = is_fresh
        self.headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        connector = aiohttp.TCPConnector(limit=0, force_close=self.is_fresh)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, body: dict[str, Any], *, on_piece: Callable[[], None] = lambda: None) -> Answer:
        """Sends a request and reads its answer to the end; ``on_piece`` is told of everything that comes of it."""
        assert self._session is not None
        answer, parts = Answer(), []
        url = f"{self.url}/v1/chat/completions"
        try:
            async with self._session.post(url, data=json.dumps(body), headers=self.headers) as response:
                answer.status = response.status
                answer.request_id = response.headers.get("x-request-id")
                async for part in response.content.iter_any():
                    parts.append(part)
                    on_piece()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            answer.trouble = f"{type(error).__name__}: {error}"
            return answer
        _judge(answer, b"".join(parts), streamed=bool(body.get("stream")))
        return answer


def _judge(answer: Answer, body: bytes, *, streamed: bool) -> None:
    if answer.status != 200:
        answer.trouble = f"{answer.status} {body[:600].decode(errors='replace')}"
    elif not streamed:
        answer.usage = json.loads(body, parse_float=Decimal).get("usage")
        answer.complete = True
    else:
        _judge_stream(answer, body.replace(b"\r\n", b"\n").split(b"\n"))


def _judge_stream(answer: Answer, lines: list[bytes]) -> None:
    for line in lines:
        if line.startswith(b"data:") and (b'"error"' in line or b'"usage"' in line):
            event = json.loads(line[5:], parse_float=Decimal)
            if "error" in event:
                answer.trouble = f"in the stream: {line[:300].decode(errors='replace')}"
                return
            if not event.get("choices") and event.get("usage"):
                answer.usage = event["usage"]
    answer.complete = DONE in lines
    answer.trouble = "" if answer.complete else "the stream ended without [DONE]"
