"""The doctor reads from the books which months were forgotten, what came late, and which prices are gone since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from gateway.cli.book_checks import check_archive, check_books, check_rates
from gateway.cli.examination import Check, Examination
from gateway.core.ledger import PinnedPrice
from gateway.core.money import UnitPrice
from gateway.core.pricing import PriceTable
from tests.integration.samples import PRICE, T0, entry
from tests.integration.test_doctor_models import CATALOGUE
from tests.integration.test_reports import ship

pytestmark = pytest.mark.integration

NOVEMBER_IS_OVER = datetime(2025, 12, 1, tzinfo=UTC)
CLOSE_NOVEMBER = """
SELECT ensure_month('2025-12-01Z');
INSERT INTO ledger_closings (
    month, closed_at, closed_by, reason, organisation_name, rows, cost_pico, ledger_sha256, focus_sha256
)
VALUES ('2025-11-01', now(), 'test', 'test', 'organisation', 0, 0, sha256(''), sha256(''))
"""


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as db:
        yield db


def books(db: psycopg.Connection[Any], now: datetime) -> list[Check]:
    found = Examination()
    check_books(found, db, now=now)
    return found.checks


def rates(db: psycopg.Connection[Any], *prices: Any) -> list[Check]:
    found = Examination()
    check_rates(found, db, replace(CATALOGUE, prices=PriceTable(prices)))
    return found.checks


def test_a_month_that_was_forgotten(database: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """A month with spend may stay open for 35 days after its end; then it is named until it is closed."""
    assert [check.status for check in books(database, T0)] == ["ok"]
    ship(database_url, tmp_path, entry(1))
    assert [check.status for check in books(database, NOVEMBER_IS_OVER + timedelta(days=34))] == ["ok"]
    (check,) = books(database, NOVEMBER_IS_OVER + timedelta(days=35))
    assert (check.status, check.message) == ("warn", "Over for more than 35 days and not closed: 2025-11.")
    assert check.mend == "Reconcile, then run: gateway ledger close 2025-11"
    database.execute(CLOSE_NOVEMBER)
    (check,) = books(database, NOVEMBER_IS_OVER + timedelta(days=35))
    assert check.message == "The books are in order; 2025-11 and before are closed."


def test_attempts_that_came_late(database: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """What was shipped after its month was closed is told, since a worker must have been cut off for long."""
    database.execute(CLOSE_NOVEMBER)
    ship(database_url, tmp_path, entry(1), entry(2))
    (check,) = books(database, T0)
    assert check.status == "warn"
    assert check.message == "2 attempts arrived after their month was closed; they count in a later one."


def test_spend_at_a_price_that_is_gone(database: psycopg.Connection[Any], database_url: str, tmp_path: Path) -> None:
    """Spend at a row that was edited since is named with its amount and the command that corrects it; spend at rows
    that are there, or of a provider that is not sold any more, is left."""
    ship(database_url, tmp_path, entry(1), entry(2))
    assert [check.status for check in rates(database, PRICE)] == ["ok"]
    assert [check.status for check in rates(database)] == ["ok"]
    (check,) = rates(database, replace(PRICE, input=UnitPrice.from_usd_per_million("0.6")))
    assert check.status == "warn"
    assert check.message == (
        f"$0.0015004 of 2025-11 and later stand in the ledger at {PinnedPrice.of(PRICE).price_id}, which prices.toml "
        "has no more."
    )
    assert check.mend == ("Run: gateway prices reprice --from 2025-11-01 --to 2025-12-01 --provider evolink --dry-run")


def test_files_of_an_archived_month(database: psycopg.Connection[Any], tmp_path: Path) -> None:
    """A file that is missing, or of another length than it was written with, is named."""

    def archive() -> list[Check]:
        found = Examination()
        check_archive(found, database, tmp_path)
        return found.checks

    assert archive() == []
    database.execute(CLOSE_NOVEMBER)
    file = {"rows": 1, "bytes": 5, "sha256": "00"}
    names = {"ledger": "2025-11/ledger.parquet", "exchanges": "2025-11/exchanges.parquet"}
    database.execute(
        "UPDATE ledger_closings SET archived_at = now(), archive = %s",
        [Jsonb({table: {**file, "name": name} for table, name in names.items()})],
    )
    (tmp_path / "2025-11").mkdir()
    for name in names.values():
        (tmp_path / name).write_bytes(b"12345")
    assert [(check.status, check.name) for check in archive()] == [("ok", "archive")]
    (tmp_path / names["ledger"]).write_bytes(b"1234")
    (tmp_path / names["exchanges"]).unlink()
    (check,) = archive()
    assert check.status == "fail"
    assert all(name in check.message for name in names.values())
