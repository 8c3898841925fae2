"""How much of the journals is not in the database yet, for a process that owns none of them: it only reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.adapters.journal.folders import journals
from gateway.adapters.journal.reader import SegmentReader
from gateway.adapters.journal.segments import decode, segment_numbers, segment_path
from gateway.core.ledger import LedgerEntry


def unshipped_entries(data_dir: Path, offsets: Mapping[str, tuple[int, int]]) -> int:
    """Settlements after each journal's shipped place (segment, byte offset) by its id; recovery still to come is not
    counted."""
    return sum(
        _entries_after(found.path, offsets.get(found.path.name, (0, 0)))
        for found in journals(data_dir)
        if not found.is_shipped
    )


def _entries_after(folder: Path, place: tuple[int, int]) -> int:
    count = 0
    for number in segment_numbers(folder):
        if number < place[0]:
            continue
        offset = place[1] if number == place[0] else 0
        for frame in SegmentReader(segment_path(folder, number), offset=offset):
            count += isinstance(decode(frame.payload), LedgerEntry)
    return count
