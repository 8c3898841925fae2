"""Logs go to standard error, one line an event: JSON for machines or plain for people; fields are named, never content.

A record's ``fields`` (``extra={"fields": {...}}``) become members of the line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

import msgspec

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, always: Mapping[str, object] = MappingProxyType({})) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class ConsoleFormatter(logging.Formatter):
    """One readable line."""

    def __init__(self, always: Mapping[str, object] = MappingProxyType({})) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        named = {**self._always, **getattr(record, "fields", {})}
        fields = " ".join(f"{name}={value}" for name, value in named.items())
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(*, level: str, form: str, always: Mapping[str, object] = MappingProxyType({})) -> None:
    """Sends every log to standard error in the form asked for; replaces what was configured before. ``always`` are
    fields of every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(always) if form == "json" else ConsoleFormatter(always))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    logging.getLogger("uvicorn.access").disabled = True  # the exchange's own line says more
    for noisy in ("asyncio", "alembic", "httpx", "httpcore", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.WARNING))
