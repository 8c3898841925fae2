"""Budgets, postings and a clock for tests of alerts: what the ledger's transaction would write, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from gateway.adapters.postgres.alerts import AlertBook
from gateway.core.alert import Alert
from gateway.core.budget import BudgetMode, Period
from gateway.core.money import Money
from gateway.pipeline.ports import AlertTeller

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
DAY = NOON.date()


ALERT = Alert(
    alert_id="alert_1",
    budget_id="budget_1",
    scope="team:blue",
    name='team "blue"',
    period=Period.TOTAL,
    mode=BudgetMode.STRICT,
    limit=Money.from_usd("10"),
    begins_at=None,
    ends_at=None,
    share=100,
    spent=Money.from_usd("12"),
    raised_at=NOON,
)


class StillClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def move(self, *, days: int) -> None:
        self.at += timedelta(days=days)
        self.seconds += 86_400.0 * days


class Counts:
    """What an operator would see."""

    def __init__(self) -> None:
        self.raised: list[int] = []
        self.told: list[tuple[str, str]] = []

    def alert_raised(self, share: int) -> None:
        self.raised.append(share)

    def alert_told(self, *, by: str, outcome: str) -> None:
        self.told.append((by, outcome))


class Notebook:
    """A teller that writes down what it is told, and answers as it was told to."""

    name = "notebook"

    def __init__(self, *answers: str | None) -> None:
        self.alerts: list[Alert] = []
        self._answers = list(answers)

    async def tell(self, alert: Alert) -> str | None:
        self.alerts.append(alert)
        return self._answers.pop(0) if self._answers else None


def book(url: str, teller: AlertTeller | None = None, *, clock: StillClock | None = None) -> AlertBook:
    return AlertBook(url, teller or Notebook(), Counts(), clock=clock or StillClock(), chance=lambda: 0.5)


def add_budget(db: psycopg.Connection, scope: str, usd: str, period: str = "month", **columns: Any) -> str:
    """A budget; returns its id."""
    values = {"scope": scope, "period": period, "limit_pico": Money.from_usd(usd).pico, **columns}
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    row = db.execute(
        f"INSERT INTO budgets ({names}) VALUES ({marks}) RETURNING budget_id".encode(), list(values.values())
    ).fetchone()
    assert row is not None
    return str(row[0])


def post(db: psycopg.Connection, scope: str, usd: str, day: date = DAY, *, journal: str = "j1") -> None:
    """So much more is spent in a scope on a day."""
    db.execute(
        """
        INSERT INTO budget_postings AS p (scope, day, journal_id, posted_pico, rows) VALUES (%s, %s, %s, %s, 1)
        ON CONFLICT (scope, day, journal_id) DO UPDATE SET
            posted_pico = p.posted_pico + excluded.posted_pico, rows = p.rows + 1, moved_at = clock_timestamp()
        """,
        [scope, day, journal, Money.from_usd(usd).pico],
    )


def alerts(db: psycopg.Connection, columns: str) -> Sequence[tuple[Any, ...]]:
    """What is in the table, by share and limit."""
    return db.execute(
        f"SELECT {columns} FROM budget_alerts ORDER BY scope, share, limit_pico, first_day".encode()
    ).fetchall()
