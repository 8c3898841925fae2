"""A spend report as people read it: groups left, amounts right, the total last; plain text in a pipe.

Amounts are exact. Where a terminal is too narrow for all columns, the lesser ones are left out, and it says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.core.spend import COSTS_BY_CLASS, RATIOS, SpendQuery, SpendRow, Total, moment_in

TABLE_ROWS_MAX: Final = 2_000
"""More rows than this nobody reads in a table."""
WIDTH_IN_A_PIPE: Final = 200
_LESSER: Final = (
    *("cache_write_tokens", "reasoning_tokens", "cached_tokens", "restated_cost", *reversed(COSTS_BY_CLASS)),
    *("aborted_attempts", "aborted_cost", "output_tokens", "input_tokens", "attempts", "estimated_share"),
    *("failed_attempts", "cache_hit_rate", "usd_per_million", "estimated_cost", "failed_cost"),
)
"""What a narrow terminal leaves out, in this order."""
_BORDER: Final = 3
"""What rules a column off takes so many places."""


async def show_spend(query: SpendQuery, rows: AsyncIterator[SpendRow]) -> None:
    """Prints the first rows and the total of all."""
    total = Total(query)
    shown = []
    async for row in rows:
        total.add(row)
        if total.rows <= TABLE_ROWS_MAX:
            shown.append(query.shown(row))
    selected = query.selection
    print_spend(
        {
            "from": moment_in(selected.timezone, selected.start),
            "to": moment_in(selected.timezone, selected.end),
            "rows": shown,
            "total": total.shown(),
        },
        rows_left_out=total.rows - len(shown),
    )


def print_spend(report: Mapping[str, Any], *, rows_left_out: int = 0) -> None:
    """Prints ``{"from", "to", "rows", "total"}`` as a table."""
    rows, total = report["rows"], report["total"]
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_IN_A_PIPE)
    if not rows:
        console.print(f"Nothing was spent from {report['from']} to {report['to']}.", highlight=False)
        return
    cells = _cells(report)
    left_out = []
    for name in _LESSER:
        if sum(max(map(cell_len, column)) + _BORDER for column in cells.values()) < console.width:
            break
        if cells.pop(name, None):
            left_out.append(name)
    table = Table(title=f"Spend from {report['from']} to {report['to']}", title_justify="left", show_footer=True)
    for name, (heading, footer, *_) in cells.items():
        is_measure = name in total
        table.add_column(
            Text(heading),
            footer=footer,
            justify="right" if is_measure else "left",
            overflow="fold",
            no_wrap=is_measure,
        )
    for row in zip(*(column[2:] for column in cells.values()), strict=True):
        table.add_row(*map(Text, row))  # a name is what it is, whatever it would mean as markup
    console.print(table)
    if left_out:
        console.print(
            f"No room here for {', '.join(left_out)}: widen the terminal, or use --format csv.", highlight=False
        )
    if rows_left_out:
        console.print(
            f"{rows_left_out:,} more rows are in the total and not in the table; --format csv has them all.",
            highlight=False,
        )


def _cells(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each column: its heading, its footer and its rows."""
    rows, total = report["rows"], report["total"]
    groups = [name for name in rows[0] if name not in total]
    cells = {name: [name, "", *(_shown(row[name]) for row in rows)] for name in groups}
    for name in groups[:1]:
        cells[name][1] = "total"
    for name in total:
        if name != "cache_write_tokens" or total[name]:
            cells[name] = [_heading(name), *(_shown(row[name]) for row in (total, *rows))]
    return cells


def _heading(name: str) -> str:
    if name in RATIOS:
        return name.replace("usd", "USD").replace("_", " ")
    heading = name.replace("_tokens", "").replace("_", " ")
    return f"{heading} USD" if name.endswith("cost") else heading


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
