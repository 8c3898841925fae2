"""Questions to the ledger are asked after what is durable in the journals has reached it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click

from gateway.adapters.journal import journals
from gateway.adapters.journal.backlog import unshipped_entries
from gateway.adapters.postgres.reports import Reports
from gateway.cli.administering import usage
from gateway.cli.common import database, fail, settings_with
from gateway.core.fields import FieldError
from gateway.core.spend import COLUMNS, Selection, parse_conditions
from gateway.http.books import period
from gateway.pipeline.ports import StoreUnavailableError

T = TypeVar("T")
WHERE: Final = click.option(
    "--where",
    multiple=True,
    metavar="GROUP=VALUE",
    help="Only these, any number of times: of one group any value, of several groups all. Groups: "
    f"{', '.join(COLUMNS)}, tag:NAME; team= and tag:NAME= are what has none.",
)
SHIPPED_SECONDS_MAX: Final = 5.0
SHIPPED_POLL_SECONDS: Final = 0.05


def asked_period(start: str | None, end: str | None, tz: str) -> tuple[datetime, datetime]:
    """The period of ``--from``, ``--to`` and ``--tz``; what is wrong with one of them is bad usage."""
    try:
        return period(start, end, tz, now=datetime.now(UTC))
    except FieldError as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.field}") from None


def asked_selection(start: str | None, end: str | None, tz: str, where: Sequence[str]) -> Selection:
    """What ``--from``, ``--to``, ``--tz`` and ``--where`` select, for everybody's eyes."""
    begins, ends = asked_period(start, end, tz)
    return Selection(start=begins, end=ends, timezone=tz, where=usage(lambda: parse_conditions(where)))


@contextmanager
def settled_database() -> Iterator[str]:
    """The URL of the database in force, once what is durable in the journals has reached it. Ends with status 1 where
    it is away."""
    settings = settings_with()
    with database(settings) as url:

        async def wait() -> None:
            reports = Reports(url)
            try:
                _tell_behind(await _wait_until_shipped(settings.data_dir, reports))
            finally:
                await reports.close()

        try:
            asyncio.run(wait())
            yield url
        except StoreUnavailableError:
            fail("the database cannot be reached.")


def ask_ledger(question: Callable[[Reports], Awaitable[T]]) -> T:
    """Asks the database in force, after what is durable in the journals has reached it."""
    return ask_books(lambda _, reports: question(reports))


def ask_books(question: Callable[[str, Reports], Awaitable[T]]) -> T:
    """The same for whoever needs the database's URL besides."""
    settings = settings_with()
    with database(settings) as url:

        async def ask() -> T:
            reports = Reports(url)
            try:
                _tell_behind(await _wait_until_shipped(settings.data_dir, reports))
                return await question(url, reports)
            finally:
                await reports.close()

        try:
            return asyncio.run(ask())
        except StoreUnavailableError:
            fail("the database cannot be reached.")


def _tell_behind(behind: int) -> None:
    if behind:
        click.echo(f"gateway: {behind} attempts are not in the database yet; figures lag.", err=True)


async def _wait_until_shipped(data_dir: Path, reports: Reports) -> int:
    """Waits a moment for a running gateway to ship what it has settled; how many entries are left behind."""
    deadline = time.monotonic() + SHIPPED_SECONDS_MAX
    while True:
        behind = unshipped_entries(data_dir, await reports.journal_offsets())
        if not behind or time.monotonic() >= deadline or not any(found.is_live for found in journals(data_dir)):
            return behind
        await asyncio.sleep(SHIPPED_POLL_SECONDS)
