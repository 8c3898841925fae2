"""The ledger and the spend report as they go out: JSON, JSON Lines and CSV say the same, under the same names.

Amounts are exact decimal strings; a period is from inclusive to exclusive.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from gateway.core.fields import FieldError, parse_moment
from gateway.core.spend import SpendQuery, SpendRow, Total, moment_in

T = TypeVar("T")
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
ROWS_AT_ONCE: Final = 200
"""Few enough that nobody whose answer is being streamed has to wait for them."""
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


async def report_pieces(query: SpendQuery, rows: AsyncIterator[SpendRow], form: Form) -> AsyncIterator[bytes]:
    """A spend report piece by piece, as its rows come; a report about nothing has a header, too. In JSON every row has
    a line of its own, and the total, which is known last, is last."""
    total = Total(query)
    selected = query.selection

    async def shown() -> AsyncIterator[Row]:
        async for row in rows:
            total.add(row)
            yield query.shown(row)

    period_ = {name: moment_in(selected.timezone, at) for name, at in (("from", selected.start), ("to", selected.end))}
    opening = msgspec.json.encode(period_)[:-1] + b',"rows":['
    columns = (*query.columns, *total.shown())
    async for piece in _pieces(
        opening, shown(), columns, form, lambda: b'],"total":' + msgspec.json.encode(total.shown()) + b"}\n"
    ):
        yield piece


async def ledger_pieces(rows: AsyncIterator[Row], form: Form) -> AsyncIterator[bytes]:
    """The ledger piece by piece, as its rows come. In JSON every row has a line of its own."""
    async for piece in _pieces(b'{"data":[', rows, LEDGER_FIELDS, form, lambda: b"]}\n"):
        yield piece


async def _pieces(
    opening: bytes, rows: AsyncIterator[Row], columns: Sequence[str], form: Form, closing: Callable[[], bytes]
) -> AsyncIterator[bytes]:
    """``opening`` and ``closing`` are around the rows of JSON; ``columns`` are those of CSV."""
    batch = [{"json": opening, "jsonl": b"", "csv": csv_line(columns)}[form]]
    is_first = True
    async for row in rows:
        match form:
            case "json":
                batch.append((b"\n" if is_first else b",\n") + msgspec.json.encode(row))
            case "jsonl":
                batch.append(json_line(row))
            case "csv":
                batch.append(csv_line([row[name] for name in columns]))
        is_first = False
        if len(batch) >= ROWS_AT_ONCE:
            yield b"".join(batch)
            batch.clear()
            await asyncio.sleep(0)
    if form == "json":
        batch.append((b"" if is_first else b"\n") + closing())
    yield b"".join(batch)


def json_line(row: Row) -> bytes:
    """A row as JSON Lines have it."""
    return msgspec.json.encode(row) + b"\n"


async def begun(rows: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same rows once the first of them is there, so that what goes wrong until then is told before anything is
    sent."""
    try:
        first = [await anext(rows)]
    except StopAsyncIteration:
        first = []

    async def all_of_them() -> AsyncIterator[T]:
        for row in first:
            yield row
        async for row in rows:
            yield row

    return all_of_them()


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
