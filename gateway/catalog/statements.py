"""``[providers.NAME.statement]``: where a statement tells what, wherever its dialect assumes it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.catalog.findings import quoted
from gateway.catalog.tables import Table
from gateway.core.statement import TIME_FORMATS

DECIMALS_MAX: Final = 12
_COLUMNS: Final[Mapping[str, str]] = {
    "lines": "data.items",
    "request_id": "Request ID",
    "time": "Time",
    "model": "Model",
    "input_tokens": "Prompt Tokens",
    "cached_tokens": "Cached Tokens",
    "cache_write_tokens": "Cache Write Tokens",
    "output_tokens": "Completion Tokens",
    "amount": "Amount (USD)",
}


def read_statement(provider: Table) -> Mapping[str, object]:
    """The fields of a StatementMapping that the table names."""
    table = provider.table("statement", like='{ request_id = "Request ID", amount = "Amount (USD)" }')
    if table is None:
        return MappingProxyType({})
    fields: dict[str, object] = {name: table.text(name, like=like) for name, like in _COLUMNS.items()}
    fields["time_format"] = _time_format(table)
    fields["time_zone"] = _time_zone(table)
    fields["usd_per_unit"] = table.rate("usd_per_unit", like="0.000002")
    fields["decimals"] = table.whole("decimals", like="8", most=DECIMALS_MAX)
    fields["rounding"] = table.choice("rounding", ("nearest", "any"))
    if table.has("input_includes_cached"):
        fields["input_includes_cached"] = table.flag("input_includes_cached", default=True)
    else:
        table.flag("input_includes_cached")
    table.close()
    return MappingProxyType({name: value for name, value in fields.items() if value is not None})


def _time_format(table: Table) -> str | None:
    text = table.text("time_format", like="rfc3339")
    if text is None or text in TIME_FORMATS:
        return text
    try:
        datetime.strptime(datetime(2026, 10, 12).strftime(text), text)  # noqa: DTZ001, DTZ007 - only the pattern counts
    except ValueError:
        is_pattern = False
    else:
        is_pattern = "%" in text
    if not is_pattern:
        mend = f"Write one of {', '.join(TIME_FORMATS)}, or a pattern such as {quoted('%d/%m/%Y %H:%M:%S')}."
        table.error("time_format", f"time_format is {quoted(text)}, which is neither a name nor a pattern.", mend)
        return None
    return text


def _time_zone(table: Table) -> str | None:
    name = table.text("time_zone", like="UTC")
    if name is None:
        return None
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        table.error("time_zone", f"{quoted(name)} is not a time zone.", "Write it like Asia/Shanghai.")
        return None
    return name
