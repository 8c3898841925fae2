"""`gateway keys`, `migrate` and `prices` from the command line: what they print, keep and refuse."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.keys import PostgresApiKeys
from gateway.cli.root import cli
from gateway.core import api_key
from gateway.core.exchange import Principal
from tests.http.house import CONFIG

pytestmark = pytest.mark.integration

Run = Callable[..., Result]


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "GATEWAY_CONFIG_DIR": str(CONFIG),
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Runs one command in this process and checks its exit status."""

    def invoke(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(cli, arguments, env=environment)
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    return invoke


def shown(done: Result) -> Any:
    return json.loads(done.stdout)


def holder(url: str, secret: str) -> Principal | None:
    """Who holds a secret, as a gateway would find out."""

    async def find() -> Principal | None:
        keys = PostgresApiKeys(url, clock=SystemClock())
        try:
            return await keys.find(api_key.digest(secret))
        finally:
            await keys.close()

    return asyncio.run(find())


EVERYTHING = [
    "--name", "ci", "--team", "red", "--role", "inference", "--models", "kimi-thinking,kimi-k2-thinking-turbo",
    "--providers", "evolink,moonshot", "--rpm", "60", "--tpm", "1000", "--concurrency", "2", "--budget", "12.50",
    "--period", "week", "--expires", "2099-01-01", "--tag", "env=test", "--tag", "a=b=c",
]  # fmt: skip


def test_a_key_with_everything(run: Run, environment: dict[str, str]):
    """Every option is kept, the secret is printed once, and it opens the gateway."""
    made = shown(run("keys", "create", *EVERYTHING, "--json"))
    assert made["team_created"] is True
    found = holder(environment["GATEWAY_DATABASE_URL"], made["key"])
    assert found is not None
    assert (found.key_id, found.team, dict(found.tags)) == (made["id"], "red", {"env": "test", "a": "b=c"})
    assert found.models == {"kimi-k2-thinking", "kimi-k2-thinking-turbo"}
    again = shown(run("keys", "show", made["id"], "--json"))
    assert again == {name: value for name, value in made.items() if name not in ("key", "team_created")}
    assert (again["budget"], again["period"], again["rpm"]) == ("12.5", "week", 60)
    assert made["key"] not in run("keys", "show", "ci").output


def test_a_key_for_people(run: Run):
    """Without --json the secret is all there is on standard output, ready for a pipe; the rest is told beside it."""
    done = run("keys", "create", "--name", "ci", "--team", "blue")
    assert api_key.is_well_formed(done.stdout.strip())
    assert "blue" in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_the_list(run: Run):
    """The list has every key and no secret, as a table and as JSON."""
    made = [shown(run("keys", "create", "--name", f"key {number}", "--json")) for number in range(3)]
    listed = shown(run("keys", "list", "--json"))["data"]
    assert [each["id"] for each in listed] == [each["id"] for each in made]
    table = run("keys", "list").output
    assert all(each["name"] in table and each["key"] not in table for each in made)
    assert shown(run("keys", "list", "--team", "nobody", "--json")) == {"data": []}


def test_revoking(run: Run, environment: dict[str, str]):
    """A key is revoked by name or id; its secret opens nothing any more."""
    made = shown(run("keys", "create", "--name", "ci", "--json"))
    gone = shown(run("keys", "revoke", "ci", "--json"))
    assert (gone["id"], gone["revoked_at"] is not None) == (made["id"], True)
    assert holder(environment["GATEWAY_DATABASE_URL"], made["key"]) is None
    assert "revoked" in run("keys", "list").output


def test_rotating(run: Run, environment: dict[str, str]):
    """Both secrets open during the grace; without one only the new one does."""
    url = environment["GATEWAY_DATABASE_URL"]
    first = shown(run("keys", "create", "--name", "ci", "--json"))["key"]
    second = shown(run("keys", "rotate", "ci", "--grace", "24h", "--json"))["key"]
    assert holder(url, first) is not None
    assert holder(url, second) is not None
    third = run("keys", "rotate", "ci").stdout.strip()
    assert (holder(url, first), holder(url, second)) == (None, None)
    assert holder(url, third) is not None


@pytest.mark.parametrize("command", ["show", "revoke", "rotate"])
def test_keys_that_do_not_exist(run: Run, command: str):
    """What is no key could not be done: status 1 and a line that says so."""
    assert "none" in run("keys", command, "none", status=1).stderr


BAD = [
    ([], "--name"), (["--name", " "], "--name"), (["--name", "n", "--role", "boss"], "--role"),
    (["--name", "n", "--models", "gpt"], "--models"), (["--name", "n", "--providers", "openai"], "--providers"),
    (["--name", "n", "--rpm", "0"], "--rpm"), (["--name", "n", "--rpm", "many"], "--rpm"),
    (["--name", "n", "--tpm", "9" * 30], "--tpm"), (["--name", "n", "--budget", "5"], "--period"),
    (["--name", "n", "--budget", "much", "--period", "day"], "--budget"),
    (["--name", "n", "--budget", "NaN", "--period", "day"], "--budget"),
    (["--name", "n", "--budget", "-5", "--period", "day"], "--budget"),
    (["--name", "n", "--expires", "soon"], "--expires"), (["--name", "n", "--tag", "env"], "--tag"),
    (["--name", "n", "--tag", "a b=c"], "--tag"), (["--name", "n", "--colour", "red"], "--colour"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), BAD)
def test_bad_usage(run: Run, options: list[str], named: str):
    """What makes no sense is bad usage, names its option and makes nothing."""
    done = run("keys", "create", *options, status=2)
    assert "Usage:" in done.stderr
    assert named in done.stderr
    assert shown(run("keys", "list", "--json")) == {"data": []}


def test_a_grace_that_is_none(run: Run):
    """A grace that is none is bad usage."""
    run("keys", "create", "--name", "ci")
    assert "--grace" in run("keys", "rotate", "ci", "--grace", "soon", status=2).stderr


def test_migrating(postgres_url: str, tmp_path: Path):
    """A database is brought up to date once; a second time there is nothing to do."""
    environment = {"GATEWAY_DATABASE_URL": postgres_url, "GATEWAY_DATA_DIR": str(tmp_path)}
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    first = CliRunner().invoke(cli, ["migrate", "--json"], env=environment)
    second = CliRunner().invoke(cli, ["migrate", "--json"], env=environment)
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert shown(first)["before"] is None
    assert shown(second)["before"] == shown(second)["after"] == shown(first)["after"]


def test_prices(run: Run):
    """The price rows are printed as they are written; what ships has no error in it."""
    listed = shown(run("prices", "list", "--provider", "evolink", "--json"))
    assert listed["prices"][0]["input"] == "0.556"
    assert {"provider": "evolink", "model": "kimi-k2-thinking-turbo"} in listed["unpriced"]
    assert shown(run("prices", "check", "--json"))["errors"] == 0
    assert "evolink" in run("prices", "list").stdout
    run("prices", "colour", status=2)


def test_as_a_process(environment: dict[str, str]):
    """`python -m gateway` is the same command: JSON on standard output, nothing on standard error, status 0."""
    command = [sys.executable, "-m", "gateway", "keys", "create", "--name", "process", "--json"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert api_key.is_well_formed(json.loads(done.stdout)["key"])
