"""`gateway ledger list`: every row behind any cell of a spend report, under the names of the administration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.asking import WHERE, ask_ledger, asked_selection
from gateway.cli.common import JSON, expected_errors
from gateway.cli.writing import write
from gateway.core.money import Money
from gateway.http.books import ledger_pieces

TABLE_ROWS_MAX: Final = 1_000
"""More rows than this nobody reads in a table."""
WIDTH_IN_A_PIPE: Final = 250
_COLUMNS: Final = (
    *("started_at", "attempt_id", "key_name", "team", "model", "provider", "account", "status", "usage_source"),
    *("input_tokens", "cached_tokens", "output_tokens", "cost", "corrects"),
)
_NUMBERS: Final = ("input_tokens", "cached_tokens", "output_tokens", "cost")


@click.command("list")
@click.option("--from", "start", help="First moment; the start of this month without it.")
@click.option("--to", "end", help="End, itself not included; now without it.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates and of day, hour and month.")
@WHERE
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "json", "table"]), default="jsonl")
@JSON
@expected_errors
def list_rows(start: str | None, end: str | None, tz: str, where: tuple[str, ...], form: str, *, as_json: bool) -> None:
    """Every upstream attempt and every correction of a period, one a line.

    The rows behind a cell of `gateway report spend` are those of the same period, with --where GROUP=VALUE for each of
    its groups; their cost adds up to the cell's.
    """
    selected = asked_selection(start, end, tz, where)
    form = "json" if as_json else form
    if form == "table":
        ask_ledger(lambda reports: show_rows(reports.ledger(selected)))
    else:
        ask_ledger(lambda reports: write(ledger_pieces(reports.ledger(selected), form)))  # type: ignore[arg-type]


async def show_rows(rows: AsyncIterator[dict[str, Any]]) -> None:
    """Prints the first rows, some of their columns, and what all of them cost."""
    shown = []
    count, cost = 0, Money(0)
    async for row in rows:
        count += 1
        cost += Money.from_usd(row["cost"])
        if count <= TABLE_ROWS_MAX:
            shown.append([Text("–" if row[name] is None else str(row[name])) for name in _COLUMNS])
    table = Table(show_footer=True)
    for name in _COLUMNS:
        footer = {"started_at": f"{count:,} rows", "cost": str(cost)}.get(name, "")
        table.add_column(name, footer=footer, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for cells in shown:
        table.add_row(*cells)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_IN_A_PIPE)).print(table if count else "There are no rows.")
    if count > TABLE_ROWS_MAX:
        click.echo(f"{count - TABLE_ROWS_MAX:,} more rows are not in the table; --format jsonl or csv has them all.")
