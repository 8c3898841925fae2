"""Charges for tests: of every kind that a ledger has, in the order in which they come."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.core.focus import BillingAccount, ChargeFact, FocusRows
from gateway.http.focus import csv_header, csv_lines

ACCOUNT = BillingAccount("org_7f3a", "Example Ltd.")
MONTH = datetime(2026, 10, 1, tzinfo=UTC)
INPUT, CACHED, WRITTEN, OUTPUT = 600_000, 150_000, 750_000, 2_500_000
"""Pico-dollars per token."""


def fact(**changes: Any) -> ChargeFact:
    """1,000 tokens of output in the first hour of October."""
    values: dict[str, Any] = {
        "hour": MONTH,
        "key_id": "key_1",
        "key_name": "checkout",
        "team": "blue",
        "tags": {"project": "alpha", "env": "production"},
        "model": "kimi-k2-thinking",
        "provider": "moonshot",
        "account": "main",
        "price_id": "moonshot/kimi-k2-thinking@2026-09-01T00:00:00Z#1a2b3c4d",
        "is_restated": False,
        "token_class": "output",
        "unit_pico": OUTPUT,
        "tokens": 1_000,
        "estimated_tokens": 0,
        "failed_pico": 0,
        "requests": 4,
    } | changes
    values.setdefault("reasoning_tokens", values["tokens"] // 2 if values["token_class"] == "output" else 0)
    if "cost_pico" not in changes:
        values["cost_pico"] = values["unit_pico"] * values["tokens"]
    return ChargeFact(**values)


def fee(pico: int, **changes: Any) -> ChargeFact:
    return fact(**{"token_class": "fee", "unit_pico": None, "tokens": 0, "cost_pico": pico, "requests": 0, **changes})


FACTS = [
    fact(token_class="input", unit_pico=INPUT, tokens=12_345),
    fact(token_class="cached_input", unit_pico=CACHED, tokens=999_999),
    fact(token_class="cache_write", unit_pico=WRITTEN, tokens=7),
    fact(estimated_tokens=100, failed_pico=OUTPUT * 30),
    fee(-1_250_000_000_001),
    fact(key_id="key_2", key_name="batch, night", team=None, tags={}, provider="cometapi", tokens=1),
    fact(key_id="unattributed", key_name="unattributed", team=None, tags={}, provider="evolink", price_id="", tokens=3),
    fee(400_000, key_id="unattributed", key_name="unattributed", team=None, tags={}, provider="evolink", price_id=""),
    fact(hour=MONTH + timedelta(hours=30), is_restated=True, tokens=-1_000, requests=0),
    fact(hour=MONTH + timedelta(hours=30), is_restated=True, tokens=900, unit_pico=OUTPUT + 1, requests=0),
    fact(hour=MONTH + timedelta(days=30, hours=23), model="another-model", provider="somebody", team="red"),
    fact(hour=MONTH + timedelta(days=31), unit_pico=0),
]


async def each(facts: Iterable[ChargeFact]) -> AsyncIterator[ChargeFact]:
    for one in facts:
        yield one


def exported(facts: Iterable[ChargeFact], version: str = "1.2") -> tuple[list[str], list[list[str]]]:
    """The header and the lines of a CSV file, read back."""
    rows = FocusRows(ACCOUNT, version=version)
    text = (csv_header(rows) + csv_lines([rows.row(one) for one in facts])).decode()
    header, *lines = csv.reader(io.StringIO(text))
    return header, lines
