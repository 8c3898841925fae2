"""aws-samples PR 79: a replay doubled the spend, for what was read was added up instead of what was new."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.shipper import Shipper
from tests.integration.samples import entry

pytestmark = pytest.mark.integration

SECONDS_MAX = 30
POSTED = "SELECT posted_pico::bigint, rows FROM budget_postings"
SUMS = "SELECT count(*), sum(attempts)::bigint, sum(cost_pico)::bigint FROM spend_rollup WHERE grain = 'quarter'"


async def ship(url: str, journal: JournalWriter) -> None:
    shipper = Shipper(url, Outbox(journal.path.parents[1], journal), clock=SystemClock(), chance=lambda: 0.5)
    async with asyncio.timeout(SECONDS_MAX):
        await shipper.ship()
    await shipper.close()


def test_a_replay_adds_nothing_to_the_spend(tmp_path: Path, database_url: str) -> None:
    """L4, L5: as after a database restored from a backup, which has forgotten how far the journal was shipped."""
    journal = JournalWriter.open(tmp_path, "j1")
    try:
        for number in range(1, 21):
            journal.append(entry(number))
        asyncio.run(journal.durable(journal.append(entry(21))))
        with psycopg.connect(database_url, autocommit=True) as db:
            asyncio.run(ship(database_url, journal))
            before = db.execute(SUMS).fetchone()
            posted = db.execute(POSTED).fetchall()
            db.execute("DELETE FROM journal_offsets")
            asyncio.run(ship(database_url, journal))
            assert db.execute(SUMS).fetchone() == before == (1, 21, 21 * entry(1).cost_pico)
            assert db.execute(POSTED).fetchall() == posted == [(21 * entry(1).cost_pico, 21)] * 3
    finally:
        journal.close()
