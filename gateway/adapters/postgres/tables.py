"""A ledger row is a LedgerEntry, column by column and under the same names; this is where values change clothes.

Columns are in the order of the struct's fields. What PostgreSQL cannot hold in a text (the character NUL) becomes the
replacement character, because money must not wait for the spelling of a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.core.ledger import LedgerEntry
from gateway.core.money import decimal_text

LEDGER_COLUMNS: Final[tuple[str, ...]] = LedgerEntry.__struct_fields__

_TAGS: Final = LEDGER_COLUMNS.index("tags")
_FLAGS: Final = LEDGER_COLUMNS.index("flags")
_NUL: Final = "\0"
_REPLACEMENT: Final = "\ufffd"

Row = tuple[object, ...]


def row_of(entry: LedgerEntry) -> Row:
    """The values of an entry as COPY takes them, in the order of LEDGER_COLUMNS."""
    values = []
    for name in LEDGER_COLUMNS:
        value = getattr(entry, name)
        if value.__class__ is str and _NUL in value:
            value = value.replace(_NUL, _REPLACEMENT)
        values.append(value)
    values[_TAGS] = json_text(entry.tags)
    values[_FLAGS] = [flag.replace(_NUL, _REPLACEMENT) for flag in entry.flags] if entry.flags else "{}"
    return tuple(values)


def json_text(tags: Mapping[str, str]) -> str:
    """Tags as the text of a JSON object."""
    if not tags:
        return "{}"
    clean = {name.replace(_NUL, _REPLACEMENT): value.replace(_NUL, _REPLACEMENT) for name, value in tags.items()}
    return msgspec.json.encode(clean).decode()


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
