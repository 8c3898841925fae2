"""``prices.toml``: dated rows whose amounts are exact, plausible beside each other, and never two at one moment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.catalog.findings import quoted
from gateway.catalog.tables import Table
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price

_TTL: Final = re.compile(r"[1-9][0-9]*[smhd]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """One row with the table it was read from. ``price`` is None where the row has errors of its own."""

    provider: str
    model: str
    price: Price | None
    confirmed: bool
    table: Table


def read_prices(root: Table) -> tuple[PriceRow, ...]:
    rows = tuple(_row(table) for table in root.items("prices"))
    root.close()
    _check_overlaps(rows)
    return rows


def _row(table: Table) -> PriceRow:
    provider = table.text("provider", like="moonshot", required=True) or ""
    model = table.text("model", like="kimi-k2-thinking", required=True) or ""
    effective_from = table.moment("effective_from")
    miss = table.amount("input", required=True)
    hit = table.amount("cached_input")
    output = table.amount("output", required=True)
    cache_write = read_cache_write(table)
    source = table.text("source", like="where the price is published") or ""
    checked_at = table.day("checked_at")
    confirmed = table.flag("confirmed")
    table.close()
    price = None
    are_likely = check_amounts(table, miss, hit, output, confirmed=confirmed)
    if provider and model and effective_from and miss is not None and output is not None and are_likely:
        price = Price(
            provider=provider,
            model=model,
            effective_from=effective_from,
            input=miss,
            cached_input=hit,
            output=output,
            cache_write=cache_write,
            source=source,
            checked_at=checked_at,
        )
    return PriceRow(provider=provider, model=model, price=price, confirmed=confirmed, table=table)


def read_cache_write(table: Table) -> Mapping[str, UnitPrice] | None:
    """By lifetime of the cache entry, as the wire spells it."""
    inner = table.table("cache_write", like='{ "5m" = "3.00", "1h" = "6.00" }')
    if inner is None:
        return None
    amounts: dict[str, UnitPrice] = {}
    for ttl in inner.written():
        amount = inner.amount(ttl)
        if not _TTL.fullmatch(ttl):
            inner.error(ttl, f"{quoted(ttl)} is not a cache lifetime.", 'Write it like "5m" or "1h".')
        elif amount is not None:
            amounts[ttl] = amount
    return amounts or None


def check_amounts(
    table: Table, miss: UnitPrice | None, hit: UnitPrice | None, output: UnitPrice | None, *, confirmed: bool
) -> bool:
    """Whether the amounts of one row can stand beside each other."""
    hit_is_dearer = miss is not None and hit is not None and hit >= miss
    output_is_cheaper = miss is not None and output is not None and output < miss and not confirmed
    if hit_is_dearer:
        message = f"cached_input {hit} is not below input {miss}; a cache hit is never dearer than a miss."
        mend = "Swap the two if they are in each other's place, or remove cached_input if hits have no discount."
        table.error("cached_input", message, mend)
    if output_is_cheaper:
        message = f"output {output} is below input {miss}, which is rare."
        table.error("output", message, "Swap the two, or add confirmed = true if the source really says so.")
    return not hit_is_dearer and not output_is_cheaper


def _check_overlaps(rows: Iterable[PriceRow]) -> None:
    first: dict[tuple[str, str, datetime], Table] = {}
    for row in rows:
        if row.price is None:
            continue
        start = row.price.effective_from
        earlier = first.setdefault((row.provider, row.model, start), row.table)
        if earlier is not row.table:
            pair = f"{row.provider} {row.model}"
            message = f"{pair} has another row from {start:%Y-%m-%dT%H:%M:%SZ}, at line {earlier.line()}."
            row.table.error("effective_from", message, "Remove one of the two rows, or correct its effective_from.")
