"""`gateway report savings`: what routing saved against one choice for everything, and what that figure is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.core.shadow import LIST_PRICE

NOTES: Final = (
    "actual: the ledger's cost of these requests, failed attempts included; failed: how much of it bought no answer.",
    "would have cost: predicted for the very same requests, all sent there, without a failure or a limit and with the",
    "  discounts that its cache would have given. It is never list price without cache.",
    "saved = would have cost - actual; negative where the one choice would have been cheaper.",
    "95 % band: where the truth lies, by what was measured. 'assumed': nothing was served there, so nothing is known",
    "  of its cache, and the band reaches from all cached to nothing cached.",
    "error on its own requests: the same prediction held against what that provider really billed.",
    "saved by providers' caches: their discounts on what they served; the providers' merit, and in no figure above.",
)


@contextmanager
def progress(start: datetime, end: datetime) -> Iterator[Any]:
    """A bar on a terminal, which moves with the moments of the requests that are told to it; none in a pipe."""
    seconds = max(1.0, (end - start).total_seconds())
    columns = (TextColumn("Adding up"), BarColumn(), TextColumn("{task.fields[at]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=seconds, at="")

        def told(request: Any) -> None:
            done = (request.at - start).total_seconds()
            bar.update(task, completed=done, at=request.at.strftime("%Y-%m-%d %H:%M"))

        yield told


def print_savings(report: Mapping[str, Any]) -> None:
    """Prints the report as people read it; plain text in a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(f"Savings from {report['from']} to {report['to']}", highlight=False)
    if report["requests_left_out"]:
        console.print(
            f"{report['requests_left_out']:,} of {report['requests']:,} requests ({report['cost_left_out']} USD) are "
            "left out: nobody answered them, or their prefixes were not on record yet.",
            highlight=False,
        )
    if not report["models"]:
        console.print("There is nothing to compare.")
        return
    for model in report["models"]:
        _print_model(console, model)
    console.print()
    for note in NOTES:
        console.print(f"  {note}", highlight=False)


def _print_model(console: Console, model: Mapping[str, Any]) -> None:
    console.print(
        f"\n{model['model']}: {model['requests']:,} requests, actual {model['actual']} USD, of it failed "
        f"{model['failed']} USD; saved by providers' caches {model['saved_by_provider_caches']} USD",
        highlight=False,
    )
    table = Table()
    for name in ("had it all gone to", "requests", "would have cost USD", "95 % band USD", "saved USD", "saved"):
        table.add_column(name, justify="left" if name == "had it all gone to" else "right")
    table.add_column("error on its own requests", justify="right")
    for each in model["baselines"]:
        name = f"the lowest {LIST_PRICE}" if each["baseline"] == LIST_PRICE else each["baseline"]
        table.add_row(
            name,
            f"{each['requests']:,}",
            _short(each["cost"]),
            f"{_short(each['cost_low'])} to {_short(each['cost_high'])}",
            _short(each["saved"]),
            "–" if each["saved_percent"] is None else f"{each['saved_percent']:+.1f} %",
            _error(each),
        )
    console.print(table)


def _error(baseline: Mapping[str, Any]) -> str:
    accuracy = baseline["accuracy"]
    if accuracy is None:
        return "–" if baseline["measured"] else "assumed"
    error = f"{accuracy['error_percent']:+.2f} %"
    if accuracy["error_percent_low"] is None:
        return error
    return f"{error} ({accuracy['error_percent_low']:+.2f} to {accuracy['error_percent_high']:+.2f})"


def _short(amount: str) -> str:
    """A prediction needs no more than micro-dollars; the exact figure is in ``--json``."""
    return f"{float(amount):.6f}"
