"""litellm #33872: spend was popped off its queue before the commit, and a commit that failed took it along."""

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
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no commit today'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON journal_offsets DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def test_a_commit_that_fails_takes_nothing_along(tmp_path: Path, database_url: str) -> None:
    """The database refuses at the commit itself: not a row is there, and when it commits again all of them are."""
    journal = JournalWriter.open(tmp_path, "j1")
    shipper = Shipper(database_url, Outbox(tmp_path, journal), clock=SystemClock(), chance=lambda: 0.5)

    async def scenario(db: psycopg.Connection) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await journal.durable([journal.append(entry(number)) for number in range(1, 11)][-1])
            with pytest.raises(psycopg.errors.RaiseException, match="no commit today"):
                await shipper.ship()
            assert db.execute("SELECT count(*) FROM ledger").fetchone() == (0,)
            db.execute("DROP TRIGGER refuse ON journal_offsets")
            await shipper.ship()
            assert db.execute("SELECT count(*) FROM ledger").fetchone() == (10,)
            await shipper.close()

    try:
        with psycopg.connect(database_url, autocommit=True) as db:
            db.execute(REFUSE)
            asyncio.run(scenario(db))
    finally:
        journal.close()
