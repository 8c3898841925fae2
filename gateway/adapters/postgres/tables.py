"""A ledger row is a LedgerEntry, column by column, in the order and under the names of its fields.

What PostgreSQL cannot hold in a text (the character NUL) becomes the replacement character, because money must not
wait for the spelling of a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.core.ledger import LedgerEntry
from gateway.core.money import decimal_text

LEDGER_COLUMNS: Final[tuple[str, ...]] = LedgerEntry.__struct_fields__
_TYPES: Final[Mapping[str, str]] = {
    "is_final": "bool",
    "tags": "jsonb",
    "flags": "text[]",
    **dict.fromkeys(("started_at", "finished_at", "admitted_at", "restates"), "timestamptz"),
    **dict.fromkeys(
        ("attempt", "ttft_ms", "http_status", "input_tokens", "cached_tokens", "cache_write_tokens"), "int8"
    ),
    **dict.fromkeys(("output_tokens", "reasoning_tokens", "input_pico", "cached_pico", "cache_write_pico"), "int8"),
    **dict.fromkeys(("output_pico", "fee_pico", "cost_pico", "list_pico", "held_pico"), "int8"),
}
LEDGER_TYPES: Final[tuple[str, ...]] = tuple(_TYPES.get(name, "text") for name in LEDGER_COLUMNS)
"""What each column is sent as. int8 alone among the numbers refuses what does not fit."""

_NUL: Final = "\0"
_REPLACEMENT: Final = "\ufffd"


def without_nul(entry: LedgerEntry) -> LedgerEntry:
    """The entry as PostgreSQL can hold it."""
    return msgspec.structs.replace(entry, **{name: _clean(getattr(entry, name)) for name in LEDGER_COLUMNS})


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.replace(_NUL, _REPLACEMENT)
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(each) for name, each in value.items()}
    return value


def moment_text(moment: datetime) -> str:
    """RFC 3339 in UTC with Z, with microseconds where there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def ledger_row_json(row: Mapping[str, Any]) -> dict[str, object]:
    """One attempt under the names and in the order of INTERFACE §4; amounts are decimal strings."""
    return {
        "attempt_id": row["attempt_id"],
        "request_id": row["request_id"],
        "attempt": row["attempt"],
        "key_id": row["key_id"],
        "key_name": row["key_name"],
        "team": row["team"],
        "tags": row["tags"],
        "surface": row["surface"],
        "model": row["model"],
        "provider": row["provider"],
        "account": row["account"],
        "upstream_model": row["upstream_model"],
        "served_model": row["served_model"],
        "upstream_request_id": row["upstream_request_id"],
        "started_at": moment_text(row["started_at"]),
        "finished_at": moment_text(row["finished_at"]),
        "ttft_ms": row["ttft_ms"],
        "status": row["status"],
        "http_status": row["http_status"],
        "error_type": row["error_type"],
        "usage_source": row["usage_source"],
        "input_tokens": row["input_tokens"],
        "cached_tokens": row["cached_tokens"],
        "cache_write_tokens": row["cache_write_tokens"],
        "output_tokens": row["output_tokens"],
        "reasoning_tokens": row["reasoning_tokens"],
        "reasoning_source": row["reasoning_source"],
        "price_id": row["price_id"],
        "input_cost": decimal_text(row["input_pico"]),
        "cached_cost": decimal_text(row["cached_pico"]),
        "cache_write_cost": decimal_text(row["cache_write_pico"]),
        "output_cost": decimal_text(row["output_pico"]),
        "fee_cost": decimal_text(row["fee_pico"]),
        "cost": decimal_text(row["cost_pico"]),
        "list_cost": decimal_text(row["list_pico"]),
        "corrects": row["corrects"],
    }
