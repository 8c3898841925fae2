"""`gateway report focus`: a month, or any period, as FOCUS files that a controller signs and a program reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.adapters.postgres.charges import Closing, is_month
from gateway.adapters.postgres.facts import next_month
from gateway.adapters.postgres.reports import Reports
from gateway.cli.asking import ask_ledger, asked_period
from gateway.cli.common import JSON, expected_errors, fail, print_json
from gateway.cli.focus_files import Written, write_focus
from gateway.core.focus import FocusRows
from gateway.core.focus_columns import DRAFT_VERSIONS, FOCUS_VERSION, FOCUS_VERSIONS
from gateway.core.money import Money
from gateway.http.focus import focus_csv

FORMS: Final = {"csv": ("csv",), "parquet": ("parquet",), "both": ("csv", "parquet")}
FOCUS_VERSION_OPTION = click.option(
    "--focus-version",
    "version",
    type=click.Choice(FOCUS_VERSIONS),
    default=FOCUS_VERSION,
    show_default=True,
    help=f"Version of FOCUS; {', '.join(sorted(DRAFT_VERSIONS))} is a draft, whose names may still change.",
)


@click.command("focus")
@click.option("--month", help="A calendar month in UTC, such as 2026-10.")
@click.option("--from", "start", help="First moment, instead of a month; the start of this month without either.")
@click.option("--to", "end", help="End, itself not included; now without it.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the files; the current one without it.",
)
@click.option("--format", "form", type=click.Choice(list(FORMS)), default="csv", show_default=True)
@FOCUS_VERSION_OPTION
@JSON
@expected_errors
def focus(
    month: str | None, start: str | None, end: str | None, output: Path, form: str, version: str, *, as_json: bool
) -> None:
    """Charges as FOCUS files, with metadata and checksums beside them."""
    begins, ends = _period(month, start, end)
    now = datetime.now(UTC)

    async def export(reports: Reports) -> tuple[Written, Closing | None]:
        closing = await reports.closing(begins) if is_month(begins, ends) else None
        with _progress(begins, min(ends, now)) as told:
            written = await write_focus(
                reports.charges(begins, ends),
                await reports.billing_account(begins, ends),
                version=version,
                folder=output,
                stem=f"focus-{version}-{_named(begins, ends)}",
                forms=FORMS[form],
                created_at=now if closing is None else closing.closed_at,
                told=told,
            )
        return written, closing

    try:
        written, closing = ask_ledger(export)
    except OSError as error:
        fail(f"the files cannot be written to {output}: {error.strerror or error}.")
    _tell(written, begins, ends, closing, version=version, as_json=as_json)


async def print_focus(reports: Reports, begins: datetime, ends: datetime, version: str) -> None:
    """The CSV file of a period, on standard output as it comes."""
    rows = FocusRows(await reports.billing_account(begins, ends), version=version)
    async for piece in focus_csv(reports.charges(begins, ends), rows):
        click.echo(piece, nl=False)


def _period(month: str | None, start: str | None, end: str | None) -> tuple[datetime, datetime]:
    if month is None:
        return asked_period(start, end, "UTC")
    if start is not None or end is not None:
        raise click.BadParameter("give a month, or a period by --from and --to, not both.", param_hint="--month")
    try:
        begins = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise click.BadParameter(f"{month[:40]!r} is not a month such as 2026-10.", param_hint="--month") from None
    return begins, next_month(begins)


def _named(begins: datetime, ends: datetime) -> str:
    """A month by its name, another period by both its ends."""
    if is_month(begins, ends):
        return begins.strftime("%Y-%m")
    moments = (begins, ends)
    are_midnights = all((each.hour, each.minute, each.second) == (0, 0, 0) for each in moments)
    return "_".join(each.strftime("%Y-%m-%d" if are_midnights else "%Y-%m-%dT%H%M%SZ") for each in moments)


@contextmanager
def _progress(begins: datetime, ends: datetime) -> Iterator[Callable[[datetime], None]]:
    """A bar on a terminal, which moves with the hours of the charges; none in a pipe."""
    columns = (TextColumn("Exporting"), BarColumn(), TextColumn("{task.fields[at]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=max(1.0, (ends - begins).total_seconds()), at="")

        def told(hour: datetime) -> None:
            bar.update(task, completed=(hour - begins).total_seconds(), at=hour.strftime("%Y-%m-%d %H:%M"))

        yield told


def _tell(
    written: Written, begins: datetime, ends: datetime, closing: Closing | None, *, version: str, as_json: bool
) -> None:
    """What was written; status 1 if a closed month is not what was signed."""
    digests = {file.path.suffix: file.sha256 for file in written.files}
    is_signed = None
    if closing is not None and version == FOCUS_VERSION and ".csv" in digests:
        is_signed = digests[".csv"] == closing.focus_sha256.hex()
    if as_json:
        print_json(
            {
                "from": begins.isoformat(),
                "to": ends.isoformat(),
                "focus_version": version,
                "state": "open" if closing is None else "closed",
                "rows": written.rows,
                "billed_cost": str(written.billed),
                "matches_closing": is_signed,
                "files": [{"path": str(file.path), "sha256": file.sha256} for file in written.files],
            }
        )
    else:
        _print(written.rows, written.billed, version, is_closed=closing is not None)
        for file in written.files:
            click.echo(f"{file.sha256}  {file.path}")
    if is_signed is False:
        fail(
            "this is not the file that the month was closed with: its rows or the code that exports them have changed. "
            "`gateway ledger verify` says which rows."
        )


def _print(rows: int, billed: Money, version: str, *, is_closed: bool) -> None:
    draft = " (draft)" if version in DRAFT_VERSIONS else ""
    state = "closed" if is_closed else "open: what is still booked into it is not in these files"
    click.echo(f"FOCUS {version}{draft}: {rows:,} rows, BilledCost {billed} USD; the period is {state}.")
