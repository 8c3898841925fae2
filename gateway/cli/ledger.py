"""`gateway ledger`: months are looked at, closed and verified, and single attempts put right."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, Final

import click

from gateway.adapters.clock import SystemClock
from gateway.adapters.journal.backlog import left_behind, unshipped_entries
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.reports import Reports
from gateway.cli.administering import tell_all
from gateway.cli.asking import ask_books
from gateway.cli.common import JSON, expected_errors, fail, print_json, settings_with
from gateway.cli.correcting import refund, restate
from gateway.cli.digesting import digest_month
from gateway.cli.ledger_list import list_rows
from gateway.cli.months import MONTH, counted
from gateway.cli.verifying import verify
from gateway.core.closing import (
    Closing,
    MonthState,
    NotClosedError,
    absences,
    closed_already,
    month_end,
    month_text,
    obstacles,
)
from gateway.core.grants import COMMAND_LINE

_COLUMNS: Final = ("month", "state", "rows", "cost", "closed_at", "closed_by", "ledger_sha256", "focus_sha256")
_CLOSED: Final = (
    *("closed_at", "closed_by", "reason", "organisation", "ledger_sha256", "focus_sha256", "archived_at"),
)


@click.group()
def ledger() -> None:
    """The books: months are closed and verified, attempts corrected. Nothing is ever overwritten."""


for command in (list_rows, verify, refund, restate):
    ledger.add_command(command)


@ledger.command("months")
@JSON
@expected_errors
def months(*, as_json: bool) -> None:
    """List the months of the books: open, closed or archived, with what they come to and their checksums."""

    async def question(url: str, _: Reports) -> list[MonthState]:
        store = PostgresClosings(url, clock=SystemClock())
        try:
            return await store.months()
        finally:
            await store.close()

    rows = [month_json(state) for state in ask_books(question)]
    if not as_json:
        short = ("ledger_sha256", "focus_sha256")
        rows = [{**row, **{name: row[name] and row[name][:12] for name in short}} for row in rows]
    tell_all(rows, _COLUMNS, as_json=as_json)


@ledger.command("close")
@click.argument("month", type=MONTH)
@click.option("--reason", required=True, help="Why now; stands in the ledger and in the audit for good.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can answer.")
@click.option("--despite-absent", is_flag=True, help="Although workers have vanished: what they hold comes late.")
@JSON
@expected_errors
def close(month: datetime, reason: str, *, yes: bool, despite_absent: bool, as_json: bool) -> None:
    """Close a month (2026-10): nothing is added to it any more, and what it exports stays the same for ever.

    Later corrections count in the first open month. There is no way back.
    """
    if not reason.strip():
        raise click.BadParameter("say why; it stands in the ledger for good.", param_hint="--reason")
    data_dir = settings_with().data_dir

    async def question(url: str, reports: Reports) -> Closing:
        store = PostgresClosings(url, clock=SystemClock())
        try:
            offsets = await reports.journal_offsets()
            unshipped = unshipped_entries(data_dir, offsets, before=month_end(month))
            unready = await store.unready(month, unshipped=unshipped, left_behind=left_behind(data_dir))
            state = await store.month(month)
            if state is not None and state.closing is not None:
                raise closed_already(state.closing)
            reasons = obstacles(month, datetime.now(UTC), unready)
            reasons += [] if despite_absent else absences(unready)
            if reasons:
                raise NotClosedError(reasons)
            _ask(month, state, is_sure=yes)
            with counted("Digesting", 0 if state is None else state.rows) as told:
                return await store.close_month(
                    month, lambda: digest_month(reports, month, told), reason=reason, by=COMMAND_LINE
                )
        finally:
            await store.close()

    try:
        closing = ask_books(question)
    except NotClosedError as error:
        fail(f"{month_text(month)} was not closed.\n{error}")
    _tell(closing, as_json=as_json)


def month_json(state: MonthState) -> dict[str, Any]:
    """A month under its public names; amounts are exact decimal strings."""
    closing = state.closing
    return {
        "month": month_text(state.month),
        "state": state.state,
        "rows": state.rows,
        "cost": str(state.cost if closing is None else closing.digest.cost),
        "estimated_cost": str(state.estimated),
        "restated_cost": str(state.restated),
        **(dict.fromkeys(_CLOSED) if closing is None else closing_json(closing)),
    }


def closing_json(closing: Closing) -> dict[str, Any]:
    """How a month was closed, and the checksums of what it exports."""
    return {
        "closed_at": _moment(closing.closed_at),
        "closed_by": closing.closed_by,
        "reason": closing.reason,
        "organisation": closing.organisation_name,
        "ledger_sha256": closing.digest.ledger_sha256.hex(),
        "focus_sha256": closing.digest.focus_sha256.hex(),
        "archived_at": None if closing.archived_at is None else _moment(closing.archived_at),
    }


def _ask(month: datetime, state: MonthState | None, *, is_sure: bool) -> None:
    """Says what will be frozen, and wants to hear yes. Raises NotClosedError."""
    rows, cost = (0, "0") if state is None else (state.rows, str(state.cost))
    click.echo(f"{month_text(month)} has {rows:,} rows that come to {cost} USD.", err=True)
    if state is not None:
        click.echo(
            f"{state.estimated_percent} of that is estimated ({state.estimated} USD); {state.restated} USD restate "
            "earlier months.",
            err=True,
        )
    click.echo(
        "Closing does not compare it with any provider's bill: gateway reconcile does, and what it finds later counts "
        "in the first open month.",
        err=True,
    )
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise NotClosedError(["Nobody can be asked here whether that is right. Look at it, then add --yes."])
    if not click.confirm("Close it for good?", err=True):
        raise NotClosedError(["You have not said yes."])


def _tell(closing: Closing, *, as_json: bool) -> None:
    digest = closing.digest
    shown = {
        "month": month_text(closing.month),
        "state": "closed",
        "rows": digest.rows,
        "cost": str(digest.cost),
        **closing_json(closing),
    }
    if as_json:
        print_json(shown)
        return
    click.echo(f"{shown['month']} is closed: {digest.rows:,} rows, {digest.cost} USD.")
    click.echo(f"{shown['ledger_sha256']}  ledger (JSON Lines)")
    click.echo(f"{shown['focus_sha256']}  FOCUS (CSV)")


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
