"""The ledger and the spend report as they go out: JSON, JSON Lines and CSV say the same, under the same names.

Amounts are exact decimal strings; a period is from inclusive to exclusive.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from gateway.core.fields import FieldError, parse_moment

Form = Literal["json", "jsonl", "csv"]
Row = dict[str, Any]

MEDIA_TYPES: Final = {"json": "application/json", "jsonl": "application/x-ndjson", "csv": "text/csv"}
LEDGER_FIELDS: Final = (
    *("attempt_id", "request_id", "attempt", "key_id", "key_name", "team", "tags", "surface", "model", "provider"),
    *("account", "upstream_model", "served_model", "upstream_request_id", "started_at", "finished_at", "ttft_ms"),
    *("status", "http_status", "error_type", "usage_source", "input_tokens", "cached_tokens", "cache_write_tokens"),
    *("output_tokens", "reasoning_tokens", "reasoning_source", "price_id", "input_cost", "cached_cost"),
    *("cache_write_cost", "output_cost", "fee_cost", "cost", "list_cost", "corrects"),
)
_FORMULA: Final = re.compile(r"[=+\-@\t\r]")
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")


def period(start: str | None, end: str | None, tz: str, *, now: datetime) -> tuple[datetime, datetime]:
    """The current month so far, or from one date or moment to another; dates are midnights in the zone.

    Raises FieldError for ``from``, ``to`` or ``tz``.
    """
    zone = _zone(tz)
    month = now.astimezone(zone).replace(day=1, hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)
    begins = month if start is None else _moment("from", start, zone)
    ends = now + timedelta(seconds=1) if end is None else _moment("to", end, zone)
    if begins > ends:
        raise FieldError("to", f"the period ends ({ends.isoformat()}) before it begins ({begins.isoformat()}).")
    return begins, ends


def _zone(name: str) -> ZoneInfo:
    """A zone by its common name; what one machine calls local, the database does not know."""
    try:
        if name == "localtime":
            raise ValueError(name)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise FieldError("tz", f"{name[:40]!r} is not a time zone such as Europe/Berlin.") from None


def _moment(field: str, text: str, zone: ZoneInfo) -> datetime:
    try:
        return parse_moment(text, zone)
    except ValueError as error:
        raise FieldError(field, f"{error}.") from None


def render_report(report: Mapping[str, Any], columns: Sequence[str], form: Form) -> bytes:
    """A spend report; ``columns`` are of its groups, so that a report about nothing has a header, too."""
    rows = report["rows"]
    match form:
        case "json":
            return msgspec.json.encode(report)
        case "jsonl":
            return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        case "csv":
            header = [*columns, *report["total"]]
            return b"".join([csv_line(header), *(csv_line([row[name] for name in header]) for row in rows)])


async def render_ledger(first: Row | None, rows: AsyncIterator[Row], form: Form) -> AsyncIterator[bytes]:
    """The ledger piece by piece: its first row, which was waited for, and the others as they come."""
    opening, closing = {"json": (b'{"data":[', b"]}"), "jsonl": (b"", b""), "csv": (csv_line(LEDGER_FIELDS), b"")}[form]
    if opening:
        yield opening
    if first is not None:
        yield _ledger_row(first, form, is_first=True)
        async for row in rows:
            yield _ledger_row(row, form, is_first=False)
    if closing:
        yield closing


def _ledger_row(row: Row, form: Form, *, is_first: bool) -> bytes:
    match form:
        case "json":
            return msgspec.json.encode(row) if is_first else b"," + msgspec.json.encode(row)
        case "jsonl":
            return msgspec.json.encode(row) + b"\n"
        case "csv":
            return csv_line([row[name] for name in LEDGER_FIELDS])


def csv_line(values: Sequence[Any]) -> bytes:
    """One CSV line; nothing is empty, an object is JSON, a text that a spreadsheet would run is quoted as text."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow([_cell(value) for value in values])
    return buffer.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
