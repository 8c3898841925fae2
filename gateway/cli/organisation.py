"""`gateway organisation`: its name, and the time zone in which days and budgets begin."""

from __future__ import annotations

import click

from gateway.cli.administering import ask, tell
from gateway.cli.common import JSON, expected_errors
from gateway.core.grants import COMMAND_LINE
from gateway.core.organisation import organisation_json


@click.group()
def organisation() -> None:
    """The organisation: its name and its time zone."""


@organisation.command("show")
@JSON
@expected_errors
def show(*, as_json: bool) -> None:
    """Show the organisation."""
    tell(organisation_json(ask(lambda to: to.organisation.show())), as_json=as_json)


@organisation.command("set")
@click.option("--name", help="What it is called.")
@click.option("--time-zone", help="An IANA name such as Europe/Berlin; budgets begin at midnight there.")
@JSON
@expected_errors
def set_organisation(name: str | None, time_zone: str | None, *, as_json: bool) -> None:
    """Change the organisation; what is not named stays."""
    if name is None and time_zone is None:
        raise click.UsageError("Give --name, --time-zone or both.")
    updated = ask(lambda to: to.organisation.update(name=name, time_zone=time_zone, by=COMMAND_LINE))
    tell(organisation_json(updated), as_json=as_json)
