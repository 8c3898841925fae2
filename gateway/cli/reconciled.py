"""What came of a reconciliation: shown to people and scripts, and booked where somebody says so."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.corrections import PostgresCorrections
from gateway.adapters.postgres.reconciliation import Priced, Reconciliation
from gateway.adapters.postgres.tables import moment_text
from gateway.cli.common import fail
from gateway.cli.statements import StatementFile
from gateway.core.catalogue import Catalogue, ProviderCard
from gateway.core.corrections import CorrectedMeanwhileError, CorrectionBatch, InForce, new_correction_id
from gateway.core.effective_price import EffectivePrice, PricedLine, effective_price
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price
from gateway.core.reconciliation import (
    FINDINGS,
    Finding,
    FindingClass,
    Terms,
    Tokens,
    Unproposed,
    booked_before,
    proposed,
)
from gateway.core.usage import Meter

SHOWN_MAX: Final = 20
"""So many findings of a class are listed on a terminal; JSON has all of them."""
WRITTEN_AT_ONCE: Final = 500
SILENCE_MAX: Final = timedelta(hours=1)
"""A statement that is silent for longer at an end of the period may not be of all of it."""
_INSTANT: Final = timedelta(microseconds=1)
_METERS: Final = (Meter.INPUT, Meter.CACHE_READ, Meter.CACHE_WRITE, Meter.OUTPUT)
_WORDS: Final[Mapping[FindingClass, str]] = {
    FindingClass.MATCHED: "matched",
    FindingClass.FREE: "free, and nobody's",
    FindingClass.TOKENS: "drifted in tokens",
    FindingClass.PRICE: "drifted in price",
    FindingClass.MISSING_THERE: "missing there",
    FindingClass.MISSING_HERE: "missing here",
    FindingClass.DUPLICATE: "there twice",
    FindingClass.AT_EDGE: "at the period's edge",
}
_TOKENS: Final = ("input", "cached", "cache_write", "output")


@dataclass(kw_only=True)
class Compared:
    """One reconciliation, while its tables are there."""

    card: ProviderCard
    account: str | None
    catalogue: Catalogue
    file: StatementFile
    start: datetime
    end: datetime
    quantum_pico: int
    found: Reconciliation
    adjusts_prices: bool

    def __post_init__(self) -> None:
        self.totals = self.found.compare(
            self.start,
            self.end,
            provider=self.card.name,
            account=self.account,
            quantum_pico=self.quantum_pico,
            resolution=self.file.reader.resolution(),
        )
        assert not self.totals.residual.pico, "every step is known"

    @cached_property
    def _priced(self) -> list[Priced]:
        return self.found.prices(self.quantum_pico)

    @cached_property
    def prices(self) -> list[EffectivePrice]:
        """What is really charged, above the lines that it explains."""
        return [
            effective_price(
                each.hypothesis,
                each.run,
                model=each.model,
                price_id=each.price_id,
                known=_units(self.catalogue.prices.by_id(each.price_id)),
                drifted=each.drifted,
                lines=each.lines,
                difference_pico=each.difference.pico,
            )
            for each in self._priced
        ]

    def explained_by(self, finding: Finding) -> int | None:
        """Which of the prices explains it, from 0."""
        if finding.kind is not FindingClass.PRICE or finding.is_unattributed:
            return None
        ours = finding.ours
        cached, written = ours.cached or 0, ours.cache_write or 0
        tokens = ((ours.input or 0) - cached - written, cached, written, ours.output or 0)
        at = finding.at or finding.started_at
        assert at is not None and finding.amount is not None and finding.cost is not None
        line = PricedLine(at, tokens, finding.amount.pico, finding.cost.pico)
        for number, each in enumerate(self._priced):
            is_its_price = (each.model, each.price_id) == (finding.model, finding.price_id)
            if is_its_price and each.run.covers(at) and each.hypothesis.explains(line, self.quantum_pico):
                return number
        return None

    def findings(self) -> Iterator[tuple[Finding, int | None]]:
        """Everything that is off, and the price that explains it."""
        for finding in self.found.findings():
            yield finding, self.explained_by(finding)

    def hints(self) -> list[str]:
        """What else a person should know."""
        return list(_hints(self))


def _units(price: Price | None) -> tuple[UnitPrice | None, ...]:
    if price is None:
        return (None,) * len(_METERS)
    return (
        price.input,
        price.cached_input,
        None if price.cache_write is None else price.unit(Meter.CACHE_WRITE),
        price.output,
    )


def _hints(compared: Compared) -> Iterator[str]:
    totals, file, name = compared.totals, compared.file, compared.card.name
    matched, tokens = totals.of(FindingClass.MATCHED), totals.of(FindingClass.TOKENS)
    if matched.estimates or tokens.estimates:
        yield (
            f"{matched.estimates + tokens.estimates:,} attempts were estimated here and have a line now: "
            f"{matched.estimates:,} as estimated, {tokens.estimates:,} with other tokens."
        )
    if file.bad_count:
        yield f"{file.bad_count:,} lines could not be read and are in no sum."
    if file.statement.not_told:
        yield f"The statement does not tell {', '.join(file.statement.not_told)}; that is not compared."
    yield from _beyond(compared)
    for each in compared.found.accounts():
        if each.attempts and not each.paired:
            yield (
                f"No line is about account {each.account} ({each.attempts:,} attempts, {each.cost} USD here). "
                "If the statement is of another account, name it with --account."
            )
    if any(price.lines for price in compared.prices):
        yield (
            f"If that price is right, put its row into prices.toml and run: gateway prices reprice --provider {name} "
            f"--from {moment_text(min(price.since for price in compared.prices))} --to {moment_text(compared.end)}"
        )


def _beyond(compared: Compared) -> Iterator[str]:
    """Where the period goes far beyond the statement."""
    first, last = compared.file.reader.first_at, compared.file.reader.last_at
    if first is not None and first - compared.start > SILENCE_MAX:
        yield f"The statement has no line before {moment_text(first)}."
    if last is not None and compared.end - last > SILENCE_MAX:
        yield f"The statement has no line after {moment_text(last)}."


# --- booking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was written: findings that are settled by it, rows, what they add up to; what was left, by reason."""

    correction_id: str
    findings: int
    rows: int
    amount: Money
    left: Mapping[str, int]


def apply(compared: Compared, url: str, *, reason: str, path: Path) -> Applied:
    """Writes what is proposed. What another price explains is left to a reprice, unless prices are adjusted."""
    try:
        return asyncio.run(_apply(compared, url, reason=reason, path=path))
    except CorrectedMeanwhileError as error:
        fail(str(error))


async def _apply(compared: Compared, url: str, *, reason: str, path: Path) -> Applied:
    clock = SystemClock()
    store = PostgresCorrections(url, clock=clock)
    try:
        batch = CorrectionBatch(
            correction_id=new_correction_id(clock.now(), secrets.token_bytes(4)),
            kind="reconciliation",
            reason=reason,
            facts=_facts(compared, path),
        )
        terms = _terms(compared, batch.correction_id, await store.closed_until())
        return await _write(compared, store, batch, terms)
    finally:
        await store.close()


def _facts(compared: Compared, path: Path) -> dict[str, Any]:
    totals = compared.totals
    return {
        "provider": compared.card.name,
        "account": compared.account,
        "from": moment_text(compared.start),
        "to": moment_text(compared.end),
        "statement": path.name,
        **compared.file.facts(),
        "statement_usd": str(totals.statement),
        "ledger_usd": str(totals.ledger),
        "findings": {kind.value: totals.of(kind).count for kind in FINDINGS},
    }


def _terms(compared: Compared, correction_id: str, closed_until: datetime | None) -> Terms:
    card = compared.card
    account = compared.account or (card.accounts[0].name if len(card.accounts) == 1 else None)
    return Terms(
        correction_id=correction_id,
        provider=card.name,
        account=account,
        accounts=frozenset(each.account for each in compared.found.accounts() if each.paired),
        public_models={each.upstream.lower(): model for model, each in card.deployments.items()},
        booked_at=compared.start,
        quantum_pico=compared.quantum_pico,
        closed_until=closed_until,
    )


async def _write(compared: Compared, store: PostgresCorrections, batch: CorrectionBatch, terms: Terms) -> Applied:
    left: dict[str, int] = {}
    waiting: list[LedgerEntry] = []
    settled = rows = amount_pico = 0
    for finding, price in compared.findings():
        if price is not None and not compared.adjusts_prices:
            made: tuple[LedgerEntry, ...] | Unproposed = Unproposed.REPRICE
        else:
            made = await _proposed(compared, store, finding, terms)
        if isinstance(made, Unproposed):
            left[made.value] = left.get(made.value, 0) + 1
            continue
        settled += 1
        amount_pico += sum(entry.cost_pico for entry in made)
        waiting += made
        if len(waiting) >= WRITTEN_AT_ONCE:
            rows += await store.write(batch, waiting, by=COMMAND_LINE)
            waiting.clear()
    rows += await store.write(batch, waiting, by=COMMAND_LINE)
    return Applied(correction_id=batch.correction_id, findings=settled, rows=rows, amount=Money(amount_pico), left=left)


async def _proposed(
    compared: Compared, store: PostgresCorrections, finding: Finding, terms: Terms
) -> tuple[LedgerEntry, ...] | Unproposed:
    if finding.attempt_id is None:
        return proposed(finding, None, None, terms)
    if finding.is_unattributed:
        return proposed(finding, booked_before(finding, terms), None, terms)
    now = await _in_force(store, finding)
    return proposed(finding, now, compared.catalogue.prices.by_id(now.entry.price_id), terms)


async def _in_force(store: PostgresCorrections, finding: Finding) -> InForce:
    """The attempt as it counts now: its own moment is known, so nobody has to look for it."""
    at = finding.started_at
    assert at is not None and finding.attempt_id is not None
    async with aclosing(store.in_force(at, at + _INSTANT, attempt_id=finding.attempt_id)) as found:
        async for now in found:
            return now
    raise AssertionError(f"{finding.attempt_id} is in the ledger")


# --- showing ---------------------------------------------------------------------------------------------------------


def print_compared(compared: Compared, applied: Applied | None, *, as_json: bool) -> None:
    if as_json:
        _print_json(compared, applied)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    _print_totals(console, compared)
    _print_findings(console, compared)
    for price in compared.prices:
        console.print(Text(price.words(compared.card.name)), highlight=False)
        row = price.row(compared.card.name)
        if row is not None:
            console.print(Text(row), highlight=False)
    for hint in compared.hints():
        console.print(Text(f"Note: {hint}"), highlight=False)
    if applied is not None:
        _print_applied(console, applied)
    elif compared.totals.findings:
        console.print("Nothing was written; --apply --reason TEXT books what is proposed.", highlight=False)


def _print_totals(console: Console, compared: Compared) -> None:
    totals = compared.totals
    lines = compared.file.reader.lines
    console.print(
        f"{compared.card.name}: {lines:,} lines against the ledger from {moment_text(compared.start)} to "
        f"{moment_text(compared.end)}; amounts are rounded by up to {Money(compared.quantum_pico)} USD.",
        highlight=False,
    )
    table = Table()
    table.add_column("")
    for name in ("count", "statement USD", "ledger USD", "difference USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, words in _WORDS.items():
        each = totals.of(kind)
        if each.count:
            table.add_row(words, f"{each.count:,}", str(each.amount), str(each.cost), str(each.difference))
    console.print(table)
    steps = Table(title="From the ledger to the statement", title_justify="left", show_header=False)
    steps.add_column("")
    steps.add_column("", justify="right", no_wrap=True)
    steps.add_row("ledger", str(totals.ledger))
    for name, amount in totals.steps().items():
        if amount.pico:
            steps.add_row(f"+ {name.replace('_', ' ')}", str(amount))
    steps.add_row("= statement", str(totals.statement))
    console.print(steps)


def _print_findings(console: Console, compared: Compared) -> None:
    shown: dict[FindingClass, int] = dict.fromkeys(FINDINGS, 0)
    explained = 0
    for finding, price in compared.findings():
        if price is not None:
            explained += 1
            continue
        shown[finding.kind] += 1
        if shown[finding.kind] == 1:
            console.print(f"{_WORDS[finding.kind].capitalize()}:", highlight=False)
        if shown[finding.kind] <= SHOWN_MAX:
            console.print(Text(f"  {_sentence(finding)}"), highlight=False)
    for kind, count in shown.items():
        if count > SHOWN_MAX:
            console.print(f"… {count - SHOWN_MAX:,} more {_WORDS[kind]}; --json lists all of them.", highlight=False)
    if explained:
        console.print(f"{explained:,} lines drifted in price are explained by what follows.", highlight=False)


def _sentence(finding: Finding) -> str:
    at = finding.at or finding.started_at
    parts = [
        "" if finding.line is None else f"line {finding.line}",
        "" if finding.request_id is None else f"id {finding.request_id}",
        "" if finding.attempt_id is None else f"attempt {finding.attempt_id}",
        "" if at is None else moment_text(at),
        finding.model or "",
        "estimated here" if finding.usage_source == "estimated" else "",
        *_tokens_off(finding.theirs, finding.ours, finding.kind),
        "" if finding.amount is None else f"{finding.amount} USD there",
        "" if finding.cost is None else f"{finding.cost} USD here",
        f"difference {finding.difference} USD",
    ]
    return ", ".join(part for part in parts if part)


def _tokens_off(theirs: Tokens, ours: Tokens, kind: FindingClass) -> Iterator[str]:
    if kind is not FindingClass.TOKENS:
        return
    for name in _TOKENS:
        there, here = getattr(theirs, name), getattr(ours, name)
        if there is not None and there != here:
            yield f"{name.replace('_', ' ')} {there:,} there and {here:,} here"


def _print_applied(console: Console, applied: Applied) -> None:
    console.print(
        f"{applied.findings:,} findings are booked as {applied.correction_id}: {applied.rows:,} rows, "
        f"{applied.amount} USD."
        if applied.rows
        else "There was nothing to write.",
        highlight=False,
    )
    for reason, count in applied.left.items():
        console.print(f"{count:,} are left to you: {reason}.", highlight=False)


def _print_json(compared: Compared, applied: Applied | None) -> None:
    """The findings are written as they are read: there may be a million."""
    head = msgspec.json.format(msgspec.json.encode(_head(compared)), indent=2).decode().removesuffix("\n}")
    click.echo(f'{head},\n  "findings": [', nl=False)
    separator = "\n    "
    for finding, price in compared.findings():
        click.echo(separator + msgspec.json.encode(_finding_json(finding, price)).decode(), nl=False)
        separator = ",\n    "
    tail = None if applied is None else _applied_json(applied)
    click.echo(f'\n  ],\n  "applied": {msgspec.json.encode(tail).decode()}\n}}')


def _head(compared: Compared) -> dict[str, Any]:
    totals, file = compared.totals, compared.file
    return {
        "provider": compared.card.name,
        "account": compared.account,
        "from": moment_text(compared.start),
        "to": moment_text(compared.end),
        "statement": {
            "format": file.statement.kind,
            "lines": file.reader.lines,
            "bad_lines": file.bad_count,
            "not_told": file.statement.not_told,
            "rounded_by_up_to": str(Money(compared.quantum_pico)),
            "total": str(totals.statement),
        },
        "ledger": {"total": str(totals.ledger)},
        "classes": {
            kind.value: {
                "count": totals.of(kind).count,
                "statement": str(totals.of(kind).amount),
                "ledger": str(totals.of(kind).cost),
                "difference": str(totals.of(kind).difference),
            }
            for kind in FindingClass
        },
        "steps": {name: str(amount) for name, amount in totals.steps().items()},
        "residual": str(totals.residual),
        "prices": [_price_json(price, compared.card.name) for price in compared.prices],
        "hints": compared.hints(),
    }


def _price_json(price: EffectivePrice, provider: str) -> dict[str, Any]:
    return {
        "model": price.model,
        "price_id": price.price_id,
        "since": moment_text(price.since),
        "until": None if price.until is None else moment_text(price.until),
        "factor": None if price.factor is None else str(price.factor),
        "usd_per_million": _units_json(price.units),
        "instead_of": _units_json(price.known_units),
        "lines": price.lines,
        "drifted": price.drifted,
        "difference": str(Money(price.difference_pico)),
        "text": price.words(provider),
        "row": price.row(provider),
    }


def _units_json(units: Sequence[UnitPrice | None]) -> dict[str, str | None]:
    return {meter.value: None if unit is None else str(unit) for meter, unit in zip(_METERS, units, strict=True)}


def _finding_json(finding: Finding, price: int | None) -> dict[str, Any]:
    return {
        "class": finding.kind.value,
        "line": finding.line,
        "request_id": finding.request_id,
        "attempt_id": finding.attempt_id,
        "matched_by": finding.matched_by,
        "account": finding.account,
        "model": finding.model,
        "at": None if finding.at is None else moment_text(finding.at),
        "started_at": None if finding.started_at is None else moment_text(finding.started_at),
        "status": finding.status,
        "usage_source": finding.usage_source,
        "price_id": finding.price_id,
        "statement_tokens": {name: getattr(finding.theirs, name) for name in _TOKENS},
        "ledger_tokens": {name: getattr(finding.ours, name) for name in _TOKENS},
        "statement": None if finding.amount is None else str(finding.amount),
        "ledger": None if finding.cost is None else str(finding.cost),
        "difference": str(finding.difference),
        "explained_by": price,
    }


def _applied_json(applied: Applied) -> dict[str, Any]:
    return {
        "correction_id": applied.correction_id if applied.rows else None,
        "findings": applied.findings,
        "rows": applied.rows,
        "cost": str(applied.amount),
        "left": applied.left,
    }
