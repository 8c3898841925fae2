"""How much of the journals is not in the database yet, for a process that owns none of them: it only reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from gateway.adapters.journal.folders import journals
from gateway.adapters.journal.reader import SegmentReader
from gateway.adapters.journal.segments import decode, segment_numbers, segment_path
from gateway.core.ledger import LedgerEntry


def unshipped_entries(data_dir: Path, offsets: Mapping[str, tuple[int, int]], *, before: datetime | None = None) -> int:
    """Settlements after each journal's shipped place (segment, byte offset) by its id, of attempts that began
    ``before`` then if that is given; recovery still to come is not counted."""
    return sum(
        _entries_after(found.path, offsets.get(found.path.name, (0, 0)), before)
        for found in journals(data_dir)
        if not found.is_shipped
    )


def left_behind(data_dir: Path) -> int:
    """Journals of dead workers that nobody has shipped to their end: what was under way there is not settled yet."""
    return sum(not found.is_live and not found.is_shipped for found in journals(data_dir))


def _entries_after(folder: Path, place: tuple[int, int], before: datetime | None) -> int:
    count = 0
    for number in segment_numbers(folder):
        if number < place[0]:
            continue
        offset = place[1] if number == place[0] else 0
        for frame in SegmentReader(segment_path(folder, number), offset=offset):
            record = decode(frame.payload)
            count += isinstance(record, LedgerEntry) and (before is None or record.started_at < before)
    return count
