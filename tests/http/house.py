"""A whole gateway in the test's event loop: real sockets, real PostgreSQL, real journal, real simulators."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from gateway.app import Gateway, GatewayServer
from gateway.catalog import render_demo_config
from gateway.settings import Settings
from gateway.simulator import PROVIDERS, Simulator, running
from gateway.simulator import Settings as Simulated
from tests.http.fake_upstream import FakeUpstream, fake_upstream

CONFIG = Path(__file__).parents[2] / "config"
CREDENTIALS = {"MOONSHOT_API_KEY": "sk-test-m", "COMETAPI_KEY": "sk-test-c", "EVOLINK_API_KEY": "sk-test-e"}
ADMIN_TOKEN = "a-token-of-these-tests-only"
MODEL = "kimi-k2-thinking"
START_SECONDS_MAX = 30.0
WAIT_SECONDS_MAX = 20.0
POLL_SECONDS = 0.01

Edit = Callable[[str], str]


def chat(content: str = "Hello [[out=12]]", **fields: Any) -> dict[str, Any]:
    """A request body with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def exact(text: str) -> Any:
    """JSON with numbers as they were written."""
    return json.loads(text, parse_float=Decimal)


def events_of(body: str) -> list[Any]:
    """The JSON of every event of a stream, with ``[DONE]`` as a string; comments are left out."""
    data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [text if text == "[DONE]" else exact(text) for text in data]


async def eventually(what: Callable[[], Any], *, seconds: float = WAIT_SECONDS_MAX) -> Any:
    """The first true answer of ``what``, asked again and again until the deadline."""
    async with asyncio.timeout(seconds):
        while True:
            answer = what()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, kw_only=True)
class House:
    """A running gateway and everything around it. ``key`` is the secret of an inference key without limits."""

    gateway: Gateway
    server: GatewayServer
    url: str
    settings: Settings
    database_url: str
    client: httpx.AsyncClient
    simulators: dict[str, Simulator] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    key: str = ""

    # -- asking ------------------------------------------------------------------------------------------------------

    async def ask(self, body: Any, *, key: str | None = None, **headers: str) -> httpx.Response:
        """One chat completion; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key or self.key}", **named}
        )

    async def admin(self, method: str, path: str, *, token: str = ADMIN_TOKEN, **arguments: Any) -> httpx.Response:
        """One request to the administration."""
        return await self.client.request(
            method, f"/admin{path}", headers={"authorization": f"Bearer {token}"}, **arguments
        )

    async def make_key(self, **fields: Any) -> dict[str, Any]:
        """A new key, as the administration answers it."""
        answer = await self.admin("POST", "/keys", json={"name": "test", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    # -- books -------------------------------------------------------------------------------------------------------

    async def ledger(self, **query: str) -> list[dict[str, Any]]:
        """The ledger of today and around, or of a period."""
        answer = await self.admin("GET", "/ledger", params={**around_now(), "format": "jsonl", **query})
        assert answer.status_code == 200, answer.text
        return [exact(line) for line in answer.text.splitlines()]

    async def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The ledger rows of one request, in the order of its attempts."""
        found = [row for row in await self.ledger() if row["request_id"] == request_id]
        return sorted(found, key=lambda row: row["attempt"])

    async def rows_of_key(self, key_id: str) -> list[dict[str, Any]]:
        return [row for row in await self.ledger() if row["key_id"] == key_id]

    async def only_row(self, key_id: str) -> dict[str, Any]:
        """The one ledger row of a key that made one request, once it is there."""
        found = await eventually(lambda: self.rows_of_key(key_id))
        assert len(found) == 1, found
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Relay:
    """A gateway in front of one scripted upstream, which plays all three providers."""

    house: House
    upstream: FakeUpstream

    def reset(self) -> None:
        """Forgets what a test has made of the fake and of the gateway's opinion about it."""
        self.upstream.calls.clear()
        self.house.gateway.health._states.clear()


def around_now() -> dict[str, str]:
    """A period that holds whatever a test does."""
    now = datetime.now(UTC)
    return {"from": (now - timedelta(days=1)).date().isoformat(), "to": (now + timedelta(days=2)).date().isoformat()}


def write_config(folder: Path, addresses: Mapping[str, str], edits: Mapping[str, Edit] | None = None) -> Path:
    """The shipped configuration with its providers moved to these addresses, edited file by file."""
    config_dir = folder / "config"
    config_dir.mkdir(exist_ok=True)
    moved = {name: f"{address}/v1" for name, address in addresses.items()}
    for name, text in render_demo_config(CONFIG, moved).items():
        edit = (edits or {}).get(name)
        (config_dir / name).write_text(text if edit is None else edit(text), encoding="utf-8")
    return config_dir


@contextlib.asynccontextmanager
async def serving(
    database_url: str,
    folder: Path,
    addresses: Mapping[str, str],
    edits: Mapping[str, Edit] | None = None,
    *,
    redis_url: str | None = None,
    credentials: Mapping[str, str] = CREDENTIALS,
    **more_settings: Any,
) -> AsyncIterator[House]:
    """A gateway over upstreams that listen at these addresses."""
    settings = Settings(
        data_dir=folder / "data",
        config_dir=write_config(folder, addresses, edits),
        admin_token=SecretStr(ADMIN_TOKEN),
        port=0,
        redis_url=None if redis_url is None else SecretStr(redis_url),
        **more_settings,
    )
    gateway = Gateway(settings, database_url, environ=credentials)
    server = GatewayServer(gateway.uvicorn_config(), gateway)
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or task.done(), seconds=START_SECONDS_MAX)
        assert server.started, task.exception()
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS_MAX, trust_env=False) as client:
            house = House(
                gateway=gateway,
                server=server,
                url=url,
                settings=settings,
                database_url=database_url,
                client=client,
                addresses=dict(addresses),
            )
            yield replace(house, key=(await house.make_key(name="tests"))["key"])
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def open_house(
    database_url: str,
    folder: Path,
    *,
    simulated: Simulated | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> AsyncIterator[House]:
    """A gateway over the three simulated providers."""
    simulators = {provider: Simulator(provider, simulated or Simulated(seed=11)) for provider in PROVIDERS}
    async with (
        running(list(simulators.values())) as addresses,
        serving(database_url, folder, addresses, edits) as house,
    ):
        yield replace(house, simulators=simulators)


@contextlib.asynccontextmanager
async def open_relay(
    database_url: str, folder: Path, *, edits: Mapping[str, Edit] | None = None
) -> AsyncIterator[Relay]:
    """A gateway whose three providers are one fake."""
    async with fake_upstream() as upstream:
        addresses = dict.fromkeys(PROVIDERS, upstream.address)
        async with serving(database_url, folder, addresses, edits) as house:
            yield Relay(house=house, upstream=upstream)
