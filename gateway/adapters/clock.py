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

    def request_id(self) -> str:
        return f"req_{_uuid7_hex()}"

    def attempt_id(self) -> str:
        digits = _uuid7_hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _uuid7_hex() -> str:
    milliseconds = time.time_ns() // 1_000_000
    chance = int.from_bytes(os.urandom(10))
    value = (milliseconds & (2**48 - 1)) << 80 | chance
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{value:032x}"
