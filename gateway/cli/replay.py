"""`gateway replay`: what a trace, or one's own past, would have cost under other policies, prices and providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.adapters.postgres.reports import Reports
from gateway.catalog import load
from gateway.catalog.scenario import configured_scenario, read_scenario
from gateway.cli.asking import ask_ledger, asked_period
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, print_json
from gateway.core.catalogue import Catalogue, Policy
from gateway.core.fields import parse_moment
from gateway.core.money import Money
from gateway.replay.comparison import Comparison, Run, compare, runs_of
from gateway.replay.results import percentile
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.trace import TraceError, read_trace
from gateway.settings import environment

_COLUMNS: Final = (
    ("spend", "spend_usd"),
    ("to best alone", "ratio_to_best_alone"),
    ("cached", "cached_share"),
    ("moves", "moves"),
    ("holds", "holds"),
    ("failed tries", "failed_attempts"),
    ("refused", "refusals"),
    ("unserved", "unserved"),
    ("waited s", "waited_seconds"),
    ("ttft p50", "ttft_seconds_p50"),
    ("ttft p95", "ttft_seconds_p95"),
)


@click.command("replay")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="A file of requests.")
@click.option("--from", "start", help="One's own past instead: its first moment.")
@click.option("--to", "end", help="Its end, itself not included; now without it.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates.")
@click.option("--scenario", type=click.Path(path_type=Path, dir_okay=False), help="Prices, caches, limits, outages.")
@CONFIG
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice([each.value for each in Policy]),
    help="Only this; all without it.",
)
@click.option("--model", help="The model that is asked for; the first that is served without it.")
@click.option("--at", help="When the first request comes: prices from then on. Now without it, or when it came.")
@JSON
@expected_errors
def replay(
    trace: Path | None,
    start: str | None,
    end: str | None,
    tz: str,
    scenario: Path | None,
    config_dir: Path | None,
    policies: tuple[str, ...],
    model: str | None,
    at: str | None,
    *,
    as_json: bool,
) -> None:
    """What requests would have cost under each policy, and with each provider alone.

    The requests are those of a trace (one JSON object a line: timestamp in ms, input_length, output_length, and
    hash_ids of blocks of 512 tokens), or those of the ledger's own past. Providers are as configured, with caches of
    ten minutes, or as a scenario file describes them.
    """
    if (trace is None) == (start is None and end is None):
        raise click.UsageError("Name the requests with either --trace FILE or --from and --to.")
    begins_at = _moment(at)
    world = _world(scenario, config_dir, model, begins_at or datetime.now(UTC).replace(microsecond=0))
    if trace is not None:
        rows, source = _read(trace, world.model.name), {"trace": str(trace)}
    else:
        wanted = None if model is None and world.stands_alone else world.model.name
        rows, source = _past(*asked_period(start, end, tz), wanted)
        if begins_at is None:
            world = replace(world, begins_at=datetime.fromtimestamp(int(rows[0].at), UTC))
    chosen = [Policy(each) for each in dict.fromkeys(policies)] or list(Policy)
    with _progress(runs_of(world, chosen) * len(rows)) as tell:
        found = compare(rows, world, chosen, tell)
    result = _result(source, rows, world, found)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _past(start: datetime, end: datetime, model: str | None) -> tuple[list[Row], dict[str, str]]:
    """The requests of a period whose prefixes are on record, of one model where it is named."""

    async def ask(reports: Reports) -> list[Row]:
        return [row async for row in reports.past_rows(start, end, model=model)]

    rows = ask_ledger(ask)
    if not rows:
        which = "" if model is None else f" for {model}"
        fail(f"the ledger has no request{which} from {start.isoformat()} to {end.isoformat()} that can be replayed.")
    return rows, {"from": start.isoformat(), "to": end.isoformat()}


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_moment(text, UTC)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--at") from None


def _world(scenario: Path | None, config_dir: Path | None, model: str | None, begins_at: datetime) -> Scenario:
    folder = config_dir or Path(environment().get("GATEWAY_CONFIG_DIR") or "config")

    def configured() -> Catalogue:
        return load(folder, now=begins_at).catalogue

    if scenario is None:
        return configured_scenario(configured(), model=model, begins_at=begins_at, where=str(folder / "models.toml"))
    return read_scenario(scenario, configured=configured, model=model, begins_at=begins_at)


def _read(trace: Path, model: str) -> list[Row]:
    try:
        with trace.open("rb") as lines:
            return read_trace(lines, model=model)
    except TraceError as error:
        fail(f"{trace}:{error.line}: {error}")
    except OSError as error:
        fail(f"{trace} cannot be read: {error.strerror or type(error).__name__}.")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("replaying", total=total)
        yield lambda done: bar.update(task, completed=done)


def _result(source: dict[str, str], rows: list[Row], world: Scenario, found: Comparison) -> dict[str, Any]:
    best = found.best_alone
    return {
        "source": {
            **source,
            "requests": len(rows),
            "conversations": found.conversations,
            "seconds": round(rows[-1].at - rows[0].at, 3),
            "input_tokens": sum(row.input_tokens for row in rows),
            "output_tokens": sum(row.output_tokens for row in rows),
        },
        "model": world.model.name,
        "at": world.begins_at.isoformat().replace("+00:00", "Z"),
        "policies": [{"policy": run.policy.value, **_figures(run, found)} for run in found.policies],
        "providers_alone": [{"provider": run.provider, **_figures(run, found)} for run in found.alone],
        "actual": _actual(rows),
        "best_alone": None if best is None else {"provider": best.provider, "spend_usd": str(best.tally.expected)},
    }


def _actual(rows: list[Row]) -> dict[str, Any] | None:
    """What was really paid; None for a trace."""
    served = [row.served for row in rows if row.served is not None]
    if not served:
        return None
    cached = sum(each.cached_tokens for each in served)
    return {
        "requests": len(served),
        "spend_usd": str(Money.total(each.cost for each in served)),
        "cached_share": round(cached / sum(row.input_tokens for row in rows), 6),
    }


def _figures(run: Run, found: Comparison) -> dict[str, Any]:
    tally, ratio = run.tally, found.ratio(run)
    first = sorted(tally.first_token_seconds)
    return {
        "spend_usd": str(tally.expected),
        "billed_usd": str(tally.billed),
        "ratio_to_best_alone": None if ratio is None else round(ratio, 6),
        "requests": tally.requests,
        "unserved": tally.unserved,
        "refusals": tally.refusals,
        "failed_attempts": tally.failures,
        "input_tokens": tally.input_tokens,
        "cached_share": round(tally.cached_share, 6),
        "output_tokens": tally.output_tokens,
        "moves": tally.moves,
        "holds": tally.held,
        "held_seconds": round(tally.held_seconds, 3),
        "waited_seconds": round(sum(tally.waited_seconds), 3),
        "ttft_seconds_p50": round(percentile(first, 0.5), 3),
        "ttft_seconds_p95": round(percentile(first, 0.95), 3),
        "accounts": [
            {
                "provider": provider,
                "account": account,
                "requests": each.requests,
                "failed_attempts": each.failures,
                "input_tokens": each.input_tokens,
                "cached_tokens": each.cached_tokens,
                "spend_usd": str(each.expected),
                "billed_usd": str(each.billed),
            }
            for (provider, account), each in sorted(tally.accounts.items())
        ],
    }


def _print(result: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    source = result["source"]
    console.print(
        f"{source['requests']:,} requests of {source['conversations']:,} conversations in {source['seconds']:,.0f} s, "
        f"{source['input_tokens']:,} tokens in, {source['output_tokens']:,} out; {result['model']}, "
        f"prices of {result['at']}",
        highlight=False,
    )
    table = Table()
    table.add_column("policy")
    for title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for each in result["policies"]:
        table.add_row(each["policy"], *(_cell(each, key) for _, key in _COLUMNS))
    actual = result["actual"]
    if actual is not None:
        table.add_row("as it was", *(_cell(actual, key) if key in actual else "" for _, key in _COLUMNS))
    table.add_section()
    for each in result["providers_alone"]:
        table.add_row(f"all to {each['provider']}", *(_cell(each, key) for _, key in _COLUMNS))
    console.print(table)
    best = result["best_alone"]
    if best is not None:
        console.print(
            f"Best provider alone, in hindsight: {best['provider']}, {best['spend_usd']} USD", highlight=False
        )
    console.print(
        "spend: USD, averaged over whether providers ignore their caches; cached: share of input tokens read from "
        "caches; moves: conversations that left an account which would have taken them",
        highlight=False,
    )


def _cell(each: dict[str, Any], key: str) -> str:
    value = each[key]
    if value is None:
        return "–"
    if key == "spend_usd":
        return f"{float(value):,.4f}"
    if key == "cached_share":
        return f"{value:.1%}"
    if key == "ratio_to_best_alone":
        return f"{value:.3f}"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
