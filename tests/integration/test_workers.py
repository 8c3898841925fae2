"""`gateway serve --workers N`: one address, one set of figures, one will; a worker that dies loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from gateway.simulator import Settings as Simulated
from tests.http.house import CONFIG, chat, eventually, exact
from tests.http.raw_client import Wire, request_of
from tests.integration.served import Served, served
from tests.integration.test_crash import load

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

READY_SECONDS_MAX = 60.0
PACED = Simulated(seed=3, chunk_ms=4, tokens_per_chunk=4, first_byte_ms=10)
SLOW = Simulated(seed=3, chunk_ms=20, tokens_per_chunk=2)
ENDLESS = Simulated(seed=3, chunk_ms=100, tokens_per_chunk=1)
OPEN_MAX = 40


@contextlib.asynccontextmanager
async def crew(
    folder: Path, database_url: str | None, redis_url: str, simulated: Simulated, **settings: str
) -> AsyncIterator[Served]:
    """Two workers, both ready. Whatever still runs at the end is killed, parent first."""
    async with served(
        folder, database_url, simulated, "--workers", "2", GATEWAY_REDIS_URL=redis_url, **settings
    ) as ours:
        await eventually(lambda: "all workers are ready" in ours.log(), seconds=READY_SECONDS_MAX)
        started = workers_of(ours)
        assert len(started) == 2
        try:
            yield ours
        finally:
            left = workers_of(ours) if ours.process is not None and ours.process.returncode is None else started
            if ours.process is not None and ours.process.returncode is None:
                await ours.end(signal.SIGKILL)
            for worker in left:
                if is_alive(worker):
                    worker.kill()


def workers_of(ours: Served) -> list[psutil.Process]:
    assert ours.process is not None
    children = psutil.Process(ours.process.pid).children()
    return [child for child in children if "gateway.cli.worker" in " ".join(child.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def get(ours: Served, path: str) -> httpx.Response:
    """A request over a connection of its own."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.get(f"{ours.url}{path}")


async def readiness(ours: Served) -> dict[int, dict[str, Any]]:
    """What each worker says of itself."""
    found: dict[int, dict[str, Any]] = {}

    async def ask() -> bool:
        body = (await get(ours, "/readyz")).json()
        found[body["worker"]] = body
        return len(found) == body["workers"]

    await eventually(ask)
    return found


async def counted(ours: Served, name: str) -> float:
    """The sum of all samples of that name."""
    answer = await get(ours, "/metrics")
    assert answer.status_code == 200, answer.text
    return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", answer.text, re.MULTILINE)))


async def streams_in_both(ours: Served, key: str, *, tokens: int) -> list[Wire]:
    """Open streams, at least one in each worker."""
    wires: list[Wire] = []

    async def are_in_both() -> bool:
        assert len(wires) < OPEN_MAX
        wire = await Wire.open(ours.url)
        await wire.send(request_of(chat(f"Talk [[out={tokens}]]", stream=True), key=key))
        assert b" 200 " in await wire.read_until(b"\n\n")
        wires.append(wire)
        return all(state["open_exchanges"] for state in (await readiness(ours)).values())

    await eventually(are_in_both)
    return wires


async def is_closed(ours: Served) -> bool:
    try:
        return (await get(ours, "/readyz")).status_code == 503
    except httpx.HTTPError:
        return True


async def test_both_serve_and_one_scrape_tells_of_both(
    anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path
):
    """New connections reach both workers, each says which it is, and whichever is asked for figures tells the sum."""
    async with crew(tmp_path, database_url, redis_url, Simulated(seed=3)) as ours:
        key = await ours.make_key()
        for number in range(24):
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                headers = {"authorization": f"Bearer {key}"}
                answer = await client.post(
                    f"{ours.url}/v1/chat/completions", json=chat(f"Go {number} [[out=5]]"), headers=headers
                )
            assert answer.status_code == 200, answer.text
        asked = [(await get(ours, "/readyz")).json()["worker"] for _ in range(60)]
        assert min(Counter(asked).values()) >= 10, asked
        assert {await counted(ours, "gateway_exchanges_total") for _ in range(10)} == {24}
        assert await counted(ours, "gateway_exchange_seconds_count") == 24
        assert await counted(ours, "gateway_journal_available") == 1
        assert await counted(ours, "gateway_workers_ready") == 2
        rows = await ours.ledger()
        assert len(rows) == 24
        assert len(list((tmp_path / "data" / "journal").iterdir())) == 2
        assert await ours.end() == 0, ours.log()


async def test_money_is_read_after_what_all_have_written(
    anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path
):
    """A ledger that is read right after an answer waits for its row, whichever worker is asked."""
    async with crew(tmp_path, database_url, redis_url, Simulated(seed=3)) as ours:
        headers = {"authorization": f"Bearer {await ours.make_key()}"}
        with psycopg.connect(database_url) as db:
            db.execute("LOCK TABLE ledger IN EXCLUSIVE MODE")  # may be read, and takes no rows
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                answer = await client.post(f"{ours.url}/v1/chat/completions", json=chat("[[out=5]]"), headers=headers)
            assert answer.status_code == 200, answer.text
            reads = [asyncio.create_task(ours.ledger()) for _ in range(10)]
            done, _ = await asyncio.wait(reads, timeout=1)
            assert not done
        assert [len(rows) for rows in await asyncio.gather(*reads)] == [1] * len(reads)
        assert await ours.end() == 0, ours.log()


async def test_one_is_killed_under_load(anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path):
    """kill -9 for one worker: the other goes on, a new one comes, totals do not fall, and what a client has is in the
    ledger once."""
    acknowledged: dict[str, Decimal | None] = {}
    stop = asyncio.Event()
    async with crew(tmp_path, database_url, redis_url, PACED) as ours:
        key = await ours.make_key()
        clients = asyncio.create_task(load(ours, key, acknowledged, stop))
        await eventually(lambda: len(acknowledged) >= 25)
        before = await counted(ours, "gateway_exchanges_total")
        killed, other = workers_of(ours)
        killed.kill()
        enough = len(acknowledged) + 25
        await eventually(lambda: len(acknowledged) >= enough)
        assert await counted(ours, "gateway_exchanges_total") >= before + 25
        await eventually(lambda: ours.log().count("all workers are ready") == 2, seconds=READY_SECONDS_MAX)
        assert other in workers_of(ours)
        assert len(workers_of(ours)) == 2
        assert await counted(ours, "gateway_worker_restarts_total") == 1
        stop.set()
        await clients

        async def is_whole() -> bool:
            return set(ours.attempts()) <= {row["attempt_id"] for row in await ours.ledger()}

        await eventually(is_whole, seconds=READY_SECONDS_MAX)
        rows = await ours.ledger()
        assert await ours.end() == 0, ours.log()

    assert max(Counter(row["attempt_id"] for row in rows).values()) == 1
    succeeded = Counter(row["request_id"] for row in rows if row["status"] == "succeeded")
    assert {request_id: succeeded[request_id] for request_id in acknowledged} == dict.fromkeys(acknowledged, 1)
    costs = {row["request_id"]: Decimal(row["cost"]) for row in rows}
    assert all(costs[request_id] == cost for request_id, cost in acknowledged.items() if cost is not None)


async def test_a_stop_drains_both(anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path):
    """SIGTERM for the parent: open streams in both workers finish, all rows are in the database, the status is 0."""
    async with crew(tmp_path, database_url, redis_url, SLOW) as ours:
        wires = await streams_in_both(ours, await ours.make_key(), tokens=400)
        workers = workers_of(ours)
        ending = asyncio.create_task(ours.end())
        await eventually(lambda: is_closed(ours), seconds=5)
        assert not ending.done()
        bodies = [await wire.read_all() for wire in wires]
        assert all(b"data: [DONE]\n\n" in body for body in bodies)
        assert await ending == 0, ours.log()
        assert not any(map(is_alive, workers))
        for wire in wires:
            await wire.close()
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT status, usage_source FROM ledger").fetchall()
    assert rows == [("succeeded", "provider")] * len(wires)


@pytest.mark.parametrize(("count", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
async def test_a_second_signal(
    anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path, count: int, number: int
):
    """Asked twice, a gateway ends its open streams at once, each with an error in the stream and a row."""
    kept = crew(tmp_path, database_url, redis_url, ENDLESS) if count == 2 else served(tmp_path, database_url, ENDLESS)
    async with kept as ours:
        wires = await streams_in_both(ours, await ours.make_key(), tokens=3000)
        assert ours.process is not None
        ours.process.send_signal(number)
        await eventually(lambda: is_closed(ours), seconds=5)
        asked_again = asyncio.get_running_loop().time()
        ending = asyncio.create_task(ours.end(number))
        bodies = [await wire.read_all() for wire in wires]
        assert await ending == 0, ours.log()
        assert asyncio.get_running_loop().time() - asked_again < 15
        for body in bodies:
            (told,) = re.findall(r'^data: ({"error":.*})', body.decode(), re.MULTILINE)
            error = exact(told)["error"]
            assert error["code"] == "overloaded"
            assert "shutting down" in error["message"]
        for wire in wires:
            await wire.close()
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT status, usage_source FROM ledger").fetchall()
    assert rows == [("abandoned", "estimated")] * len(wires)


def dearer(ours: Served) -> None:
    """The configuration changes on the disk: a price goes up."""
    path = ours.folder / "config" / "prices.toml"
    text = path.read_text()
    changed = re.sub(r'^output = "(\d+)', lambda found: f'output = "{int(found[1]) + 1}', text, flags=re.MULTILINE)
    changed = re.sub(
        r'^output( +)= "(\d+)', lambda found: f'output{found[1]}= "{int(found[2]) + 1}', changed, flags=re.M
    )
    assert changed != text
    path.write_text(changed)


async def digests(ours: Served) -> set[str]:
    return {state["config_digest"] for state in (await readiness(ours)).values()}


async def test_a_reload_reaches_both(anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path):
    """SIGHUP and the administration reload every worker and say so; a bad file leaves the running one in both."""
    async with crew(tmp_path, database_url, redis_url, Simulated()) as ours:
        (first,) = await digests(ours)
        dearer(ours)
        assert ours.process is not None
        ours.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "reloaded by all workers" in ours.log())
        (second,) = await digests(ours)
        assert second != first

        dearer(ours)
        told = (await ours.admin("POST", "/config/reload")).json()
        assert (told["workers"], told["reloaded"]) == (2, 2)
        assert await digests(ours) == {told["digest"]}
        assert told["digest"] not in (first, second)

        with (tmp_path / "config" / "prices.toml").open("a") as file:
            file.write("\n[[prices]]\n")
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            headers = {"authorization": f"Bearer {ours.environment['GATEWAY_ADMIN_TOKEN']}"}
            answer = await client.post(f"{ours.url}/admin/config/reload", headers=headers)
        assert answer.status_code == 400
        assert "prices.toml:" in answer.text
        assert await digests(ours) == {told["digest"]}
        assert await ours.end() == 0


async def test_a_restart_with_bad_files_takes_nobody_down(
    anyio_backend: str, database_url: str, redis_url: str, tmp_path: Path
):
    """A worker that dies while a file is broken is tried again until it is mended; the other serves on."""
    async with crew(tmp_path, database_url, redis_url, Simulated()) as ours:
        path = tmp_path / "config" / "prices.toml"
        good = path.read_text()
        path.write_text(good + "\n[[prices]]\n")
        killed, other = workers_of(ours)
        killed.kill()
        await eventually(lambda: "a worker ended: " in ours.log() and "prices.toml:" in ours.log())
        assert (await get(ours, "/readyz")).status_code == 200
        path.write_text(good)
        await eventually(lambda: ours.log().count("all workers are ready") == 2, seconds=READY_SECONDS_MAX)
        assert other in workers_of(ours)
        assert await ours.end() == 0


async def test_a_parent_that_is_killed(anyio_backend: str, redis_url: str, tmp_path: Path):
    """kill -9 for the parent: its workers let their streams finish, stop the database of their own, and end."""
    async with crew(tmp_path, None, redis_url, SLOW) as ours:
        wires = await streams_in_both(ours, await ours.make_key(), tokens=160)
        workers = workers_of(ours)
        assert await ours.end(signal.SIGKILL) == -signal.SIGKILL
        bodies = [await wire.read_all() for wire in wires]
        assert all(b"data: [DONE]\n\n" in body for body in bodies)
        for wire in wires:
            await wire.close()
        await eventually(lambda: not any(map(is_alive, workers)), seconds=READY_SECONDS_MAX)
        assert not list((tmp_path / "data").rglob("postmaster.pid"))
        await ours.start()
        assert [row["status"] for row in await ours.ledger()] == ["succeeded"] * len(wires)
        assert await ours.end() == 0


def refused(folder: Path, database_url: str, *arguments: str, **settings: str) -> str:
    """What a start with two workers that fails says on standard error, log lines left out."""
    environment = {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_CONFIG_DIR": str(CONFIG),
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_REDIS_URL": "redis://127.0.0.1:1",
        **settings,
    }
    command = [sys.executable, "-m", "gateway", "serve", "--workers", "2", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if not line.startswith("{"))


async def test_a_bad_start(anyio_backend: str, database_url: str, tmp_path: Path):
    """A file that no worker can read ends all of them with its name and line, told once, and status 1."""
    config = tmp_path / "config"
    config.mkdir()
    for name in ("providers.toml", "models.toml", "prices.toml"):
        (config / name).write_text((CONFIG / name).read_text() + ("\n[[prices]]\n" if name == "prices.toml" else ""))
    said = refused(tmp_path, database_url, "--port", "0", GATEWAY_CONFIG_DIR=str(config))
    assert said.startswith("gateway: ")
    assert said.count("gateway: ") == 1
    assert "prices.toml:" in said


async def test_a_busy_port(anyio_backend: str, database_url: str, tmp_path: Path):
    """A port that somebody listens on is told once, with the variable's name, whether or not they would share it."""
    for shares in (0, 1):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            said = refused(tmp_path, database_url, "--port", str(port))
        assert said == (
            f"gateway: 127.0.0.1:{port} is taken by another program. "
            "Choose another port with --port or GATEWAY_PORT."
        )  # fmt: skip


async def test_no_redis(anyio_backend: str, database_url: str, tmp_path: Path):
    """Several workers without Redis are refused, with the variable's name."""
    assert "GATEWAY_REDIS_URL" in refused(tmp_path, database_url, "--port", "0", GATEWAY_REDIS_URL="")
