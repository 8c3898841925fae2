"""`gateway serve` as a process of its own, over simulators in the test's loop; may be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.process import free_ports
from gateway.adapters.embedded import discard
from gateway.simulator import PROVIDERS, Simulator, running
from gateway.simulator import Settings as Simulated
from tests.http.house import ADMIN_TOKEN, CREDENTIALS, around_now, eventually, exact, write_config

READY_SECONDS_MAX = 40.0
EXIT_SECONDS_MAX = 40.0


@dataclass(kw_only=True)
class Served:
    """One gateway process with what it is given, and the providers it calls."""

    folder: Path
    environment: Mapping[str, str]
    simulators: dict[str, Simulator]
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_ports)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it and waits until it is ready."""
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", "serve", "--port", str(self.port), *self.arguments,
                env={**os.environ, **self.environment}, stdout=log, stderr=log,
            )  # fmt: skip
        await eventually(self._is_ready, seconds=READY_SECONDS_MAX)

    async def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log()
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
                return (await client.get(f"{self.url}/readyz")).status_code == 200
        await asyncio.sleep(0.05)
        return False

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Sends it a signal and waits for its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(EXIT_SECONDS_MAX):
            return await self.process.wait()

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    async def admin(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
            answer = await client.request(method, f"{self.url}/admin{path}", headers=headers, **arguments)
        assert answer.status_code < 300, answer.text
        return answer

    async def make_key(self) -> str:
        return (await self.admin("POST", "/keys", json={"name": "served"})).json()["key"]

    async def ledger(self) -> list[dict[str, Any]]:
        answer = await self.admin("GET", "/ledger", params={**around_now(), "format": "jsonl"})
        return [exact(line) for line in answer.text.splitlines()]

    def attempts(self) -> list[str]:
        """The attempt ids of every call that the providers saw."""
        return [
            call.attempt_id
            for simulator in self.simulators.values()
            for call in simulator.requests
            if call.attempt_id is not None
        ]


@contextlib.asynccontextmanager
async def served(
    folder: Path, database_url: str | None, simulated: Simulated, *arguments: str, **settings: str
) -> AsyncIterator[Served]:
    """A ready gateway, with further arguments and settings; None as database: it brings its own. Whatever still runs
    at the end is killed."""
    simulators = {provider: Simulator(provider, simulated) for provider in PROVIDERS}
    async with running(list(simulators.values())) as addresses:
        environment = {
            **CREDENTIALS,
            "GATEWAY_DATA_DIR": str(folder / "data"),
            "GATEWAY_CONFIG_DIR": str(write_config(folder, addresses)),
            "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
            **({} if database_url is None else {"GATEWAY_DATABASE_URL": database_url}),
            **settings,
        }
        ours = Served(folder=folder, environment=environment, simulators=simulators, arguments=arguments)
        try:
            await ours.start()
            yield ours
        finally:
            if ours.process is not None and ours.process.returncode is None:
                await ours.end(signal.SIGKILL)
            if database_url is None:
                await asyncio.to_thread(discard, folder / "data")
