"""Simulators serve real sockets: they notice who leaves, answer many at once, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from gateway.simulator import PROVIDERS, Settings, Simulator, running


async def until(holds: Any) -> None:
    """Gives the loop turns until it holds; the scenario's own deadline ends a wait in vain."""
    while not holds():  # noqa: ASYNC110  (a simulator has no event for it)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("fault", ["stall_before_first_byte", "stall_mid_stream", None])
def test_a_client_that_leaves_is_noticed_at_once(over_http, ask, fault):
    """During a stall and between paced chunks the connection's end ends the answer."""
    simulator = Simulator("moonshot", Settings(chunk_ms=0 if fault else 5))

    async def scenario(http: Any) -> None:
        if fault:
            await http.set_fault(fault, after_chunks=3)
        url = http.address + "/v1/chat/completions"
        request = ask("[[out=1000]]", stream=True)
        asking = asyncio.ensure_future(
            http.session.post(url, json=request, headers={"authorization": "Bearer sk-test"})
        )
        if fault == "stall_before_first_byte":
            await until(lambda: simulator.accounts and simulator.tokens_prompted)
            asking.cancel()
        else:
            answer = await asking
            await answer.content.readany()
            answer.close()
        await until(lambda: simulator.bill.lines)
        (line,) = simulator.bill.lines
        assert line.aborted
        assert line.output_tokens < 1000
        assert simulator.accounts[line.credential].limiter.in_flight == 0

    over_http(simulator, scenario)


def test_a_client_that_leaves_after_done_has_had_it_all(over_http, ask):
    """Who hangs up on seeing [DONE] does not abort anything."""
    simulator = Simulator("moonshot", Settings(chunk_ms=2))

    async def scenario(http: Any) -> None:
        url = http.address + "/v1/chat/completions"
        request = ask("[[out=10]]", stream=True)
        answer = await http.session.post(url, json=request, headers={"authorization": "Bearer sk-test"})
        while b"[DONE]" not in await answer.content.readany():
            pass
        answer.close()
        await until(lambda: simulator.bill.lines)
        (line,) = simulator.bill.lines
        assert (line.ended, line.told) == ("complete", "told")

    over_http(simulator, scenario)


def test_a_burst_stops_when_nobody_reads_on(over_http, ask):
    """A long burst waits for its reader, so that a client that leaves is billed for little more than it took."""
    simulator = Simulator("moonshot")

    async def scenario(http: Any) -> None:
        url = http.address + "/v1/chat/completions"
        request = ask("[[out=200000]]", stream=True, max_tokens=250_000)
        answer = await http.session.post(url, json=request, headers={"authorization": "Bearer sk-test"})
        await answer.content.readany()
        answer.close()
        await until(lambda: simulator.bill.lines)
        (line,) = simulator.bill.lines
        assert line.aborted
        assert line.output_tokens < 100_000

    over_http(simulator, scenario)


def test_a_long_burst_arrives_whole(over_http, ask):
    """What is written faster than it is read is still all there."""
    simulator = Simulator("moonshot", Settings(tokens_per_chunk=3))

    async def scenario(http: Any) -> None:
        reply = await http.ask(ask("[[out=20000]] [[reasoning=5000]]", stream=True, max_tokens=30_000))
        assert reply.whole
        assert len(reply.text("reasoning_content").encode()) == 4 * 5_000
        assert len(reply.text("content").encode()) == 4 * 15_000
        assert simulator.bill.lines[0].ended == "complete"

    over_http(simulator, scenario)


def test_all_three_run_side_by_side(ask):
    """Each provider has its own address, and a second one of a kind its own name."""

    async def main() -> None:
        simulators = [Simulator(provider) for provider in (*PROVIDERS, "moonshot")]
        async with running(simulators) as addresses, aiohttp.ClientSession() as session:
            assert list(addresses) == [*PROVIDERS, "moonshot-2"]

            async def one(address: str) -> int:
                headers = {"authorization": "Bearer sk-test"}
                async with session.post(address + "/v1/chat/completions", json=ask(), headers=headers) as reply:
                    await reply.read()
                    return reply.status

            statuses = await asyncio.gather(*(one(address) for address in addresses.values() for _ in range(20)))
            assert statuses == [200] * 80
        assert [len(simulator.bill.lines) for simulator in simulators] == [20] * 4
        assert len({line.request_id for line in simulators[0].bill.lines}) == 20

    asyncio.run(main())


def test_shutting_down_ends_open_answers(ask):
    """A simulator that stops bills what it was sending and keeps no task."""
    simulator = Simulator("moonshot", Settings(chunk_ms=5))

    async def main() -> None:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            async with running([simulator]) as addresses:
                url = addresses["moonshot"] + "/v1/chat/completions"
                request = ask("[[out=1000]]", stream=True)
                answer = await session.post(url, json=request, headers={"authorization": "Bearer sk-test"})
                await answer.content.readany()
            assert [line.ended for line in simulator.bill.lines] == ["aborted"]
            answer.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_port_in_use_is_an_error_that_leaves_nothing_behind():
    """What was started before the failure is stopped again."""

    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(OSError, match="in use"):
                async with running([Simulator("moonshot")], taken.getsockname()[1]):
                    pass

    asyncio.run(main())


def three_in_a_row() -> int:
    """The first of three ports that nobody has, below those that the system hands out."""
    for base in range(20_000 + os.getpid() % 10_000, 32_000, 3):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for step in range(3):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", base + step))
            return base
    raise AssertionError("no three ports in a row are free")


def test_serve_runs_until_it_is_told_to_stop():
    """The blocking form listens on three ports in a row and ends with SIGTERM in good order."""
    code = (
        "import sys; from gateway.simulator import serve; "
        "serve(int(sys.argv[1]), seed=3, chunk_ms=1, on_ready=lambda addresses: print(*addresses, flush=True))"
    )
    base = three_in_a_row()
    process = subprocess.Popen([sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    async def providers() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return [await provider_at(session, base + step) for step in range(3)]

    async def provider_at(session: aiohttp.ClientSession, port: int) -> str:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/__sim/stats") as reply:
                    return str(json.loads(await reply.read())["provider"])
            except aiohttp.ClientConnectionError:
                assert process.poll() is None
                await asyncio.sleep(0.02)

    try:
        assert asyncio.run(asyncio.wait_for(providers(), 20)) == list(PROVIDERS)
    finally:
        process.send_signal(signal.SIGTERM)
        told, errors = process.communicate(timeout=20)
    assert (process.returncode, told.split(), errors) == (0, [name.encode() for name in PROVIDERS], b"")
