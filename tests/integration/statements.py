"""Ledgers and statements of them for tests: what a provider would print of each attempt, with faults planted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any

import msgspec
import psycopg

from gateway.adapters.postgres.tables import LEDGER_COLUMNS, LEDGER_TYPES
from gateway.core.ledger import LedgerEntry
from gateway.core.statement import StatementLine
from gateway.core.usage import Usage, UsageSource
from tests.integration.samples import entry

EIGHT_DECIMALS = 10_000
"""A step of the eighth decimal of a dollar, in pico-dollars; the quantum is half of it."""


def attempt(number: int, *, used: Usage | None = None, request_id: str | None = "", **changes: Any) -> LedgerEntry:
    """Attempt ``number`` with the request id ``r-<number>`` unless another is given; started ``number`` seconds in."""
    used = used or Usage.from_wire(prompt=1_000 + number, completion=200 + 3 * number, cached=512)
    made = entry(number, used=used, source=changes.pop("source", UsageSource.PROVIDER), **changes)
    return msgspec.structs.replace(made, upstream_request_id=f"r-{number}" if request_id == "" else request_id)


def store(database_url: str, entries: Iterable[LedgerEntry]) -> None:
    """Puts rows into the ledger as they are."""
    with psycopg.connect(database_url) as db, db.cursor() as cursor:
        rows = list(entries)
        for moment in {(row.started_at.year, row.started_at.month): row.started_at for row in rows}.values():
            cursor.execute("SELECT ensure_month(%s)", [moment])
        with cursor.copy(f"COPY ledger ({', '.join(LEDGER_COLUMNS)}) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(LEDGER_TYPES)
            for row in rows:
                copy.write_row(msgspec.structs.astuple(row))


def printed(pico: int, step: int = EIGHT_DECIMALS) -> int:
    """An amount as it is printed, in pico-dollars: rounded half to even."""
    return round(Fraction(pico, step)) * step


def line(number: int, row: LedgerEntry, *, step: int = EIGHT_DECIMALS, **changes: Any) -> StatementLine:
    """The provider's line about an attempt: it arrived 20 ms after it was sent."""
    values: dict[str, Any] = {
        "number": number,
        "request_id": row.upstream_request_id,
        "at": row.started_at + timedelta(milliseconds=20),
        "model": row.upstream_model,
        "input_tokens": row.input_tokens,
        "cached_tokens": row.cached_tokens,
        "cache_write_tokens": None,
        "output_tokens": row.output_tokens,
        "amount_pico": printed(row.cost_pico, step),
    }
    return StatementLine(**{**values, **changes})


def numbered(lines: Sequence[StatementLine]) -> list[StatementLine]:
    """The lines as they stand in a file under a header."""
    return [msgspec.structs.replace(each, number=number) for number, each in enumerate(lines, start=2)]
