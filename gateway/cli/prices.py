"""`gateway prices`: what is charged for what, since when, says who, and what looks wrong about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.catalog import CatalogError, Finding, Loaded, load
from gateway.catalog.review import Change, State, changes, compare_with_maker, stale_prices, state, unpriced
from gateway.cli.repricing import reprice
from gateway.core.pricing import Price
from gateway.http.explained import price_json
from gateway.settings import environment

_CONFIG = click.option(
    "--config",
    "config_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with providers.toml, models.toml and prices.toml; GATEWAY_CONFIG_DIR or ./config without it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_AMOUNTS = ("input", "cached_input", "output", "cache_write")
_LIST_COLUMNS = ("provider", "model", "state", "effective_from", *_AMOUNTS, "checked_at", "source")
_DIFF_COLUMNS = ("model", "provider", "component", "reference", "reference_usd", "usd", "percent")
_CHANGE_COLUMNS = ("change", "side", "provider", "model", "effective_from", *_AMOUNTS)
_WIDTH_MAX = 1_000
_RIGHT = frozenset({"input", "cached_input", "output", "reference_usd", "usd", "percent"})


@click.group()
def prices() -> None:
    """Price tables: what is charged for what, and since when. USD per 1,000,000 tokens."""


prices.add_command(reprice)


@prices.command("list")
@click.option("--provider", help="Only this provider.")
@click.option("--model", help="Only this model, by name or alias.")
@click.option("--current", is_flag=True, help="Only rows in force now.")
@_CONFIG
@_JSON
def list_prices(
    provider: str | None, model: str | None, config_dir: Path | None, *, current: bool, as_json: bool
) -> None:
    """Every price row with where it stands in time, and what is served without a price."""
    now = datetime.now(UTC)
    catalogue = _load_or_exit(config_dir, now=now).catalogue
    public = None if model is None else catalogue.aliases.get(model, model)

    def is_wanted(row_provider: str, row_model: str) -> bool:
        return provider in (None, row_provider) and public in (None, row_model)

    table = catalogue.prices
    rows = [_row(row, state(table, row, now=now)) for row in table.rows() if is_wanted(row.provider, row.model)]
    rows = [row for row in rows if not current or row["state"] == "in force"]
    missing = [
        {"provider": each.provider, "model": each.model}
        for each in unpriced(catalogue, now=now)
        if is_wanted(each.provider, each.model)
    ]
    if as_json:
        _print_json({"prices": rows, "unpriced": missing})
        return
    blank = dict.fromkeys(_LIST_COLUMNS) | {"state": "no price"}
    _print_table(_LIST_COLUMNS, [*rows, *(blank | each for each in missing)])


@prices.command("check")
@_CONFIG
@_JSON
@click.pass_context
def check_prices(context: click.Context, config_dir: Path | None, *, as_json: bool) -> None:
    """Everything wrong with the configuration, and prices nobody has compared with their source for 180 days."""
    now = datetime.now(UTC)
    folder = _folder(config_dir)
    try:
        loaded = load(folder, now=now)
        findings = (*loaded.findings, *stale_prices(loaded, folder, now=now))
        findings = tuple(sorted(findings, key=lambda each: (each.file, each.line)))
    except CatalogError as error:
        findings = error.findings
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        warnings = len(findings) - errors
        _print_json({"findings": [asdict(each) for each in findings], "errors": errors, "warnings": warnings})
    else:
        _print_findings(findings, errors)
    if errors:
        context.exit(1)


@prices.command("diff")
@click.option(
    "--against",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Another configuration folder: what has changed from it to this one.",
)
@_CONFIG
@_JSON
def diff_prices(against: Path | None, config_dir: Path | None, *, as_json: bool) -> None:
    """Each provider's prices in force beside those of the model's maker; or two configurations, with --against."""
    now = datetime.now(UTC)
    catalogue = _load_or_exit(config_dir, now=now).catalogue
    if against is not None:
        _print_changes(changes(_load_or_exit(against, now=now).catalogue.prices, catalogue.prices), as_json=as_json)
        return
    rows = [
        {
            "model": each.model,
            "provider": each.provider,
            "component": each.component,
            "reference": each.reference,
            "reference_usd": str(each.reference_usd),
            "usd": str(each.usd),
            "percent": None if each.percent is None else f"{each.percent:+}",
        }
        for each in compare_with_maker(catalogue, now=now)
    ]
    if as_json:
        _print_json({"rows": rows})
        return
    _print_table(_DIFF_COLUMNS, rows)


def _folder(config_dir: Path | None) -> Path:
    return config_dir or Path(environment().get("GATEWAY_CONFIG_DIR") or "config")


def _load_or_exit(config_dir: Path | None, *, now: datetime) -> Loaded:
    try:
        return load(_folder(config_dir), now=now)
    except CatalogError as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(1) from None


def _row(price: Price, standing: State) -> dict[str, Any]:
    named = {"provider": price.provider, "model": price.model, "state": standing}
    return {**named, **price_json(price), "price_id": price.price_id}


def _print_changes(found: Sequence[Change], *, as_json: bool) -> None:
    if as_json:
        _print_json(
            {"changes": [{"kind": e.kind, "before": _amounts(e.before), "after": _amounts(e.after)} for e in found]}
        )
        return
    rows = [
        {"change": each.kind} | (_amounts(side) or {}) | {"side": name}
        for each in found
        for name, side in (("before", each.before), ("after", each.after))
        if side is not None
    ]
    _print_table(_CHANGE_COLUMNS, rows)


def _amounts(price: Price | None) -> dict[str, Any] | None:
    if price is None:
        return None
    row = _row(price, "in force")
    del row["state"]
    return row


def _print_findings(findings: Sequence[Finding], errors: int) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        style = "red" if finding.level == "error" else "yellow"
        console.print(Text(str(finding), style=style if console.is_terminal else ""))
    console.print(Text(f"{errors} errors, {len(findings) - errors} warnings"))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """A table for eyes on a terminal; tab-separated lines under one of names in a pipe."""
    console = Console(width=_WIDTH_MAX)  # a narrow terminal wraps lines, and no figure is cut
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    if not console.is_terminal:
        for line in [list(columns), *cells]:
            click.echo("\t".join(line))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in _RIGHT else "left", no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case dict():
            return " ".join(f"{key}={amount}" for key, amount in value.items())
        case _:
            return str(value)
