"""The schema's versions: one process migrates at a time, and a database newer than the code is never touched.

All functions block and open one connection of their own; call them before the server starts, or in a thread. `url` is
a libpq URL (`postgresql://…`). They raise `SchemaError` for what an operator can mend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

_HERE: Final = Path(__file__).resolve().parent
_PACKAGED: Final = _HERE / "migrations"  # in an installed wheel
MIGRATIONS: Final = _PACKAGED if _PACKAGED.is_dir() else _HERE.parents[2] / "migrations"

CONNECT_SECONDS_MAX: Final = 10
LOCK_SECONDS_MAX: Final = 5  # for a table's lock; longer would queue the gateway's own statements behind the migration
MIGRATION_SECONDS_MAX: Final = 600  # how long one process waits for another that migrates
_ADVISORY_LOCK: Final = 0x6B696D69  # any number, as long as every version of the gateway uses the same


class SchemaError(Exception):
    """The schema does not fit this version of the gateway; the message says what to do."""


class DatabaseAwayError(SchemaError):
    """Nobody could be asked: the database cannot be reached just now."""


def migrate(url: str) -> str | None:
    """Bring the schema to this version's head and answer that revision. Safe to call from many processes at once."""
    with _alone(url) as connection:
        _refuse_unknown(connection)
        command.upgrade(_config(connection), "head")
    return head_revision()


def downgrade(url: str, revision: str) -> str | None:
    """Take the schema back to `revision` ("base" for an empty database) and answer where it stands then."""
    with _alone(url) as connection:
        _refuse_unknown(connection)
        command.downgrade(_config(connection), revision)
        return _revision(connection)


def current_revision(url: str) -> str | None:
    """Where the database stands; None for one that was never migrated."""
    with _connected(url) as connection:
        return _revision(connection)


def head_revision() -> str | None:
    """What this version of the gateway needs; None only while there are no migrations at all."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head()


def require_current(url: str) -> None:
    """Raise `SchemaError` unless the database stands exactly where this version of the gateway needs it."""
    with _connected(url) as connection:
        _refuse_unknown(connection)
        found = _revision(connection)
    if found != head_revision():
        raise SchemaError(
            f"The database is at revision {found or 'none'} and this gateway needs {head_revision()}. "
            "Run `gateway migrate`, or set GATEWAY_AUTO_MIGRATE=true."
        )


def _revision(connection: sa.Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return found


def _refuse_unknown(connection: sa.Connection) -> None:
    """A revision that is not in our folder was written by a newer gateway, whose tables we do not know."""
    found = _revision(connection)
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaError(
            f"The database is at revision {found}, which this gateway does not know: a newer version migrated it. "
            "Run that version, or restore a backup from before."
        )


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _alone(url: str) -> Iterator[sa.Connection]:
    """A connection that holds the migration lock; the server releases it when the connection ends, however it ends."""
    with _connected(url) as connection:
        try:
            connection.execute(sa.text(f"SET lock_timeout = '{MIGRATION_SECONDS_MAX}s'"))
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        except sa.exc.OperationalError:
            raise SchemaError(
                f"Another process has been migrating this database for more than {MIGRATION_SECONDS_MAX} s. "
                "Look for it in pg_stat_activity."
            ) from None
        connection.execute(sa.text(f"SET lock_timeout = '{LOCK_SECONDS_MAX}s'"))
        connection.commit()
        yield connection
        connection.commit()


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    driver_url = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(
        driver_url, poolclass=sa.pool.NullPool, connect_args={"connect_timeout": CONNECT_SECONDS_MAX}
    )
    try:
        connection = engine.connect()
    except sa.exc.OperationalError as error:
        reason = " ".join(str(error.orig).split()).rstrip(".?")
        raise DatabaseAwayError(f"The database cannot be reached: {reason}. Check GATEWAY_DATABASE_URL.") from None
    with connection:
        yield connection
