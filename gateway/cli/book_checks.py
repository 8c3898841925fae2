"""What `gateway doctor` says of the books: months left open, attempts that came late, spend at prices that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from gateway.adapters.postgres.sql import statement
from gateway.cli.examination import Examination
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


def _end(month: date) -> datetime:
    following = month.replace(day=28) + timedelta(days=4)
    return datetime(following.year, following.month, 1, tzinfo=UTC)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
