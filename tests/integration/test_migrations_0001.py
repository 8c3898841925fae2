"""The first migration goes up, down and up again, and what it makes defends the ledger by itself."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from gateway.adapters.postgres.schema import current_revision, downgrade, head_revision, migrate

pytestmark = pytest.mark.integration

OBJECTS = """
SELECT relkind::text, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT 'constraint', conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
ORDER BY 1, 2
"""
INSERT = """
INSERT INTO ledger (attempt_id, request_id, attempt, is_final, key_id, key_name, tags, surface, model, provider,
    account, upstream_model, started_at, finished_at, status, usage_source, input_tokens, cache_write_tokens,
    output_tokens, reasoning_source, price_id, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico,
    cost_pico, list_pico, flags, corrects)
VALUES ('a1', 'r1', 1, true, 'k', 'k', '{}', 'messages', 'm', 'p', 'a', 'u', %(at)s, %(at)s, %(status)s, 'provider',
    1, 0, 1, 'none', 'x', %(input)s, 0, 0, 2, 0, %(cost)s, 0, '{}', %(corrects)s)
"""
ROW = {"at": "2025-11-22T10:00Z", "status": "succeeded", "input": 1, "cost": 3, "corrects": None}


def objects(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as db:
        return db.execute(OBJECTS).fetchall()


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT ensure_month('2025-11-22T10:00Z')")
        yield connection


def test_up_down_up(postgres_url: str) -> None:
    """Going down leaves nothing but alembic's own table, and going up again makes the same things."""
    migrate(postgres_url)
    downgrade(postgres_url, "base")
    bare = objects(postgres_url)
    assert {name for _, name in bare if not name.startswith("alembic_version")} == set()
    assert migrate(postgres_url) == head_revision()
    first = objects(postgres_url)
    assert downgrade(postgres_url, "base") is None
    assert objects(postgres_url) == bare
    migrate(postgres_url)
    assert objects(postgres_url) == first
    assert len(first) > 50
    downgrade(postgres_url, "base")
    assert current_revision(postgres_url) is None


@pytest.mark.parametrize("statement", ["UPDATE {table} SET cost_pico = 0", "DELETE FROM {table}", "TRUNCATE {table}"])
@pytest.mark.parametrize("table", ["ledger", "ledger_2025_11"])
def test_the_ledger_is_append_only_for_its_owner_too(db: psycopg.Connection, statement: str, table: str) -> None:
    """L1: no row changes or goes, neither by the table nor by its partition."""
    db.execute(INSERT, ROW)
    with pytest.raises(psycopg.errors.RestrictViolation, match="never changed"):
        db.execute(statement.format(table=table).encode())
    assert db.execute("SELECT count(*), sum(cost_pico) FROM ledger").fetchone() == (1, 3)


def test_maintenance_is_possible_and_has_to_be_said(db: psycopg.Connection) -> None:
    """An operator who must remove a row says so, for one transaction."""
    db.execute(INSERT, ROW)
    with db.transaction():
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        assert db.execute("DELETE FROM ledger").rowcount == 1
    db.execute(INSERT, ROW)
    with pytest.raises(psycopg.errors.RestrictViolation):
        db.execute("DELETE FROM ledger")


@pytest.mark.parametrize(
    "wrong",
    [{"cost": 4}, {"status": "fine"}, {"input": -1, "cost": 1}, {"input": 2**63 - 1, "cost": 3}],
    ids=["sum", "status", "negative", "overflow"],
)
def test_a_row_that_breaks_a_rule_is_refused(db: psycopg.Connection, wrong: dict[str, object]) -> None:
    """L1: cost is the sum of its parts, and only a correction may be negative."""
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.NumericValueOutOfRange)):
        db.execute(INSERT, ROW | wrong)


def test_a_correction_may_be_negative(db: psycopg.Connection) -> None:
    """It names the row that it corrects."""
    db.execute(INSERT, ROW | {"input": -5, "cost": -3, "corrects": "a0"})


def test_months_are_made_ahead_and_on_demand(db: psycopg.Connection) -> None:
    """This month and the next two exist; any other is made when it is asked for, once."""
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger'::regclass"
    before = db.execute(count).fetchone()
    assert before is not None
    for moment in ("1999-12-31T23:59:59Z", "1999-12-01T00:00Z", "2031-02-28T12:00+05"):
        db.execute("SELECT ensure_month(%s)", [moment])
        db.execute(INSERT, ROW | {"at": moment})
    assert db.execute(count).fetchone() == (before[0] + 2,)
    assert db.execute("SELECT count(*) FROM ledger_1999_12").fetchone() == (2,)
    db.execute("SELECT ensure_months_ahead('2031-12-31T23:00Z')")
    assert db.execute("SELECT to_regclass('exchanges_2032_02') IS NOT NULL").fetchone() == (True,)


def test_every_change_of_a_key_moves_the_version(db: psycopg.Connection) -> None:
    """Workers learn of a change by one number."""

    def version() -> int:
        row = db.execute("SELECT version FROM key_changes").fetchone()
        assert row is not None
        return int(row[0])

    for statement in (
        "INSERT INTO teams (name, created_at) VALUES ('blue', now())",
        "INSERT INTO api_keys (key_id, name, role, tags, created_at) VALUES ('k', 'k', 'admin', '{}', now())",
        "INSERT INTO api_key_secrets VALUES (sha256('x'), 'k', 'abcd', now(), NULL)",
        "UPDATE api_keys SET revoked_at = now()",
        "DELETE FROM api_key_secrets",
    ):
        before = version()
        db.execute(statement.encode())
        assert version() > before
