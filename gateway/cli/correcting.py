"""`gateway ledger refund` and `restate`: one attempt is put right by rows that name it; what stood there stays."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.corrections import PostgresCorrections
from gateway.adapters.postgres.reports import Reports
from gateway.catalog import load
from gateway.cli.administering import tell
from gateway.cli.asking import ask_books
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, settings_with
from gateway.core.corrections import (
    UNATTRIBUTED,
    CorrectedMeanwhileError,
    CorrectionBatch,
    CorrectionKind,
    InForce,
    adjusted,
    cache_ttl_of,
    new_correction_id,
    rewritten,
    unattributed,
    usage_of,
)
from gateway.core.fields import parse_moment
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import LedgerEntry
from gateway.core.money import ZERO, Money
from gateway.core.usage import Usage, UsageSource

T = TypeVar("T")
REASON = click.option("--reason", required=True, help="Why; stands in the ledger for good.")
TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@click.command("refund")
@click.argument("attempt_id", required=False)
@click.option("--amount", required=True, help="What was given back, in USD.")
@click.option("--provider", help="Of a credit that belongs to no attempt: who gave it.")
@click.option("--account", help="Of such a credit: the account.")
@click.option("--model", help="Of such a credit: the model, if it is for one.")
@click.option("--at", "moment", help="Of such a credit: when it was given; now without it.")
@click.option("--reference", help="Of such a credit: its name on the provider's papers. It is booked once by that.")
@REASON
@JSON
@expected_errors
def refund(
    attempt_id: str | None,
    amount: str,
    provider: str | None,
    account: str | None,
    model: str | None,
    moment: str | None,
    reference: str | None,
    reason: str,
    *,
    as_json: bool,
) -> None:
    """Book money that a provider gave back, for an attempt or for none."""
    given = _amount(amount)
    batch = _batch("refund", reason, {"attempt_id": attempt_id, "amount": str(given), "reference": reference})
    if (attempt_id is None) == (provider is None or account is None):
        raise click.UsageError("Name an attempt, or --provider and --account of a credit that belongs to none.")
    if attempt_id is None:
        assert provider is not None and account is not None
        entry = unattributed(
            correction_id=batch.correction_id,
            provider=provider,
            account=account,
            model=model or UNATTRIBUTED,
            line=reference or batch.correction_id,
            at=_moment(moment),
            amount=-given,
            closed_until=None,
            upstream_request_id=None,
        )
        _write_alone(batch, entry, as_json=as_json)
        return
    if any(each is not None for each in (model, moment, reference)):
        raise click.UsageError("--model, --at and --reference are for a credit that belongs to no attempt.")

    def made(now: InForce) -> tuple[LedgerEntry, ...]:
        if given > now.cost:
            fail(f"{now.attempt_id} costs {now.cost} USD now; {given} USD cannot be given back for it.")
        return (adjusted(now, correction_id=batch.correction_id, amount=-given, closed_until=None),)

    _correct(batch, attempt_id, made, as_json=as_json)


@click.command("restate")
@click.argument("attempt_id")
@click.option("--input-tokens", type=click.IntRange(0), help="All input, cached and written included.")
@click.option("--cached-tokens", type=click.IntRange(0), help="Of the input, what was read from a cache.")
@click.option("--cache-write-tokens", type=click.IntRange(0), help="Of the input, what was written to one.")
@click.option("--output-tokens", type=click.IntRange(0), help="All output, reasoning included.")
@click.option("--reasoning-tokens", type=click.IntRange(0), help="Of the output, reasoning.")
@REASON
@CONFIG
@JSON
@expected_errors
def restate(attempt_id: str, reason: str, config_dir: Path | None, *, as_json: bool, **tokens: int | None) -> None:
    """Put the tokens of an attempt right, as its provider says now. What is not named stays, and so does its price."""
    told = {name: count for name, count in tokens.items() if count is not None}
    if not told:
        raise click.UsageError("Name at least one count of tokens.")
    prices = load(settings_with(config_dir=config_dir).config_dir, now=datetime.now(UTC)).catalogue.prices
    batch = _batch("restatement", reason, {"attempt_id": attempt_id, **told})

    def made(now: InForce) -> tuple[LedgerEntry, ...]:
        price = prices.by_id(now.entry.price_id)
        if price is None:
            fail(f"the price {now.entry.price_id} is not in prices.toml any more. Run `gateway prices reprice` first.")
        usage = _restated(usage_of(now.entry), told)
        ttl = cache_ttl_of(now.entry, price)
        return rewritten(
            now,
            correction_id=batch.correction_id,
            usage=usage,
            usage_source=UsageSource.PROVIDER,
            price=price,
            cache_ttl=ttl,
            closed_until=None,
        )

    _correct(batch, attempt_id, made, as_json=as_json)


def _restated(usage: Usage, told: dict[str, int]) -> Usage:
    """The usage with what was told put in its place. Raises click.UsageError for what cannot be."""
    said = {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning if usage.reasoning_source is UsageSource.PROVIDER else None,
        **told,
    }
    prompt, completion = said["input_tokens"] or 0, said["output_tokens"] or 0
    if (said["cached_tokens"] or 0) + (said["cache_write_tokens"] or 0) > prompt:
        raise click.UsageError(f"More is read from and written to a cache than the {prompt:,} tokens of input.")
    if told.get("reasoning_tokens", 0) > completion:
        raise click.UsageError(f"There is more reasoning than the {completion:,} tokens of output.")
    return Usage.from_wire(
        prompt=prompt,
        completion=completion,
        cached=said["cached_tokens"],
        cache_write=said["cache_write_tokens"] or 0,
        reasoning=said["reasoning_tokens"],
    )


def _correct(
    batch: CorrectionBatch, attempt_id: str, made: Callable[[InForce], tuple[LedgerEntry, ...]], *, as_json: bool
) -> None:
    """Writes what is made of an attempt as it counts now, and shows it before and after."""

    async def question(store: PostgresCorrections) -> tuple[InForce, InForce] | None:
        before = await store.attempt(attempt_id)
        if before is None:
            return None
        await store.write(batch, made(before), by=COMMAND_LINE)
        after = await store.attempt(attempt_id)
        assert after is not None
        return before, after

    found = _ask(question)
    if found is None:
        fail(f"there is no attempt {attempt_id!r} in the ledger, or its month is archived.")
    before, after = found
    shown = {
        "correction_id": batch.correction_id,
        "attempt_id": after.attempt_id,
        "request_id": after.entry.request_id,
        **{name: getattr(after.entry, name) for name in TOKENS},
        "cost_before": str(before.cost),
        "cost": str(after.cost),
        "difference": str(after.cost - before.cost),
    }
    tell(shown, as_json=as_json)


def _write_alone(batch: CorrectionBatch, entry: LedgerEntry, *, as_json: bool) -> None:
    async def question(store: PostgresCorrections) -> int:
        return await store.write(batch, [entry], by=COMMAND_LINE)

    _ask(question)
    shown = {"correction_id": batch.correction_id, "corrects": entry.corrects, "cost": str(Money(entry.cost_pico))}
    tell(shown, as_json=as_json)


def _ask(question: Callable[[PostgresCorrections], Awaitable[T]]) -> T:
    async def asked(url: str, _: Reports) -> T:
        store = PostgresCorrections(url, clock=SystemClock())
        try:
            return await question(store)
        finally:
            await store.close()

    try:
        return ask_books(asked)
    except CorrectedMeanwhileError as error:
        fail(str(error))


def _batch(kind: CorrectionKind, reason: str, facts: dict[str, Any]) -> CorrectionBatch:
    if not reason.strip():
        raise click.BadParameter("say why; it stands in the ledger for good.", param_hint="--reason")
    return CorrectionBatch(
        correction_id=new_correction_id(datetime.now(UTC), secrets.token_bytes(4)),
        kind=kind,
        reason=reason,
        facts={name: value for name, value in facts.items() if value is not None},
    )


def _amount(text: str) -> Money:
    try:
        amount = Money.from_usd(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--amount") from None
    if amount <= ZERO:
        raise click.BadParameter("name what was given back as a positive amount.", param_hint="--amount")
    return amount


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        return parse_moment(text, ZoneInfo("UTC"))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--at") from None
