"""`gateway ledger archive` and `restore`: months go and come as told, and whoever asks meanwhile is answered alike."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from gateway.cli.root import cli
from tests.http.house import CONFIG, exact, open_house
from tests.integration.archives import close_month, ship, two_months

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXIT_SECONDS_MAX = 60
LEDGER = {"from": "2025-05-01", "to": "2025-07-02", "format": "jsonl"}


@pytest.fixture
def closed(database_url: str, tmp_path: Path) -> str:
    """A database with a closed month."""
    ship(database_url, tmp_path, *two_months())
    close_month(database_url, "2025-05")
    return database_url


def environment(url: str, data_dir: Path) -> dict[str, str]:
    return {"GATEWAY_DATABASE_URL": url, "GATEWAY_DATA_DIR": str(data_dir), "GATEWAY_CONFIG_DIR": str(CONFIG)}


def run(url: str, data_dir: Path, *arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, list(arguments), env=environment(url, data_dir))
    assert done.exit_code == status, done.output
    return done


def test_there_and_back(closed: str, tmp_path: Path):
    """As JSON and as lines; a request of the month is explained in between."""
    archived = json.loads(run(closed, tmp_path, "ledger", "archive", "2025-05", "--json").stdout)
    assert archived["month"] == "2025-05"
    assert archived["folder"] == str(tmp_path / "archive")
    path = tmp_path / "archive" / archived["ledger"]["name"]
    assert path.stat().st_size == archived["ledger"]["bytes"]
    assert "req_00000105" in run(closed, tmp_path, "report", "explain", "req_00000105").stdout
    restored = run(closed, tmp_path, "ledger", "restore", "2025-05")
    assert restored.stdout.startswith(f"2025-05 is back in the database from {tmp_path / 'archive'}:\n")
    assert archived["ledger"]["sha256"] in restored.stdout and path.exists()


def test_an_archived_month_is_verified(closed: str, tmp_path: Path):
    """Its exports are what it was closed with, and its files what was written; a file that is not is named."""

    def verified(status: int) -> dict[str, str | None]:
        month = json.loads(run(closed, tmp_path, "ledger", "verify", "2025-05", "--json", status=status).stdout)
        return {each["check"]: each["difference"] for each in month["months"][0]["checks"]}

    run(closed, tmp_path, "ledger", "archive", "2025-05")
    assert verified(0) == dict.fromkeys(["sums", "archive", "ledger", "focus"])
    path = tmp_path / "archive" / "2025-05" / "exchanges.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    wrong = verified(1)
    assert str(path) in (wrong["archive"] or "") and "ledger" not in wrong


def test_a_month_that_came_back_is_as_closed_as_before(closed: str, tmp_path: Path):
    """Nothing is added to it."""
    for command in ("archive", "restore"):
        run(closed, tmp_path, "ledger", command, "2025-05")
    run(closed, tmp_path, "ledger", "verify", "2025-05")
    with psycopg.connect(closed) as db, pytest.raises(psycopg.errors.RestrictViolation, match="is closed"):
        db.execute("INSERT INTO ledger SELECT * FROM ledger WHERE started_at < '2025-06-01' LIMIT 1")


def test_what_cannot_be_done(closed: str, tmp_path: Path):
    """Status 1 and a line that says why."""
    assert "2025-06 is not closed" in run(closed, tmp_path, "ledger", "archive", "2025-06", status=1).stderr
    assert "none is the latest" in run(closed, tmp_path, "ledger", "restore", "2025-05", status=1).stderr
    (tmp_path / "archive").write_text("in the way")
    refused = run(closed, tmp_path, "ledger", "archive", "2025-05", status=1)
    assert f"{tmp_path / 'archive'}" in refused.stderr and "Nothing has left" in refused.stderr


def test_another_folder(closed: str, tmp_path: Path):
    """Who writes elsewhere than reports look is told so; a file that is not found is named."""
    elsewhere = tmp_path / "elsewhere"
    told = run(closed, tmp_path, "ledger", "archive", "2025-05", "--output", str(elsewhere)).stderr
    assert f"reports look for it in {tmp_path / 'archive'}" in told
    path = tmp_path / "archive" / "2025-05" / "ledger.parquet"
    refused = run(closed, tmp_path, "report", "explain", "req_00000105", status=1).stderr
    assert f"{path} of the archive cannot be read: No such file" in refused
    moved = {**environment(closed, tmp_path), "GATEWAY_ARCHIVE_DIR": str(elsewhere)}
    assert CliRunner().invoke(cli, ["report", "explain", "req_00000105"], env=moved).exit_code == 0


def test_a_running_gateway_answers_alike(closed: str, tmp_path: Path):
    """Byte for byte before and after the month has left, and with 503 and the path while its file is away."""

    async def scenario() -> None:
        async with open_house(closed, tmp_path) as house:
            before = await house.admin("GET", "/ledger", params=LEDGER)
            await asyncio.to_thread(run, closed, house.settings.data_dir, "ledger", "archive", "2025-05")
            after = await house.admin("GET", "/ledger", params=LEDGER)
            assert before.status_code == after.status_code == 200
            assert len(before.text.splitlines()) > 70 and before.content == after.content
            path = house.settings.archive_folder / "2025-05" / "ledger.parquet"
            path.rename(path.with_suffix(".away"))
            for asked in ("/ledger", "/requests/req_00000105"):
                away = await house.admin("GET", asked, params=LEDGER)
                assert away.status_code == 503 and away.headers["retry-after"]
                assert str(path.absolute()) in exact(away.text)["error"]["message"]

    asyncio.run(scenario())


@pytest.mark.parametrize("seen", ["2025-05/ledger.parquet.partial", "2025-05/exchanges.parquet", "2025-05/SHA256SUMS"])
def test_a_killed_command_is_run_again(closed: str, tmp_path: Path, seen: str):
    """Killed as soon as a file is seen: the month is whole, in the database or in the archive, and the next run says
    which."""
    command = [sys.executable, "-m", "gateway", "ledger", "archive", "2025-05"]
    variables = {**os.environ, **environment(closed, tmp_path), "PYTHONPATH": str(ROOT)}
    before = run(closed, tmp_path, "report", "explain", "req_00000105", "--json").stdout
    process = subprocess.Popen(command, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + EXIT_SECONDS_MAX
    while not (tmp_path / "archive" / seen).exists() and process.poll() is None:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=EXIT_SECONDS_MAX)
    assert run(closed, tmp_path, "report", "explain", "req_00000105", "--json").stdout == before
    with psycopg.connect(closed) as db:
        row = db.execute("SELECT archived_at FROM ledger_closings").fetchone()
    again = run(closed, tmp_path, "ledger", "archive", "2025-05", status=0 if row == (None,) else 1)
    assert "left the database" in again.stdout or "archived already" in again.stderr
    assert run(closed, tmp_path, "report", "explain", "req_00000105", "--json").stdout == before


def test_a_server_does_not_load_parquet():
    """Who serves and reads no archived month pays nothing for it."""
    code = "import sys, gateway.app, gateway.cli.root; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=EXIT_SECONDS_MAX).returncode == 0
