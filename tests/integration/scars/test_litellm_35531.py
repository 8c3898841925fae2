"""litellm #35531: spend waited in a queue in memory, and whatever ended the process ended the queue."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.shipper import Shipper

pytestmark = pytest.mark.integration

SECONDS_MAX = 30
ROOT = Path(__file__).parents[3]
WORKER = """
import os, signal, sys
from pathlib import Path
from gateway.adapters.journal import JournalWriter
from tests.integration.samples import entry, intent, progress

journal = JournalWriter.open(Path(sys.argv[1]), "killed")
for record in (intent(1), entry(1), intent(2), progress(2, tokens=40), intent(3)):
    journal.append(record)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_leaves_its_spend_behind(tmp_path: Path, database_url: str) -> None:
    """L3: what was settled as it was, what was open as a flagged estimate, each once."""
    killed = subprocess.run([sys.executable, "-c", WORKER, tmp_path], cwd=ROOT, timeout=SECONDS_MAX, check=False)
    assert killed.returncode == -signal.SIGKILL
    shipper = Shipper(database_url, Outbox(tmp_path), clock=SystemClock(), chance=lambda: 0.5)

    async def ship() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await shipper.ship()
        await shipper.close()

    asyncio.run(ship())
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT attempt_id, status, usage_source, output_tokens FROM ledger ORDER BY 1").fetchall()
    assert rows == [
        ("att_00000001", "succeeded", "provider", 200),
        ("att_00000002", "abandoned", "estimated", 40),
        ("att_00000003", "abandoned", "estimated", 0),
    ]
