"""An incremental SSE scanner. Bytes in, whole events out, bounded memory, no I/O.

However the bytes are cut, the same events come out and their ``raw`` bytes joined are the input (law L7).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""A longer single event is not an answer but an attack or a fault."""

# A blank line is two line ends in a row; atomic, or a CRLF would pass for a CR and an LF.
_END_OF_EVENT: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_LOOK_BACK: Final = 3  # the longest blank line less one byte: CRLF CRLF
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventTooLongError(Exception):
    """An event passed the scanner's limit without ending."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: ``raw`` as it came, its blank line included; ``data`` the joined data lines, None for a comment."""

    raw: bytes
    data: bytes | None


class SseScanner:
    """Feed it chunks; it returns the events they complete. ``rest`` is what is still open."""

    __slots__ = ("_bytes_max", "_rest", "_searched")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._bytes_max = event_bytes_max

    @property
    def rest(self) -> bytes:
        """Bytes of an event that has not ended."""
        return bytes(self._rest)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events completed by ``chunk``, in order. Raises EventTooLongError."""
        if self._rest:
            self._rest += chunk
            if not self._may_end():
                return []
            chunk = bytes(self._rest)
        elif _is_usual(chunk) and len(chunk) <= self._bytes_max:
            return [Event(chunk, chunk[6:-2])]
        if b"\r" in chunk:
            events = self._cut_by_any_line_end(chunk)
        else:
            pieces = chunk.split(b"\n\n")
            self._keep(pieces.pop())
            events = [
                Event(piece + b"\n\n", piece[6:])
                if piece.startswith(b"data: ") and b"\n" not in piece
                else parse_event(piece + b"\n\n")
                for piece in pieces
            ]
        if len(chunk) > self._bytes_max:
            self._refuse_too_long(events)
        return events

    def finish(self) -> Event | None:
        """What the stream ended with after its last blank line, as one event; None if it ended properly."""
        rest = bytes(self._rest)
        self._keep(b"")
        return parse_event(rest) if rest else None

    def _may_end(self) -> bool:
        """Whether an event ends in what is kept, so that a long event is not copied for every chunk of it."""
        kept = self._rest
        if kept.find(b"\n\n", self._searched) >= 0 or kept.find(b"\r", self._searched) >= 0:
            return True
        self._searched = max(0, len(kept) - _LOOK_BACK)
        self._refuse_too_long([])
        return False

    def _keep(self, rest: bytes) -> None:
        self._rest = bytearray(rest)
        self._searched = max(0, len(rest) - _LOOK_BACK)

    def _cut_by_any_line_end(self, buffer: bytes) -> list[Event]:
        events: list[Event] = []
        start = 0
        for match in _END_OF_EVENT.finditer(buffer, self._searched if self._rest else 0):
            end = match.end()
            if end == len(buffer) and buffer.endswith(b"\r"):
                break  # this CR may be the first half of a CRLF still to come
            events.append(parse_event(buffer[start:end]))
            start = end
        self._keep(buffer[start:])
        return events

    def _refuse_too_long(self, events: list[Event]) -> None:
        longest = max((len(event.raw) for event in events), default=0)
        if max(longest, len(self._rest)) > self._bytes_max:
            raise EventTooLongError(f"an event of the upstream's stream is longer than {self._bytes_max} bytes")


def _is_usual(raw: bytes) -> bool:
    """Whether these bytes are one data line and a blank line: what providers send, hundreds of times an answer."""
    return raw.find(b"\n") == len(raw) - 2 and raw.startswith(b"data: ") and raw.endswith(b"\n\n") and b"\r" not in raw


def parse_event(raw: bytes) -> Event:
    """The data of one event, by the SSE rules that JSON streams use: data lines joined by a newline."""
    parts: list[bytes] = []
    for line in _LINE_END.split(raw.removeprefix(_BYTE_ORDER_MARK)):
        field, _, value = line.partition(b":")
        if field == b"data":
            parts.append(value.removeprefix(b" "))
    return Event(raw, b"\n".join(parts) if parts else None)
