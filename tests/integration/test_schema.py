"""Migrations: up, down and up again; many processes at once; never against a newer schema."""

import threading

import psycopg
import pytest

from gateway.adapters.postgres.schema import (
    SchemaError,
    current_revision,
    downgrade,
    head_revision,
    migrate,
    require_current,
)

pytestmark = pytest.mark.integration


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as db:
        rows = db.execute("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^(pg_|info)'")
        return {name for (name,) in rows} - {"public.alembic_version"}


@pytest.fixture
def empty_url(postgres_url: str):
    """An empty database, left empty again."""
    yield postgres_url
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("DROP SCHEMA public CASCADE")
        db.execute("CREATE SCHEMA public")


def test_up_down_up(empty_url: str):
    """Every migration can be taken back, and what comes after is what was there before."""
    assert current_revision(empty_url) is None
    assert migrate(empty_url) == current_revision(empty_url) == head_revision()
    first = tables(empty_url)
    assert downgrade(empty_url, "base") is None
    assert tables(empty_url) == set()
    migrate(empty_url)
    assert tables(empty_url) == first


def test_replicas_that_start_together_migrate_once(empty_url: str):
    """One migrates, the others wait and find nothing to do."""
    revisions: list[str | None] = []
    threads = [threading.Thread(target=lambda: revisions.append(migrate(empty_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert revisions == [head_revision()] * 4


def test_a_schema_that_is_behind_is_told(empty_url: str):
    """`serve` without auto-migration says which command to run."""
    if head_revision() is None:
        pytest.skip("there is no migration yet")
    with pytest.raises(SchemaError, match="Run `gateway migrate`"):
        require_current(empty_url)
    migrate(empty_url)
    require_current(empty_url)


def test_a_newer_schema_is_never_touched(database_url: str):
    """An old gateway does not know the new tables; it refuses and changes nothing."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("DELETE FROM alembic_version")
        db.execute("INSERT INTO alembic_version VALUES ('9999')")
    before = tables(database_url)
    for attempt in (migrate, require_current, lambda url: downgrade(url, "base")):
        with pytest.raises(SchemaError, match="a newer version migrated it"):
            attempt(database_url)
    assert current_revision(database_url) == "9999"
    assert tables(database_url) == before


def test_an_unreachable_database_is_told_without_its_password():
    """The error names the variable and never the URL (L13)."""
    with pytest.raises(SchemaError, match="Check GATEWAY_DATABASE_URL") as raised:
        migrate("postgresql://gateway:hidden-word@127.0.0.1:1/gateway")
    assert "hidden-word" not in str(raised.value)
