"""Fixtures of the outside checks: a house for a module, and one with a scripted upstream for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.http.house import House, Relay, open_house, open_relay
from tests.http.raw_client import Wire

Connect = Callable[..., Awaitable[Wire]]


@pytest.fixture(scope="module")
async def module_house(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    """One gateway over three simulators for all tests of a module."""
    async with open_house(module_database_url, tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture
def house(module_house: House) -> Iterator[House]:
    """The module's gateway; every fault that a test sets ends with it, and so does what the gateway made of it."""
    yield module_house
    for simulator in module_house.simulators.values():
        simulator.faults.clear()
    module_house.gateway.health._states.clear()


@pytest.fixture(scope="module")
async def module_relay(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Relay]:
    """One gateway over a scripted upstream for all tests of a module."""
    async with open_relay(module_database_url, tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.fixture
def relay(module_relay: Relay) -> Relay:
    """The module's gateway over a scripted upstream, as if it had just begun."""
    module_relay.reset()
    return module_relay


@pytest.fixture
async def connect(anyio_backend: str) -> AsyncIterator[Connect]:
    """Opens connections on bare sockets; all of them are closed at the end of the test."""
    opened: list[Wire] = []

    async def open_wire(url: str, **options: int) -> Wire:
        opened.append(await Wire.open(url, **options))
        return opened[-1]

    yield open_wire
    for wire in opened:
        await wire.close()
