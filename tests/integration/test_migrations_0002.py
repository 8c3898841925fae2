"""The second migration goes up, down and up again with what the first one held: budgets and spend survive."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from gateway.adapters.postgres.schema import downgrade, head_revision, migrate
from tests.integration.test_migrations_0001 import INSERT, ROW, objects

pytestmark = pytest.mark.integration

BUDGETS = "SELECT scope, period, limit_pico, mode, on_outage, alert_at FROM budgets ORDER BY scope, period"
KEYS = "SELECT key_id, budget_pico, budget_period FROM api_keys ORDER BY key_id"
TEAMS = "SELECT name, budget_pico, budget_period FROM teams ORDER BY name"


@pytest.fixture
def before(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A database of the first version with keys, a team, and a row that was paid for; empty again at the end."""
    migrate(postgres_url)
    downgrade(postgres_url, "0001")
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("INSERT INTO teams (name, budget_pico, budget_period, created_at) VALUES ('blue', 5, 'week', now())")
        for key_id, budget, period in (("k", 7, "month"), ("l", None, None)):
            db.execute(
                "INSERT INTO api_keys (key_id, name, team, role, tags, created_at, budget_pico, budget_period) "
                "VALUES (%s, 'n', 'blue', 'inference', '{}', now(), %s, %s)",
                (key_id, budget, period),
            )
        db.execute("SELECT ensure_month('2025-11-22T10:00Z')")
        db.execute(INSERT, ROW)
        yield db
    downgrade(postgres_url, "base")


def test_existing_budgets_survive_both_ways(before: psycopg.Connection, postgres_url: str) -> None:
    """A budget of a key or a team is the same one above; what was added there is not lost below, as far as it fits."""
    below = before.execute(KEYS).fetchall(), before.execute(TEAMS).fetchall()
    migrate(postgres_url)
    terms = ("strict", "refuse", [80, 100])
    assert before.execute(BUDGETS).fetchall() == [("key:k", "month", 7, *terms), ("team:blue", "week", 5, *terms)]
    before.execute(
        "INSERT INTO budgets (scope, period, limit_pico, created_at) "
        "VALUES ('key:k', 'day', 1, now() + interval '1s'), ('organisation', 'month', 9, now())"
    )
    downgrade(postgres_url, "0001")
    assert (before.execute(KEYS).fetchall(), before.execute(TEAMS).fetchall()) == below
    assert migrate(postgres_url) == head_revision()
    assert before.execute(BUDGETS).fetchall() == [("key:k", "month", 7, *terms), ("team:blue", "week", 5, *terms)]


def test_what_was_spent_is_known_to_a_budget_set_later(before: psycopg.Connection, postgres_url: str) -> None:
    """L6: every scope of a row that is there has its posting."""
    migrate(postgres_url)
    postings = before.execute(
        "SELECT scope, day::text, posted_pico, rows FROM budget_postings ORDER BY scope"
    ).fetchall()
    assert postings == [("key:k", "2025-11-22", 3, 1), ("organisation", "2025-11-22", 3, 1)]
    assert before.execute("SELECT name, time_zone FROM organisation").fetchall() == [("organisation", "UTC")]


def test_the_same_things_are_made_again(before: psycopg.Connection, postgres_url: str) -> None:
    """Up, down and up: the same tables, constraints and functions each time."""
    below = objects(postgres_url)
    migrate(postgres_url)
    above = objects(postgres_url)
    downgrade(postgres_url, "0001")
    assert objects(postgres_url) == below
    migrate(postgres_url)
    assert objects(postgres_url) == above


def test_every_change_moves_the_version(before: psycopg.Connection, postgres_url: str) -> None:
    """Workers learn of budgets and of the organisation by the same number as of keys."""
    migrate(postgres_url)

    def version() -> int:
        row = before.execute("SELECT version FROM key_changes").fetchone()
        assert row is not None
        return int(row[0])

    for statement in (
        "INSERT INTO budgets (scope, period, limit_pico) VALUES ('organisation', 'day', 1)",
        "UPDATE budgets SET limit_pico = 2 WHERE scope = 'organisation'",
        "DELETE FROM budgets WHERE scope = 'organisation'",
        "UPDATE organisation SET time_zone = 'Europe/Berlin'",
        "UPDATE teams SET rpm = 5",
    ):
        now = version()
        before.execute(statement.encode())
        assert version() > now
