"""What a shipper finds in the journals: records that are certain to be on the disk, in order, from a place it names.

The worker's own journal is read only as far as the disk vouches for it. A dead journal is claimed, settled
(``recovery``) and then read whole. Segments stay for JOURNAL_KEPT after they are shipped, so that a database restored
from an older backup can be brought up to date by replaying them (delete its rows in ``journal_offsets``).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from gateway.adapters.journal.folders import SHIPPED, ClaimedJournal, claim, journals
from gateway.adapters.journal.reader import SegmentReader
from gateway.adapters.journal.recovery import recover
from gateway.adapters.journal.segments import (
    SEGMENT_SUFFIX,
    SYSCALLS,
    TAINTED_SUFFIX,
    JournalPosition,
    Syscalls,
    decode,
    is_open,
    segment_numbers,
    segment_path,
)
from gateway.adapters.journal.writer import JournalWriter
from gateway.core.archive import JOURNAL_KEPT
from gateway.core.ledger import Record

log = logging.getLogger(__name__)

READ_RECORDS_MAX: Final = 2_000
"""Records looked at in one read, intents and progress marks included."""


@dataclass(frozen=True, slots=True)
class Item:
    """One record to ship, and where it begins. ``record`` is the reason where it cannot be read."""

    segment: int
    byte_offset: int
    payload: bytes
    record: Record | str


@dataclass(frozen=True, slots=True)
class Reading:
    """Up to so many records to ship, and the place up to which everything has been looked at."""

    items: Sequence[Item]
    segment: int
    byte_offset: int


class Source:
    """One journal to ship. ``writer`` is set for the worker's own, ``claimed`` for a dead one."""

    def __init__(self, path: Path, *, writer: JournalWriter | None, claimed: ClaimedJournal | None) -> None:
        assert (writer is None) != (claimed is None)
        self._path = path
        self._writer = writer
        self._claimed = claimed

    @property
    def journal_id(self) -> str:
        return self._path.name

    @property
    def is_live(self) -> bool:
        return self._writer is not None

    def end(self) -> tuple[int, int]:
        """The place up to which there is something to ship just now."""
        if self._writer is not None:
            end = self._writer.durable_end
            return end.segment, end.offset
        numbers = segment_numbers(self._path)
        return (numbers[-1], _size(self._path, numbers[-1])) if numbers else (0, 0)

    def read(self, segment: int, byte_offset: int, *, items_max: int) -> Reading:
        """What there is to ship after that place: entries, plans and unreadable records, no intents, no progress."""
        limit = JournalPosition(*self.end())
        place = JournalPosition(segment, byte_offset)
        items: list[Item] = []
        looked_at = 0
        for number in segment_numbers(self._path):
            if not place.segment <= number <= limit.segment:
                continue
            reader = SegmentReader(
                segment_path(self._path, number),
                offset=place.offset if number == place.segment else 0,
                end=limit.offset if number == limit.segment else None,
            )
            for frame in reader:
                looked_at += 1
                if not is_open(frame.payload):
                    items.append(Item(number, frame.offset, frame.payload, decode(frame.payload)))
                if len(items) == items_max or looked_at == READ_RECORDS_MAX:
                    return Reading(items, number, frame.end)
            place = reader.position
        return Reading(items, place.segment, place.offset)

    def backlog_bytes(self, segment: int, byte_offset: int) -> int:
        """How much of the journal lies after that place."""
        last, last_offset = self.end()
        behind = 0
        for number in segment_numbers(self._path):
            if segment <= number <= last:
                behind += last_offset if number == last else _size(self._path, number)
        return max(0, behind - byte_offset)

    def finish(self) -> None:
        """All of a dead journal is in the database: marks it so and gives it back."""
        assert self._claimed is not None
        (self._path / SHIPPED).touch()
        self._claimed.release()

    def release(self) -> None:
        """Gives a dead journal back unfinished; another worker may take it."""
        if self._claimed is not None:
            self._claimed.release()


class Outbox:
    """The journals of one data directory, as the shipper of one worker sees them. Every function may block."""

    def __init__(self, data_dir: Path, writer: JournalWriter | None = None, *, syscalls: Syscalls = SYSCALLS) -> None:
        """``writer`` None: there is no journal of our own, only those of the dead."""
        self._data_dir = data_dir
        self._syscalls = syscalls
        self._writer = writer

    def own(self) -> Source | None:
        return None if self._writer is None else Source(self._writer.path, writer=self._writer, claimed=None)

    def orphan(self) -> Source | None:
        """The oldest dead journal that is not shipped, claimed and settled; None when there is none to be had."""
        for found in journals(self._data_dir):
            if found.is_live or found.is_shipped:
                continue
            claimed = claim(found.path)
            if claimed is None:
                continue
            try:
                recovery = recover(claimed, syscalls=self._syscalls)
            except BaseException:
                claimed.release()
                raise
            if recovery.entries:
                log.warning("%d open attempts of a stopped worker settled as estimates", len(recovery.entries))
            return Source(found.path, writer=None, claimed=claimed)
        return None

    def tidy(self, now: datetime, *, shipped_segment: int) -> None:
        """Removes what has been in the database for JOURNAL_KEPT: dead journals, and our own segments before the one
        that is shipped just now."""
        before = (now - JOURNAL_KEPT).timestamp()
        for found in journals(self._data_dir):
            if found.is_live or not found.is_shipped or _modified(found.path / SHIPPED) >= before:
                continue
            claimed = claim(found.path)
            if claimed is not None:
                claimed.remove()
        if self._writer is None:
            return
        for number in segment_numbers(self._writer.path):
            path = segment_path(self._writer.path, number)
            if number < shipped_segment and _modified(path) < before:
                path.with_suffix(TAINTED_SUFFIX).unlink(missing_ok=True)
                path.unlink()


def _size(folder: Path, number: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(folder / f"{number:08d}{SEGMENT_SUFFIX}").st_size  # noqa: PTH116 - asked often
    return 0


def _modified(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return float("inf")
