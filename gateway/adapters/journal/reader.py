"""A reader takes whole frames off a segment and stops at the first that is not; no bytes make it raise.

A torn tail is what a killed writer leaves behind, so it is a finding (``torn_bytes``), not an error.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.adapters.journal.segments import HEADER, PAYLOAD_BYTES_MAX, Frame, JournalPosition

_CHUNK_BYTES: Final = 128 * 1024


class SegmentReader:
    """Reads one segment from ``offset`` up to ``end`` (None = as far as it goes). Iterate once, then ask."""

    def __init__(self, path: Path, *, offset: int = 0, end: int | None = None) -> None:
        self._path = path
        self._number = int(path.stem)
        self._end = end
        self.offset = offset
        """Where the first frame not yet returned begins."""
        self.torn_bytes = 0
        """Bytes after the last whole frame, known when the iteration has ended."""

    @property
    def position(self) -> JournalPosition:
        return JournalPosition(self._number, self.offset)

    def __iter__(self) -> Iterator[Frame]:
        with self._path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            limit = size if self._end is None else min(size, self._end)
            buffer = b""
            file.seek(self.offset)
            unread = max(0, limit - self.offset)
            while True:
                begin = 0
                while (payload := _payload(buffer, begin)) is not None:
                    length = HEADER.size + len(payload)
                    begin += length
                    start = self.offset
                    self.offset = start + length
                    yield Frame(start, self.offset, payload)
                buffer = buffer[begin:]
                if not unread or _is_damaged(buffer):
                    break
                chunk = file.read(min(unread, max(_CHUNK_BYTES, _missing(buffer))))
                if not chunk:
                    break
                unread -= len(chunk)
                buffer += chunk
            self.torn_bytes = max(0, limit - self.offset)


def _payload(buffer: bytes, begin: int) -> bytes | None:
    """The payload of the whole frame that begins there, if there is one."""
    if len(buffer) - begin < HEADER.size:
        return None
    length, checksum = HEADER.unpack_from(buffer, begin)
    payload = buffer[begin + HEADER.size : begin + HEADER.size + length]
    if not 0 < length <= PAYLOAD_BYTES_MAX or len(payload) < length or zlib.crc32(payload) != checksum:
        return None
    return payload


def _is_damaged(buffer: bytes) -> bool:
    """Whether more bytes cannot make a frame of these."""
    if len(buffer) < HEADER.size:
        return False
    length, _ = HEADER.unpack_from(buffer)
    return not 0 < length <= PAYLOAD_BYTES_MAX or len(buffer) >= HEADER.size + length


def _missing(buffer: bytes) -> int:
    if len(buffer) < HEADER.size:
        return HEADER.size
    length, _ = HEADER.unpack_from(buffer)
    return HEADER.size + int(length) - len(buffer)
