"""The third migration goes up, down and up again; what was planned before has no prefixes, and is as it was."""

from __future__ import annotations

import psycopg
import pytest

from gateway.adapters.postgres.schema import downgrade, head_revision, migrate
from tests.integration.test_migrations_0001 import objects

pytestmark = pytest.mark.integration

COLUMNS = """
SELECT table_name, column_name, data_type FROM information_schema.columns
WHERE table_name ~ '^exchanges' ORDER BY 1, 2
"""


def test_plans_survive_both_ways(postgres_url: str) -> None:
    """Up, down and up: the same tables with the same columns in every month, and the same plans in them."""
    migrate(postgres_url)
    downgrade(postgres_url, "0002")
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("SELECT ensure_month('2025-11-22T10:00Z')")
        db.execute("INSERT INTO exchanges VALUES ('r1', '2025-11-22T10:00Z', 'k', '{}')")
        below = objects(postgres_url), db.execute(COLUMNS).fetchall()
        assert migrate(postgres_url) == head_revision()
        above = objects(postgres_url), db.execute(COLUMNS).fetchall()
        assert len(above[1]) == len(below[1]) + 3 * len({table for table, _, _ in below[1]})
        assert db.execute("SELECT request_id, prompt, tenant, turn FROM exchanges").fetchall() == [
            ("r1", None, None, None)
        ]
        db.execute("SELECT ensure_month('2031-01-01T00:00Z')")
        db.execute("INSERT INTO exchanges VALUES ('r2', '2031-01-01T00:00Z', 'k', '{}', '\\x01', 't', 3)")
        downgrade(postgres_url, "0002")
        assert db.execute("SELECT request_id, plan FROM exchanges ORDER BY 1").fetchall() == [("r1", {}), ("r2", {})]
        db.execute("DROP TABLE exchanges_2031_01, ledger_2031_01")
        assert (objects(postgres_url), db.execute(COLUMNS).fetchall()) == below
        migrate(postgres_url)
        assert (objects(postgres_url), db.execute(COLUMNS).fetchall()) == above
    downgrade(postgres_url, "base")
