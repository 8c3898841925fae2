"""`gateway serve`: starts whole or says in a line why not, and stops without losing a byte or a row."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import psycopg
import pytest
from click.testing import CliRunner

from gateway.cli.root import cli
from gateway.core.api_key import new_secret
from gateway.simulator import Settings as Simulated
from tests.http.house import CONFIG, chat, eventually
from tests.http.raw_client import Wire, request_of, status_of
from tests.integration.served import served

pytestmark = pytest.mark.integration

SLOW = Simulated(seed=3, chunk_ms=20, tokens_per_chunk=2)


@pytest.mark.anyio
async def test_a_stop_under_load(anyio_backend: str, database_url: str, tmp_path: Path):
    """SIGTERM: no new request is taken, open streams finish, the exit status is 0 and every row is in the database."""
    async with served(tmp_path, database_url, SLOW) as ours:
        key = await ours.make_key()
        wires = [await Wire.open(ours.url) for _ in range(5)]
        for wire in wires:
            await wire.send(request_of(chat("Talk [[out=60]]", stream=True), key=key))
        heads = [await wire.read_until(b"\n\n") for wire in wires]
        assert {status_of(head) for head in heads} == {200}
        ending = asyncio.create_task(ours.end())

        async def is_closed() -> bool:
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
                    return (await client.get(f"{ours.url}/readyz")).status_code == 503
            except httpx.HTTPError:
                return True

        await eventually(is_closed, seconds=2)
        assert not ending.done()
        bodies = [await wire.read_all() for wire in wires]
        assert all(b"data: [DONE]\n\n" in body for body in bodies)
        assert await ending == 0, ours.log()
        for wire in wires:
            await wire.close()

        with psycopg.connect(database_url) as db:
            rows = db.execute("SELECT status, usage_source FROM ledger").fetchall()
        assert rows == [("succeeded", "provider")] * 5

        await ours.start()
        assert len(await ours.ledger()) == 5
        assert await ours.end() == 0


@pytest.mark.anyio
async def test_with_a_database_of_its_own(anyio_backend: str, tmp_path: Path):
    """Without a database URL the gateway brings its own, keeps the admin token in a file, and finds all of it again."""
    folder = tmp_path
    async with served(folder, None, Simulated()) as ours:
        key = await ours.make_key()
        async with httpx.AsyncClient(base_url=ours.url, trust_env=False, timeout=20) as client:
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200
        assert await ours.end() == 0, ours.log()
        assert not list(folder.rglob("postmaster.pid"))
        await ours.start()
        async with httpx.AsyncClient(base_url=ours.url, trust_env=False, timeout=20) as client:
            assert (await client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200
        assert len(await ours.ledger()) == 2
        assert await ours.end() == 0


def refused(folder: Path, *arguments: str, status: int = 1, **environment: str) -> str:
    """What a `serve` that cannot start says on standard error."""
    settings = {"GATEWAY_DATA_DIR": str(folder / "data"), "GATEWAY_CONFIG_DIR": str(CONFIG), **environment}
    done = CliRunner().invoke(cli, ["serve", "--port", "0", *arguments], env=settings)
    assert done.exit_code == status, done.output
    assert isinstance(done.exception, SystemExit)
    return done.stderr


WEAK = {"empty": "", "blank": " ", "known": "admin", "short": "s3cr3t-s3cr3t", "placeholder": "changeme-changeme"}


@pytest.mark.parametrize("name", WEAK)
def test_weak_admin_tokens(tmp_path: Path, name: str):
    """A weak admin token refuses to start, with the variable's name and never the token."""
    said = refused(tmp_path, GATEWAY_ADMIN_TOKEN=WEAK[name])
    assert "GATEWAY_ADMIN_TOKEN" in said
    assert name in ("empty", "blank", "known") or WEAK[name] not in said


NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


def test_a_database_to_migrate_that_is_not_there(tmp_path: Path):
    """An address where no database listens cannot be migrated, and is told in a line with the variable's name."""
    said = refused(tmp_path, GATEWAY_DATABASE_URL=NOWHERE, GATEWAY_AUTO_MIGRATE="true")
    assert "GATEWAY_DATABASE_URL" in said


@pytest.mark.anyio
async def test_a_restart_while_the_database_is_away(anyio_backend: str, tmp_path: Path):
    """A gateway whose database is away starts all the same: it says so, and refuses keys that it cannot look up."""
    async with served(tmp_path, NOWHERE, Simulated()) as ours:
        async with httpx.AsyncClient(base_url=ours.url, trust_env=False, timeout=20) as client:
            headers = {"authorization": f"Bearer {new_secret(bytes(32))}"}
            answer = await client.post("/v1/chat/completions", json=chat(), headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert "starting without the database" in ours.log()
        assert await ours.end() == 0


def test_a_schema_that_is_old(postgres_url: str, tmp_path: Path):
    """A database that nobody has migrated is refused, with the command that mends it."""
    assert "gateway migrate" in refused(tmp_path, GATEWAY_DATABASE_URL=postgres_url)


@pytest.mark.parametrize("arguments", [["--port", "many"], ["--port", "70000"], ["--colour"], ["extra"]])
def test_bad_usage(tmp_path: Path, arguments: list[str]):
    """Options that make no sense are bad usage."""
    assert "Usage:" in refused(tmp_path, *arguments, status=2)


def test_a_bad_configuration(database_url: str, tmp_path: Path):
    """A bad file ends a real process with status 1 and its name and line, and no trace of ours."""
    config = tmp_path / "config"
    config.mkdir()
    for name in ("providers.toml", "models.toml", "prices.toml"):
        (config / name).write_text((CONFIG / name).read_text() + ("\n[[prices]\n" if name == "prices.toml" else ""))
    settings = {
        "GATEWAY_DATA_DIR": str(tmp_path),
        "GATEWAY_CONFIG_DIR": str(config),
        "GATEWAY_DATABASE_URL": database_url,
    }
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "prices.toml:" in done.stderr
    assert "Traceback" not in done.stderr
