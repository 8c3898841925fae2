"""The machine's clock, and identifiers that sort by time and cannot be guessed."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime


class SystemClock:
    """Implements the Clock port."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class TimeOrderedIds:
    """Implements the Ids port with UUIDs of version 7 (RFC 9562): 48 bits of milliseconds, then chance."""

    def __init__(self) -> None:
        self._chance = b""
        self._used = 0

    def request_id(self) -> str:
        return f"req_{self._uuid7_hex()}"

    def attempt_id(self) -> str:
        digits = self._uuid7_hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def _uuid7_hex(self) -> str:
        milliseconds = time.time_ns() // 1_000_000
        value = (milliseconds & (2**48 - 1)) << 80 | int.from_bytes(self._ten_bytes())
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return f"{value:032x}"

    def _ten_bytes(self) -> bytes:
        """Chance from the system, fetched a page at a time: a system call costs more than the rest of an id."""
        if self._used + 10 > len(self._chance):
            self._chance, self._used = os.urandom(4096), 0
        self._used += 10
        return self._chance[self._used - 10 : self._used]
