"""`gateway demo`: the whole product in one process on loopback, with simulated providers, real traffic and a report."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import httpx
from rich.console import Console
from rich.progress import Progress

from gateway.adapters.embedded import embedded
from gateway.adapters.logs import configure_logs
from gateway.adapters.postgres.schema import migrate
from gateway.app import Gateway, GatewayServer
from gateway.catalog import render_demo_config
from gateway.cli.common import expected_errors, fail, settings_with
from gateway.cli.spend import print_spend
from gateway.settings import Settings
from gateway.simulator import PROVIDERS, Simulator, running
from gateway.simulator import Settings as Simulated

EXCHANGES: Final = 60
CONVERSATIONS: Final = 12
AT_ONCE: Final = 8
START_SECONDS_MAX: Final = 60.0
KEYS: Final = (("assistant", "product"), ("nightly-agent", "research"), ("playground", "research"))
CREDENTIALS: Final = {"MOONSHOT_API_KEY": "sk-demo-m", "COMETAPI_KEY": "sk-demo-c", "EVOLINK_API_KEY": "sk-demo-e"}
WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Where everything of a running demo is."""

    url: str
    admin_token: str
    keys: dict[str, str]
    simulators: dict[str, str]


@click.command()
@click.option("--once", is_flag=True, help="End after the report instead of serving on.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The gateway's port; 8080 without it.")
@expected_errors
def demo(port: int | None, *, once: bool) -> None:
    """Simulated providers, the gateway, a demo key, a burst of traffic and the spend report."""
    base = settings_with(port=port)
    if base.port and not _is_free(base.host, base.port):
        fail(f"port {base.port} on {base.host} is taken; choose another with --port, or stop what listens there.")
    folder = base.data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with embedded(folder) as database_url:
        migrate(database_url)
        asyncio.run(_demo(base, folder, database_url, once=once))


async def _demo(base: Settings, folder: Path, database_url: str, *, once: bool) -> None:
    simulators = [Simulator(provider, Simulated(seed=7, tokens_per_chunk=4)) for provider in PROVIDERS]
    async with running(simulators) as addresses:
        settings = _settings(base, folder, addresses)
        configure_logs(level=settings.log_level, form=settings.log_format)
        gateway = Gateway(settings, database_url, environ=CREDENTIALS)
        server = GatewayServer(gateway.uvicorn_config(), gateway)
        serving = asyncio.create_task(server.serve())
        try:
            here = await _listening(server, serving, settings)
            token = gateway.services.admin_token.get_secret_value()
            async with httpx.AsyncClient(base_url=here, timeout=60) as client:
                keys = await _make_keys(client, token)
                await _burst(client, keys)
                await _report(client, token)
            _tell(Demo(url=here, admin_token=token, keys=keys, simulators=addresses), once=once)
            if not once:
                await serving
        finally:
            server.should_exit = True
            await serving


def _settings(base: Settings, folder: Path, addresses: dict[str, str]) -> Settings:
    """The demo's own data and configuration: the shipped one, moved to the simulators."""
    config_dir = folder / "config"
    shutil.rmtree(config_dir, ignore_errors=True)
    config_dir.mkdir()
    moved = {name: f"{address}/v1" for name, address in addresses.items()}
    for name, text in render_demo_config(base.config_dir, moved).items():
        (config_dir / name).write_text(text, encoding="utf-8")
    return base.model_copy(
        update={"data_dir": folder, "config_dir": config_dir, "log_format": "console", "log_level": "error"}
    )


async def _listening(server: GatewayServer, serving: asyncio.Task[None], settings: Settings) -> str:
    """The gateway's address, once it listens."""
    async with asyncio.timeout(START_SECONDS_MAX):
        while not server.started:
            if serving.done():
                fail("the gateway could not start; its log above says why.")
            await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    return f"http://{settings.host}:{port}"


async def _make_keys(client: httpx.AsyncClient, token: str) -> dict[str, str]:
    """One key per pretended user of the gateway, made as an administrator makes them."""
    keys = {}
    for name, team in KEYS:
        answer = await client.post(
            "/admin/keys",
            headers={"authorization": f"Bearer {token}"},
            json={"name": name, "team": team, "tags": {"env": "demo"}},
        )
        answer.raise_for_status()
        keys[name] = answer.json()["key"]
    return keys


async def _burst(client: httpx.AsyncClient, keys: dict[str, str]) -> None:
    """Conversations that grow turn by turn, half of them streamed, with a tool loop now and then."""
    chance = random.Random(7)  # noqa: S311 - a repeatable demo
    room = asyncio.Semaphore(AT_ONCE)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("traffic", total=EXCHANGES)

        async def converse(number: int) -> None:
            name = list(keys)[number % len(keys)]
            messages: list[dict[str, Any]] = [{"role": "system", "content": f"You are assistant {number}. " * 200}]
            for turn in range(EXCHANGES // CONVERSATIONS):
                messages.append({"role": "user", "content": f"Question {turn} [[out={chance.randint(20, 200)}]]"})
                async with room:
                    await _ask(client, keys[name], messages, chance)
                messages.append({"role": "assistant", "content": f"Answer {turn}."})
                progress.advance(bar)

        await asyncio.gather(*(converse(number) for number in range(CONVERSATIONS)))


async def _ask(client: httpx.AsyncClient, key: str, messages: list[dict[str, Any]], chance: random.Random) -> None:
    model = "kimi-k2-thinking-turbo" if chance.random() < 0.25 else "kimi-k2-thinking"
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": chance.random() < 0.5}
    if chance.random() < 0.2:
        body["tools"] = [WEATHER]
    answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    answer.raise_for_status()


async def _report(client: httpx.AsyncClient, token: str) -> None:
    answer = await client.get(
        "/admin/reports/spend",
        params={"group_by": "key,model,provider"},
        headers={"authorization": f"Bearer {token}"},
    )
    answer.raise_for_status()
    print_spend(answer.json())


def _tell(demo_: Demo, *, once: bool) -> None:
    say: Callable[[str], None] = click.echo
    key = demo_.keys[KEYS[0][0]]
    say("")
    say(f"gateway     {demo_.url}/v1   (OpenAI-compatible)")
    say(f"demo key    {key}")
    say(f"admin       {demo_.url}/admin   token {demo_.admin_token}")
    say(f"metrics     {demo_.url}/metrics   readiness {demo_.url}/readyz   API {demo_.url}/schema/openapi.json")
    say("simulators  " + "  ".join(f"{name} {address}" for name, address in demo_.simulators.items()))
    if once:
        return
    say("")
    say("Try it:")
    say(f"  curl {demo_.url}/v1/chat/completions -H 'authorization: Bearer {key}' \\")
    say('    -H \'content-type: application/json\' -d \'{"model":"kimi-k2-thinking",')
    say('    "messages":[{"role":"user","content":"Hello"}]}\'')
    say("")
    say("Serving until Ctrl-C.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
