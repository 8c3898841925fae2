"""A client for simulators: over a real loopback connection, or straight through ASGI on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gateway.simulator import Simulator, running

KEY = "sk-test"
MODEL = "kimi-k2-thinking"


@dataclass
class Reply:
    """An answer as it came; ``whole`` is False when the connection broke before its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of every SSE event, with ``[DONE]`` as a string."""
        lines = [line for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]

    @property
    def choices(self) -> list[Any]:
        return [choice for event in self.events if isinstance(event, dict) for choice in event["choices"]]

    def text(self, field: str = "content", index: int = 0) -> str:
        return "".join(c["delta"].get(field) or "" for c in self.choices if c["index"] == index)


def chat(content: str = "hello", **fields: Any) -> dict[str, Any]:
    """A request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


class Http:
    """Calls one simulator over its socket."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session = session
        self.address = address

    async def ask(self, body: object, *, key: str | None = KEY, raw: bytes | None = None) -> Reply:
        data = json.dumps(body).encode() if raw is None else raw
        headers = {} if key is None else {"authorization": f"Bearer {key}", "x-gateway-attempt-id": "attempt-1"}
        url = self.address + "/v1/chat/completions"
        async with self.session.post(url, data=data, headers=headers) as answer:
            came = bytearray()
            try:
                async for part in answer.content.iter_any():
                    came += part
            except aiohttp.ClientError:
                return Reply(answer.status, dict(answer.headers), bytes(came), whole=False)
            return Reply(answer.status, dict(answer.headers), bytes(came))

    async def get(self, path: str, *, key: str = KEY) -> Reply:
        headers = {"authorization": f"Bearer {key}"}
        async with self.session.get(self.address + path, headers=headers) as answer:
            return Reply(answer.status, dict(answer.headers), await answer.read())

    async def post(self, path: str, body: object, *, key: str = KEY) -> Reply:
        headers = {"authorization": f"Bearer {key}"}
        async with self.session.post(self.address + path, json=body, headers=headers) as answer:
            return Reply(answer.status, dict(answer.headers), await answer.read())

    async def set_fault(self, kind: str, **parameters: Any) -> None:
        reply = await self.post("/__sim/faults", {"clear": True, "set": [{"kind": kind, **parameters}]})
        assert reply.status == 200, reply.body


Scenario = Callable[[Http], Awaitable[None]]


@pytest.fixture
def over_http() -> Callable[[Simulator, Scenario], None]:
    """Runs a scenario against a simulator that listens on a free loopback port."""

    def run(simulator: Simulator, scenario: Scenario) -> None:
        async def main() -> None:
            async with running([simulator]) as addresses, aiohttp.ClientSession() as session:
                async with asyncio.timeout(20):
                    await scenario(Http(session, addresses[simulator.provider]))

        asyncio.run(main())

    return run


class Time:
    """Virtual time: a sleep moves the clock and gives the others a turn; an hour is for ever."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds >= 3600:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        self.now += seconds
        await asyncio.sleep(0)


@dataclass
class Direct:
    """Calls a simulator as an ASGI application on virtual time."""

    time: Time = field(default_factory=Time)

    def simulator(self, provider: str = "moonshot", *args: Any, **kwargs: Any) -> Simulator:
        return Simulator(provider, *args, clock=self.time.clock, wall=self.time.clock, sleep=self.time.sleep, **kwargs)

    def ask(self, simulator: Simulator, body: object, *, key: str = KEY, leave_after: int | None = None) -> Reply:
        """One request; the client leaves after that many body parts (0: before any), or stays."""
        return asyncio.run(asyncio.wait_for(self.call(simulator, body, key=key, leave_after=leave_after), 20))

    async def call(
        self, simulator: Simulator, body: object, *, key: str = KEY, leave_after: int | None = None
    ) -> Reply:
        gone, asked = asyncio.Event(), False
        reply = Reply(0, {}, b"")
        parts = 0
        if leave_after == 0:
            gone.set()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal parts
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            reply.body += message.get("body", b"")
            parts += 1
            if leave_after is not None and parts >= leave_after:
                gone.set()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
        }  # fmt: skip
        await simulator(scope, receive, send)
        return reply


@pytest.fixture
def direct() -> Direct:
    return Direct()


@pytest.fixture
def ask() -> Callable[..., dict[str, Any]]:
    """Builds a request with one user message: ``ask("text", stream=True)``."""
    return chat
