"""`gateway ledger archive` and `restore`: a closed month leaves the database for checked files, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.adapters.archive.folder import ArchiveFolder
from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.archiving import PostgresArchiving, Told
from gateway.cli.common import JSON, database, expected_errors, fail, print_json, settings_with
from gateway.cli.months import MONTH
from gateway.core.archive import ArchivedMonth, NotArchivedError
from gateway.core.closing import month_text
from gateway.core.grants import COMMAND_LINE
from gateway.pipeline.ports import ArchiveUnavailableError, StoreUnavailableError

_FOLDER: Final = click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The archive's folder; GATEWAY_ARCHIVE_DIR or <data dir>/archive without it.",
)


@click.command("archive")
@click.argument("month", type=MONTH)
@_FOLDER
@JSON
@expected_errors
def archive(month: datetime, folder: Path | None, *, as_json: bool) -> None:
    """Move a closed MONTH such as 2026-08 out of the database into Parquet files.

    Reports, explanations and lists answer as before, as long as the files are where GATEWAY_ARCHIVE_DIR says. Months
    leave oldest first, from seven days after their end.
    """
    done = _done(folder, lambda archiving, told: archiving.archive(COMMAND_LINE, month, told=told))
    _tell(month, done, folder, as_json=as_json, what="left the database for")


@click.command("restore")
@click.argument("month", type=MONTH)
@_FOLDER
@JSON
@expected_errors
def restore(month: datetime, folder: Path | None, *, as_json: bool) -> None:
    """Put the MONTH that was archived last back into the database. Its files stay."""
    done = _done(folder, lambda archiving, told: archiving.restore(COMMAND_LINE, month, told=told))
    _tell(month, done, folder, as_json=as_json, what="is back in the database from")


def _done(folder: Path | None, work: Callable[[PostgresArchiving, Told], Awaitable[ArchivedMonth]]) -> ArchivedMonth:
    """What comes of the work; ends with status 1 where it cannot be done."""
    settings = settings_with()
    files = ArchiveFolder(folder or settings.archive_folder)
    with database(settings) as url, _progress() as told:

        async def working() -> ArchivedMonth:
            archiving = PostgresArchiving(url, files, clock=SystemClock())
            try:
                return await work(archiving, told)
            finally:
                await archiving.close()

        try:
            return asyncio.run(working())
        except (NotArchivedError, ArchiveUnavailableError) as error:
            fail(str(error))
        except StoreUnavailableError:
            fail("the database cannot be reached.")
        except OSError as error:
            fail(f"{error.filename or files.folder} cannot be written: {error.strerror or error}. Nothing has left.")


def _tell(month: datetime, done: ArchivedMonth, folder: Path | None, *, as_json: bool, what: str) -> None:
    settings = settings_with()
    used = (folder or settings.archive_folder).absolute()
    if as_json:
        print_json({"month": month_text(month), "folder": str(used), **msgspec.to_builtins(done)})
    else:
        click.echo(f"{month_text(month)} {what} {used}:")
        for file in (done.ledger, done.exchanges):
            click.echo(f"  {file.name}  {file.rows:,} rows, {file.bytes:,} bytes, sha256 {file.sha256}")
    if used != settings.archive_folder.absolute():
        click.echo(
            f"gateway: reports look for it in {settings.archive_folder.absolute()}; set GATEWAY_ARCHIVE_DIR.", err=True
        )


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar on a terminal for what is being done; nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} rows"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(task, description=what.capitalize(), completed=done, total=of)
