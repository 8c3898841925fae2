"""A receiver of webhooks on loopback that answers as a test says, and keeps what came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers with ``answers`` in turn, then with 204. ``came`` is set by each request, ``going`` lets held ones go."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    going: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.deliveries.append(Delivery(path=request.path, headers=headers, body=await request.read()))
        self.came.set()
        answer = self.answers.pop(0) if self.answers else status(204)
        return await answer(request)

    async def hold(self, _: web.Request) -> web.StreamResponse:
        """An answer that does not come until the test is over."""
        await self.going.wait()
        return web.Response()


def status(code: int, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text="kept to myself")

    return answer


async def without_end(request: web.Request) -> web.StreamResponse:
    """A body that goes on for as long as anybody reads it."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        while True:
            await answer.write(b"x" * 65_536)
    except (ConnectionError, asyncio.CancelledError):
        return answer


@asynccontextmanager
async def receiving(*answers: Answer) -> AsyncIterator[Receiver]:
    receiver = Receiver(answers=list(answers))
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook/very-private"
        yield receiver
    finally:
        receiver.going.set()
        await runner.cleanup()
