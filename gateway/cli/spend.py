"""A spend report as people read it: groups left, amounts right, the total last; plain text in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

MEASURES: Final = (
    *("requests", "attempts", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens"),
    *("reasoning_tokens", "cost", "estimated_cost"),
)
MONEY: Final = ("cost", "estimated_cost")


def print_spend(report: Mapping[str, Any]) -> None:
    """Prints ``{"from", "to", "rows", "total"}`` as a table."""
    rows, total = report["rows"], report["total"]
    groups = [name for name in (rows[0] if rows else {}) if name not in MEASURES]
    measures = [name for name in MEASURES if name in total and (name != "cache_write_tokens" or total[name])]
    table = Table(title=f"Spend from {report['from']} to {report['to']}", title_justify="left", show_footer=bool(rows))
    for number, name in enumerate(groups):
        table.add_column(name, footer="total" if number == 0 else "", overflow="fold")
    for name in measures:
        table.add_column(_heading(name), footer=_shown(name, total[name]), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_plain(row[name]) for name in groups), *(_shown(name, row[name]) for name in measures))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table if rows else f"Nothing was spent from {report['from']} to {report['to']}.")


def _heading(name: str) -> str:
    heading = name.replace("_tokens", "").replace("_", " ")
    return f"{heading} USD" if name in MONEY else heading


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)


def _shown(name: str, value: Any) -> str:
    return str(value) if name in MONEY else f"{int(value):,}"
