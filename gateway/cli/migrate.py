"""`gateway migrate`: brings the schema up to date, once, whoever else tries at the same time."""

from __future__ import annotations

import click

from gateway.adapters.postgres.schema import current_revision
from gateway.adapters.postgres.schema import migrate as migrate_schema
from gateway.cli.common import JSON, database, expected_errors, print_json, settings_with


@click.command()
@JSON
@expected_errors
def migrate(*, as_json: bool) -> None:
    """Bring the database schema up to date."""
    settings = settings_with()
    with database(settings, migrated=False) as url:
        before = current_revision(url)
        after = migrate_schema(url)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        click.echo(f"The schema is up to date ({after}).")
    else:
        click.echo(f"The schema went from {before or 'nothing'} to {after}.")
