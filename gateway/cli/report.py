"""`gateway report`: spend by any mix of groups, and one request explained to the last digit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from gateway.adapters.postgres.reports import Reports
from gateway.catalog import load
from gateway.cli.administering import usage
from gateway.cli.asking import WHERE, ask_ledger, asked_period, asked_selection
from gateway.cli.chart import show_chart
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, print_json, settings_with
from gateway.cli.explaining import print_explained
from gateway.cli.focus import FOCUS_VERSION_OPTION, focus, print_focus
from gateway.cli.savings import print_savings, progress
from gateway.cli.spend import show_spend
from gateway.cli.writing import write
from gateway.core.spend import COLUMNS, SpendQuery, parse_groups
from gateway.http.books import report_pieces
from gateway.http.explained import with_prices
from gateway.http.savings import counted, rendered

UPSTREAM_LOOK_BACK: Final = timedelta(days=62)
"""A bill that is looked into is of this month or the last."""


@click.group()
def report() -> None:
    """Spend, and what it is made of."""


@report.command("spend")
@click.option("--from", "start", help="First moment; the start of this month without it.")
@click.option("--to", "end", help="End, itself not included; now without it.")
@click.option("--group-by", default="key", show_default=True, help=f"Any of {', '.join(COLUMNS)}, tag:NAME.")
@WHERE
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates and of day, hour and month.")
@click.option("--detail", is_flag=True, help="Also failures, costs by class, shares and USD per 1,000,000 tokens.")
@click.option("--chart", is_flag=True, help="Bars instead of the table.")
@click.option("--format", "form", type=click.Choice(["table", "json", "jsonl", "csv", "focus"]), default="table")
@FOCUS_VERSION_OPTION
@JSON
@expected_errors
def spend(
    start: str | None,
    end: str | None,
    group_by: str,
    where: tuple[str, ...],
    tz: str,
    form: str,
    version: str,
    **flags: bool,
) -> None:
    """Spend of a period, by any mix of groups; FOCUS has a grouping of its own."""
    selected = asked_selection(start, end, tz, where)
    query = SpendQuery(selection=selected, groups=usage(lambda: parse_groups(group_by)), detail=flags["detail"])
    form = "json" if flags["as_json"] else form
    if flags["chart"] and form != "table":
        raise click.UsageError("--chart draws for eyes; leave out --json and --format.")
    if form == "focus":
        if where:
            raise click.UsageError("FOCUS files are of everything in a period; leave out --where.")
        ask_ledger(lambda reports: print_focus(reports, selected.start, selected.end, version))
        return
    if form == "table":
        show = show_chart if flags["chart"] else show_spend
        ask_ledger(lambda reports: show(query, reports.spend(query)))
    else:
        ask_ledger(lambda reports: write(report_pieces(query, reports.spend(query), form)))  # type: ignore[arg-type]


report.add_command(focus)


@report.command("savings")
@click.option("--from", "start", help="First moment; the start of this month without it.")
@click.option("--to", "end", help="End, itself not included; now without it.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates.")
@click.option("--model", help="One model only, by its public name.")
@CONFIG
@JSON
@expected_errors
def savings(
    start: str | None, end: str | None, tz: str, model: str | None, config_dir: Path | None, *, as_json: bool
) -> None:
    """What routing saved against one choice for everything, and apart from it what the providers' caches saved."""
    begins, ends = asked_period(start, end, tz)
    catalogue = load(settings_with(config_dir=config_dir).config_dir, now=datetime.now(UTC)).catalogue
    name = model and catalogue.aliases.get(model, model)
    with progress(begins, ends) as told:
        found = ask_ledger(lambda reports: counted(reports.past(begins, ends, model=name), catalogue, told=told))
    shown = rendered(found, begins, ends)
    if as_json:
        print_json(shown)
    else:
        print_savings(shown)


@report.command("explain")
@click.argument("request_id", required=False)
@click.option("--upstream", help="The provider's own id of it instead, as bills name it; looked for in the period.")
@click.option("--from", "start", help="With --upstream: first moment of the period; 62 days ago without it.")
@click.option("--to", "end", help="With --upstream: its end, itself not included; now without it.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates.")
@CONFIG
@JSON
@expected_errors
def explain(
    request_id: str | None,
    upstream: str | None,
    start: str | None,
    end: str | None,
    tz: str,
    config_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    """One request: every candidate and why it won or lost, every attempt and correction, every line of its cost."""
    if (request_id is None) == (upstream is None):
        raise click.UsageError("Name the request by its id, or by the provider's with --upstream.")
    begins, ends = asked_period(start or (datetime.now(UTC) - UPSTREAM_LOOK_BACK).isoformat(), end, tz)

    async def ask(reports: Reports) -> dict[str, Any] | None:
        name = request_id if upstream is None else await reports.find_upstream(upstream, begins, ends)
        return None if name is None else await reports.explain(name)

    found = ask_ledger(ask)
    if found is None and upstream is not None:
        period = f"from {begins.isoformat()} to {ends.isoformat()}"
        fail(f"no provider has called a request {upstream!r} {period}; --from and --to name another period.")
    if found is None:
        fail(f"there is no request {request_id!r} in the ledger.")
    shown = with_prices(
        found, load(settings_with(config_dir=config_dir).config_dir, now=datetime.now(UTC)).catalogue.prices
    )
    if as_json:
        print_json(shown)
    else:
        print_explained(shown)
