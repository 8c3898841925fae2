"""What `gateway doctor` says of the books: months left open, attempts that came late, spend at prices that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from psycopg.rows import dict_row

from gateway.adapters.postgres.sql import statement
from gateway.cli.examination import Examination
from gateway.core.archive import ArchivedFile, ArchivedMonth
from gateway.core.catalogue import Catalogue
from gateway.core.money import Money

OPEN_WARN: Final = timedelta(days=35)
"""Providers restate for some weeks; a month that is over for longer and not closed has been forgotten."""
NAMED_MAX: Final = 5
_OPEN_MONTHS: Final = """
SELECT DISTINCT (bucket AT TIME ZONE 'UTC')::date AS month FROM spend_rollup
WHERE grain = 'month' AND bucket >= closed_until() ORDER BY month
"""
_BOOKS: Final = """
SELECT
    (SELECT max(month) FROM ledger_closings) AS closed,
    (SELECT count(*) FROM late_attempts WHERE recorded_at > now() - %s::interval) AS late
"""
LATE_PERIOD: Final = "35 days"


def check_books(found: Examination, db: psycopg.Connection[Any], *, now: datetime) -> None:
    """Months that are over and still open, and attempts that arrived after their month was closed."""
    with db.cursor(row_factory=dict_row) as cursor:
        open_months = [row["month"] for row in cursor.execute(_OPEN_MONTHS).fetchall()]
        books = cursor.execute(_BOOKS, [LATE_PERIOD]).fetchone()
    assert books is not None
    forgotten = [month for month in open_months if _end(month) + OPEN_WARN <= now]
    if forgotten:
        names = _listed([f"{month:%Y-%m}" for month in forgotten])
        mend = f"Reconcile, then run: gateway ledger close {forgotten[0]:%Y-%m}"
        found.warn("books", f"Over for more than {OPEN_WARN.days} days and not closed: {names}.", mend)
    if books["late"]:
        message = f"{books['late']:,} attempts arrived after their month was closed; they count in a later one."
        found.warn("books", message, "Look for a worker that was cut off from the database (docs/finance.md).")
    if not forgotten and not books["late"]:
        closed = books["closed"]
        until = "no month was closed yet" if closed is None else f"{closed:%Y-%m} and before are closed"
        found.ok("books", f"The books are in order; {until}.")


def check_rates(found: Examination, db: psycopg.Connection[Any], catalogue: Catalogue) -> None:
    """Spend at prices that the configuration has no more, and that nobody has corrected."""
    with db.cursor(row_factory=dict_row) as cursor:
        rated = cursor.execute(statement("rated")).fetchall()
    known = {price.price_id for price in catalogue.prices.rows()}
    priced = {(price.provider, price.model) for price in catalogue.prices.rows()}
    gone = [row for row in rated if row["price_id"] not in known and (row["provider"], row["model"]) in priced]
    for row in gone[:NAMED_MAX]:
        first, until = (row[name].astimezone(UTC).date() for name in ("begins", "ends"))
        found.warn(
            "rates",
            f"${Money(int(row['cost_pico']))} of {first:%Y-%m} and later stand in the ledger at {row['price_id']}, "
            "which prices.toml has no more.",
            f"Run: gateway prices reprice --from {first} --to {until} --provider {row['provider']} --dry-run",
        )
    if not gone:
        found.ok("rates", "Everything in the ledger was rated with prices that are in prices.toml.")


def check_archive(found: Examination, db: psycopg.Connection[Any], folder: Path) -> None:
    """The files of archived months are there, as long as they were written. Their content is `ledger verify`'s."""
    with db.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute("SELECT archive FROM ledger_closings WHERE archive IS NOT NULL ORDER BY month").fetchall()
    months = [msgspec.convert(row["archive"], ArchivedMonth) for row in rows]
    wrong = [file.name for month in months for file in (month.ledger, month.exchanges) if not _is_there(folder, file)]
    if wrong:
        message = f"Missing in {folder}, or of another length: {_listed(wrong)}."
        found.fail("archive", message, "Bring them back from a backup, or correct GATEWAY_ARCHIVE_DIR.")
    elif months:
        found.ok("archive", f"The files of {len(months)} archived months are in {folder}.")


def _is_there(folder: Path, file: ArchivedFile) -> bool:
    try:
        return (folder / file.name).stat().st_size == file.bytes
    except OSError:
        return False


def _end(month: date) -> datetime:
    following = month.replace(day=28) + timedelta(days=4)
    return datetime(following.year, following.month, 1, tzinfo=UTC)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
