"""`gateway ledger verify`: are closed months what they were closed as, and does everything in the books add up."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.closings import PostgresClosings
from gateway.adapters.postgres.reports import Reports
from gateway.catalog import load
from gateway.cli.asking import ask_books
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, print_json, settings_with
from gateway.cli.digesting import digest_month
from gateway.cli.months import MONTH, counted
from gateway.core.closing import Closing, MonthState, first_difference, month_text
from gateway.core.pricing import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One question to one month, and the first difference that was found; none if all is well."""

    check: str
    difference: str | None


@click.command("verify")
@click.argument("month", type=MONTH, required=False)
@CONFIG
@JSON
@expected_errors
def verify(month: datetime | None, config_dir: Path | None, *, as_json: bool) -> None:
    """Verify a month, or all of them: exports of closed ones are byte for byte what was signed, sums are the sums of
    their rows, every row costs its tokens times its price, corrections correct something. Ends with 1 where not."""
    prices = load(settings_with(config_dir=config_dir).config_dir, now=datetime.now(UTC)).catalogue.prices.rows()

    async def question(url: str, reports: Reports) -> list[tuple[MonthState, list[Verdict]]]:
        store = PostgresClosings(url, clock=SystemClock())
        try:
            found = await store.months()
            asked = [state for state in found if month in (None, state.month)]
            return [(state, await _verified(store, reports, state, prices)) for state in asked]
        finally:
            await store.close()

    found = ask_books(question)
    if month is not None and not found:
        fail(f"nothing counts in {month_text(month)}, and it was not closed.")
    is_well = all(verdict.difference is None for _, verdicts in found for verdict in verdicts)
    if as_json:
        print_json({"months": [_month_json(state, verdicts) for state, verdicts in found], "ok": is_well})
    else:
        _print(found)
    if not is_well:
        sys.exit(1)


async def _verified(
    store: PostgresClosings, reports: Reports, state: MonthState, prices: tuple[Price, ...]
) -> list[Verdict]:
    verdicts = [Verdict(check="sums", difference=await store.sums_differ(state.month, is_archived=state.is_archived))]
    if not state.is_archived:
        verdicts += [
            Verdict(check="prices", difference=await store.prices_differ(state.month, prices)),
            Verdict(check="corrections", difference=await store.corrections_differ(state.month)),
        ]
    if state.closing is not None:
        verdicts += await _exports(reports, state, state.closing)
    return verdicts


async def _exports(reports: Reports, state: MonthState, closing: Closing) -> list[Verdict]:
    """Whether a closed month exports what it was closed with."""
    with counted(f"Digesting {month_text(state.month)}", state.rows) as told:
        found, _ = await digest_month(reports, state.month, told)
    focus = None
    if found.focus_sha256 != closing.digest.focus_sha256:
        focus = f"SHA-256 {found.focus_sha256.hex()} now, {closing.digest.focus_sha256.hex()} when it was closed"
    return [
        Verdict(check="ledger", difference=first_difference(closing.digest, found)),
        Verdict(check="focus", difference=focus),
    ]


def _month_json(state: MonthState, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "month": month_text(state.month),
        "state": state.state,
        "rows": state.rows,
        "checks": [asdict(verdict) for verdict in verdicts],
        "ok": all(verdict.difference is None for verdict in verdicts),
    }


def _print(found: list[tuple[MonthState, list[Verdict]]]) -> None:
    for state, verdicts in found:
        wrong = [verdict for verdict in verdicts if verdict.difference is not None]
        checks = ", ".join(verdict.check for verdict in verdicts)
        mark = click.style("fail", fg="red") if wrong else click.style("ok", fg="green")
        click.echo(f"{mark:4}  {month_text(state.month)}  {state.state}, {state.rows:,} rows: {checks}")
        for verdict in wrong:
            click.echo(f"      {verdict.check}: {verdict.difference}")
    if not found:
        click.echo("There is nothing in the books yet.")
