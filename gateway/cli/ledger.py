"""`gateway ledger`: the rows that every report sums."""

from __future__ import annotations

import click

from gateway.cli.archiving import archive, restore


@click.group()
def ledger() -> None:
    """The rows behind every figure."""


for command in (archive, restore):
    ledger.add_command(command)
