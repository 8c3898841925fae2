"""Where alembic meets the database: one connection, one transaction per migration, no waiting for locks.

`gateway migrate` (gateway/adapters/postgres/schema.py) brings its connection. The `alembic` command is for writing
migrations (`alembic revision -m …`) and for printing them as SQL (`alembic upgrade head --sql`).
"""

from alembic import context
from sqlalchemy import Connection


def run_offline() -> None:
    """Print the SQL, for an administrator who applies it by hand."""
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online(connection: Connection) -> None:
    """Migrate over the connection given; each migration commits with its own version row, or not at all."""
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    given = context.config.attributes.get("connection")
    if given is None:
        raise SystemExit("Use `gateway migrate`: it knows the database, and lets only one process migrate at a time.")
    run_online(given)
