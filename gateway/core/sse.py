"""An incremental SSE scanner. Bytes in, whole events out, bounded memory, no I/O.

However the bytes are cut, the same events come out and their ``raw`` bytes joined are the input (law L7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""A longer single event is not an answer but an attack or a fault."""

_END_OF_EVENT: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n")
_LINE_BREAK: Final = re.compile(rb"\r\n|\n|\r")


class EventTooLongError(Exception):
    """An event passed EVENT_BYTES_MAX without ending."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``raw`` as it came, its blank line included; ``data`` the joined data lines, None for a comment."""

    raw: bytes
    data: bytes | None


class SseScanner:
    """Feed it chunks; it returns the events they complete. ``rest`` is what is still open."""

    __slots__ = ("_bytes_max", "_rest", "_searched")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._rest = b""
        self._searched = 0
        self._bytes_max = event_bytes_max

    @property
    def rest(self) -> bytes:
        """Bytes of an event that has not ended."""
        return self._rest

    def feed(self, chunk: bytes) -> list[Event]:
        """The events completed by ``chunk``, in order. Raises EventTooLongError."""
        buffer = self._rest + chunk if self._rest else chunk
        events = [parse_event(raw) for raw in self._cut(buffer)]
        if len(self._rest) > self._bytes_max:
            raise EventTooLongError(f"an event of the upstream's stream is longer than {self._bytes_max} bytes")
        return events

    def finish(self) -> Event | None:
        """The last event of a stream that ended without its blank line, if there is one."""
        rest, self._rest, self._searched = self._rest, b"", 0
        return parse_event(rest) if rest.strip() else None

    def _cut(self, buffer: bytes) -> Iterator[bytes]:
        start, search = 0, self._searched
        if b"\r" not in buffer:
            end = buffer.find(b"\n\n", search)
            while end >= 0:
                yield buffer[start : end + 2]
                start = end + 2
                end = buffer.find(b"\n\n", start)
        else:
            for match in _END_OF_EVENT.finditer(buffer, search):
                if match.end() == len(buffer) and buffer.endswith(b"\r"):
                    break  # the CR may be the first half of a CRLF still to come
                yield buffer[start : match.end()]
                start = match.end()
        self._rest = buffer[start:]
        self._searched = max(0, len(self._rest) - 3)


def parse_event(raw: bytes) -> Event:
    """The data of one event, by the SSE rules that JSON streams use: data lines joined by a newline."""
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and raw.find(b"\n", 0, -2) < 0 and b"\r" not in raw:
        return Event(raw, raw[6:-2])
    parts: list[bytes] = []
    for line in _LINE_BREAK.split(raw):
        field, colon, value = line.partition(b":")
        if field == b"data" and colon:
            parts.append(value[1:] if value.startswith(b" ") else value)
    return Event(raw, b"\n".join(parts) if parts else None)
