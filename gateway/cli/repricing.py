"""`gateway prices reprice`: what was rated with another price than the tables have now is rated again, by new rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.corrections import CHUNK_ENTRIES, PostgresCorrections
from gateway.adapters.postgres.reports import Reports
from gateway.catalog import load
from gateway.cli.asking import ask_books, asked_period
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, print_json, settings_with
from gateway.core.corrections import (
    ArchivedError,
    CorrectedMeanwhileError,
    CorrectionBatch,
    InForce,
    counting,
    new_correction_id,
    priced_model,
    repriced,
)
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import decimal_text
from gateway.core.pricing import PriceTable

REASON: Final = "the price tables were changed"
_COLUMNS: Final = (
    "provider",
    "price_id",
    "new_price_id",
    "counts_in",
    "attempts",
    "old_cost",
    "new_cost",
    "difference",
)


@dataclass(slots=True, kw_only=True)
class Repricing:
    """What was found due so far, summed in pico-dollars: by the price that was and is, and the month it counts in."""

    correction_id: str
    closed_until: datetime | None
    rows: dict[tuple[str, str, str, str], list[int]] = field(default_factory=dict)
    unpriced: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    written: int = 0

    def add(self, now: InForce, replacement: LedgerEntry) -> None:
        counts_at, _ = counting(now.original_started_at, self.closed_until)
        month = f"{counts_at.astimezone(UTC):%Y-%m}"
        key = (now.entry.provider, now.entry.price_id, replacement.price_id, month)
        _count(self.rows.setdefault(key, [0, 0, 0]), now.entry.cost_pico, replacement.cost_pico)

    def leave(self, now: InForce) -> None:
        key = (now.entry.provider, priced_model(now.entry), now.entry.price_id)
        _count(self.unpriced.setdefault(key, [0, 0, 0]), now.entry.cost_pico, 0)

    def shown(self, start: datetime, end: datetime, *, is_dry: bool) -> dict[str, Any]:
        """As JSON; amounts are exact decimal strings."""
        rows = [
            {
                **dict(zip(_COLUMNS[:4], key, strict=True)),
                "attempts": attempts,
                "old_cost": decimal_text(old),
                "new_cost": decimal_text(new),
                "difference": decimal_text(new - old),
            }
            for key, (attempts, old, new) in sorted(self.rows.items())
        ]
        attempts, old, new = (sum(sums[place] for sums in self.rows.values()) for place in range(3))
        return {
            "from": start.isoformat(),
            "to": end.isoformat(),
            "dry_run": is_dry,
            "correction_id": self.correction_id if self.written else None,
            "closed_until": None if self.closed_until is None else self.closed_until.astimezone(UTC).isoformat(),
            "rows": rows,
            "unpriced": [
                {"provider": provider, "model": model, "price_id": price, "attempts": count, "cost": decimal_text(cost)}
                for (provider, model, price), (count, cost, _) in sorted(self.unpriced.items())
            ],
            "total": {
                "attempts": attempts,
                "old_cost": decimal_text(old),
                "new_cost": decimal_text(new),
                "difference": decimal_text(new - old),
            },
        }


@click.command("reprice")
@click.option("--from", "start", required=True, help="First moment of the attempts to look at.")
@click.option("--to", "end", required=True, help="End, itself not included.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates.")
@click.option("--provider", help="Only this provider.")
@click.option("--model", help="Only this model, by name or alias.")
@click.option("--reason", default=REASON, show_default=True, help="Why; stands in the ledger for good.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@CONFIG
@JSON
@expected_errors
def reprice(
    start: str,
    end: str,
    tz: str,
    provider: str | None,
    model: str | None,
    reason: str,
    config_dir: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Rate attempts of a period again whose price in the tables is another now: new rows, nothing overwritten.

    What happened in a closed month is corrected in the first open one. Run it twice, and the second time does nothing.
    """
    if not reason.strip():
        raise click.BadParameter("say why; it stands in the ledger for good.", param_hint="--reason")
    begins, ends = asked_period(start, end, tz)
    catalogue = load(settings_with(config_dir=config_dir).config_dir, now=datetime.now(UTC)).catalogue
    name = model and catalogue.aliases.get(model, model)
    facts = {"from": begins.isoformat(), "to": ends.isoformat(), "provider": provider, "model": name}

    async def question(url: str, _: Reports) -> Repricing:
        store = PostgresCorrections(url, clock=SystemClock())
        try:
            with _progress() as told:
                batch = CorrectionBatch(
                    correction_id=new_correction_id(datetime.now(UTC), secrets.token_bytes(4)),
                    kind="reprice",
                    reason=reason,
                    facts=facts,
                )
                which = {"provider": provider, "model": name}
                prices = catalogue.prices
                return await _reprice(store, batch, begins, ends, which, prices, is_dry=dry_run, told=told)
        finally:
            await store.close()

    try:
        found = ask_books(question)
    except (ArchivedError, CorrectedMeanwhileError) as error:
        fail(str(error))
    shown = found.shown(begins, ends, is_dry=dry_run)
    if as_json:
        print_json(shown)
    else:
        _print(shown)


async def _reprice(
    store: PostgresCorrections,
    batch: CorrectionBatch,
    start: datetime,
    end: datetime,
    which: dict[str, str | None],
    prices: PriceTable,
    *,
    is_dry: bool,
    told: Callable[[], None],
) -> Repricing:
    """Every attempt that is due, written in parts as they are found."""
    closed_until = await store.closed_until()
    await store.refuse_archived(start)
    found = Repricing(correction_id=batch.correction_id, closed_until=closed_until)
    entries: list[LedgerEntry] = []
    async with aclosing(store.in_force_by_day(start, end, but_priced_by=prices, **which)) as due:
        async for now in due:
            told()
            pair = repriced(now, prices, correction_id=batch.correction_id, closed_until=closed_until)
            if pair is None:
                found.leave(now)
                continue
            found.add(now, pair[1])
            entries += pair
            if len(entries) >= CHUNK_ENTRIES and not is_dry:
                found.written += await store.write(batch, entries, by=COMMAND_LINE)
                entries.clear()
            elif is_dry:
                entries.clear()
    if entries:
        found.written += await store.write(batch, entries, by=COMMAND_LINE)
    return found


def _count(sums: list[int], old: int, new: int) -> None:
    sums[0] += 1
    sums[1] += old
    sums[2] += new


@contextmanager
def _progress() -> Iterator[Callable[[], None]]:
    """A count on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("Rating again: {task.completed:,.0f} attempts"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)


def _print(shown: dict[str, Any]) -> None:
    for row in shown["unpriced"]:
        click.echo(
            f"{row['attempts']:,} attempts of {row['provider']} {row['model']} ({row['cost']} USD) have no price in "
            f"the tables for when they began; they stay at {row['price_id']}."
        )
    if not shown["rows"]:
        click.echo("Nothing is to be rated again.")
        return
    for row in shown["rows"]:
        click.echo(
            f"{row['price_id']}\n  -> {row['new_price_id']}\n  {row['attempts']:,} attempts: {row['old_cost']} -> "
            f"{row['new_cost']} USD ({_signed(row['difference'])}), counts in {row['counts_in']}"
        )
    total = shown["total"]
    click.echo(
        f"Total: {total['attempts']:,} attempts, {total['old_cost']} -> {total['new_cost']} USD "
        f"({_signed(total['difference'])})"
    )
    done = f"Written as {shown['correction_id']}." if shown["correction_id"] else "Nothing was written (--dry-run)."
    click.echo(done)


def _signed(amount: str) -> str:
    return amount if amount.startswith("-") else f"+{amount}"
