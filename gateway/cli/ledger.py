"""`gateway ledger`: the rows that every report sums."""

from __future__ import annotations

import click

from gateway.cli.ledger_list import list_rows


@click.group()
def ledger() -> None:
    """The rows behind every figure."""


ledger.add_command(list_rows)
