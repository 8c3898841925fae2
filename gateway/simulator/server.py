"""Simulators listen on loopback ports of their own, and leave nothing behind: no socket, no task, no signal handler.

The HTTP protocol is uvicorn's, run on a plain asyncio server, with one extension: the application may
cut the connection.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.simulator.app import Simulator
from gateway.simulator.bill import Price
from gateway.simulator.connection import CUT_EXTENSION
from gateway.simulator.settings import Settings
from gateway.simulator.wire import PROVIDERS

PORT_BASE: Final = 9101
HOST: Final = "127.0.0.1"
BACKLOG: Final = 2048
CLOSE_SECONDS_MAX: Final = 5.0
DRAIN_ROUNDS_MAX: Final = 1000

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)


class _Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, which tells the application how to cut the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CUT_EXTENSION: self._cut}  # type: ignore[dict-item]

    async def _cut(self, reset: bool) -> None:  # noqa: FBT001
        """Lets out what was written, then closes without an end of the body; with ``reset`` by RST."""
        transport = self.transport
        for _ in range(DRAIN_ROUNDS_MAX):
            await asyncio.sleep(0)
            if transport.is_closing() or transport.get_write_buffer_size() == 0:
                break
        await asyncio.sleep(0)
        raw = transport.get_extra_info("socket")
        if reset and raw is not None and not transport.is_closing():
            with socket.socket(fileno=os.dup(raw.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.cycle.disconnected = True
        transport.abort()


class _Server:
    """One simulator on one socket."""

    def __init__(self, simulator: Simulator) -> None:
        self.state = ServerState()
        self._config = uvicorn.Config(
            simulator, log_config=None, access_log=False, lifespan="off", ws="none", timeout_keep_alive=3600
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> str:
        """Listens; the address, like ``http://127.0.0.1:9101``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, HOST, port, backlog=BACKLOG)
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def _protocol(self) -> asyncio.Protocol:
        return _Protocol(config=self._config, server_state=self.state, app_state={})

    async def stop(self) -> None:
        """Closes every connection; what is still being answered sees its client leave."""
        assert self._server is not None
        self._server.close()
        for connection in tuple(self.state.connections):
            connection.transport.abort()
        if self.state.tasks:
            _, left = await asyncio.wait(tuple(self.state.tasks), timeout=CLOSE_SECONDS_MAX)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), CLOSE_SECONDS_MAX)


@asynccontextmanager
async def running(simulators: Sequence[Simulator], port_base: int = 0) -> AsyncIterator[dict[str, str]]:
    """Serves the simulators in this event loop, on ``port_base``, ``port_base + 1``, … (0: any free ports).

    Yields the addresses by provider, like ``{"moonshot": "http://127.0.0.1:9101"}``; a second simulator of the same
    provider is ``moonshot-2``. The API is below ``/v1`` of an address.
    """
    servers: list[_Server] = []
    addresses: dict[str, str] = {}
    try:
        for index, simulator in enumerate(simulators):
            server = _Server(simulator)
            address = await server.start(port_base + index if port_base else 0)
            servers.append(server)
            same = sum(name.split("-")[0] == simulator.provider for name in addresses)
            addresses[f"{simulator.provider}-{same + 1}" if same else simulator.provider] = address
        yield addresses
    finally:
        for server in servers:
            await server.stop()


Ready = Callable[[dict[str, str]], None]


def serve(
    port_base: int = PORT_BASE,
    seed: int = 0,
    *,
    on_ready: Ready | None = None,
    prices: Mapping[str, Mapping[str, Mapping[str, int]]] | None = None,
    **settings: Any,
) -> None:
    """Serves Moonshot, CometAPI and EvoLink on three ports from ``port_base`` until SIGINT or SIGTERM.

    ``on_ready`` is told the addresses by provider; ``settings`` are fields of :class:`Settings`, for all three;
    ``prices`` replaces prices by provider and model, as fields of :class:`Price`.
    """
    charged = {
        provider: {model: msgspec.convert(row, Price) for model, row in (prices or {}).get(provider, {}).items()}
        for provider in PROVIDERS
    }
    simulators = [Simulator(each, Settings(seed=seed, **settings), prices=charged[each]) for each in PROVIDERS]
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(_serve(port_base, simulators, on_ready))


async def _serve(port_base: int, simulators: Sequence[Simulator], on_ready: Ready | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(simulators, port_base) as addresses:
        if on_ready is not None:
            on_ready(addresses)
        await stop.wait()


def _fast_loop() -> Any:
    try:
        import uvloop  # absent on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop
